"""What the command lines share: exit statuses, one-line errors, options from dataclasses. Imports no Beam."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

from torchmoji_core.errors import InputError, LeaseHeldError, RunError

DONE, FAILED, WRONG_INPUT, TOO_MANY_DEAD_LETTERS, LEASE_HELD = range(5)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; --help lists all options")


def run_command(main: Callable[[list[str]], int]) -> int:
    """Run a command's main; a user's mistake ends in one line on standard error and an exit status.

    Returns:
        main's status; 2 for wrong options or input, 1 for a run that failed, 4 where another run writes to the same
        output, 130 when interrupted.
    """
    try:
        return main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return FAILED
    except LeaseHeldError as error:
        print(f"not started: {error}", file=sys.stderr)
        return LEASE_HELD
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def add_dataclass_options(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Add one option for each field of a dataclass, with its type, default and, from its metadata, help."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        meaning = field.metadata["help"].replace("%", "%%")
        parser.add_argument(
            f"--{field.name}", type=types[field.name], default=field.default, help=f"{meaning} (default: %(default)s)"
        )
