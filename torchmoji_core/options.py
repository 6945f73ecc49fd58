"""Dataclasses whose fields are options of the command lines too. Imports no torch, so that --help is fast."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown


@dataclass(frozen=True)
class Range:
    """What a number may be: from a lowest one up to one that it must stay below."""

    lowest: float
    below: float = math.inf
    is_open: bool = False
    """Whether the lowest is not in it."""

    def __str__(self) -> str:
        lowest = f"{'above' if self.is_open else 'at least'} {self.lowest}"
        return lowest if self.below == math.inf else f"{lowest} and below {self.below}"

    def __contains__(self, value: Any) -> bool:
        return self.lowest <= value < self.below and not (self.is_open and value == self.lowest)


POSITIVE, NOT_NEGATIVE, AT_LEAST_1 = Range(0, is_open=True), Range(0), Range(1)
SHARE = Range(0, below=1)


def option(default: Any, help: str, **more: Any) -> Any:
    """A field, and what the command lines say of the option that sets it.

    Args:
        default: of both.
        help: what `--help` says; a default that is a value is added to it.
        **more: what the value may be: `within`, the `Range` of a number; `choices`, of a value or of each in a tuple.
            What else `argparse` is to know (metavar, nargs, action); `name`, where the option's is not the field's;
            `type`, what makes the value of a text, where the field's type does not tell.
    """
    return field(default=default, metadata={"help": help, **more})


def check_options(options: Any) -> None:
    """Check the fields of a dataclass against what they may be, by their options and their types.

    Raises:
        InputError: naming the field and its valid values.
    """
    types = get_type_hints(type(options))
    for each in fields(options):
        value, kind = getattr(options, each.name), types[each.name]
        kinds = get_args(kind) or (kind,)
        if value is None and NoneType in kinds:
            continue
        if within := each.metadata.get("within"):
            check_number(each.name, value, within, is_whole=int in kinds)
        if choices := each.metadata.get("choices"):
            check = check_choices if get_origin(kind) is tuple else check_choice
            check(each.name, value, choices)


def check_number(what: str, value: Any, within: Range, is_whole: bool = False) -> None:
    """Accept a number, of Python or numpy.

    Raises:
        InputError: naming what it may be.
    """
    if not isinstance(value, Integral if is_whole else Real):
        kind = "a whole number" if is_whole else "a number"
        raise InputError(f"{what} must be {kind} ({within}), not {shown(value)}")
    if value not in within:
        finite = "" if math.isfinite(value) else " and finite"
        raise InputError(f"{what} must be {within}{finite}, not {shown(value)}")


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
    """Accept one of a few values.

    Raises:
        InputError: naming them.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{what} {shown(value)} is unknown; choose from {', '.join(choices)}")


def check_choices(what: str, values: object, choices: Collection[str], fewest: int = 1) -> None:
    """Accept a list of some of a few values. A set is none: each process may see it in another order.

    Raises:
        InputError: naming them.
    """
    if isinstance(values, (str, set, frozenset)) or not isinstance(values, Collection):
        raise InputError(f"{what} must be a list of some of {', '.join(choices)}, not {shown(values)}")
    if len(values) < fewest:
        raise InputError(f"{what}: none given; choose from {', '.join(choices)}")
    for value in values:
        check_choice(what, value, choices)
