"""Dataclasses whose fields are options of the command lines too. Imports no torch, so that --help is fast."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **parser: Any) -> Any:
    """A field, and what the command lines say of the option that sets it.

    Args:
        default: of both.
        help: what `--help` says; a default that is a value is added to it.
        **parser: what else `argparse` is to know (choices, metavar, nargs, action); `name`, where the option's is not
            the field's; `type`, what makes the value of a text, where the field's type does not tell.
    """
    return field(default=default, metadata={"help": help, **parser})
