"""What the command lines share: exit statuses, one-line errors, options from dataclasses. Imports no Beam."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

from pipelines.logs import announce, set_up_logging, wanted_format
from torchmoji_core.errors import InputError, RunError

DONE, FAILED, WRONG_INPUT, TOO_MANY_DEAD_LETTERS, LEASE_HELD = range(5)
INTERRUPTED = 130


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; --help lists all options")


def run_command(main: Callable[[list[str]], int]) -> int:
    """Run a command's main; a user's mistake ends in one line on standard error and an exit status.

    Schedulers stop what they have started with SIGTERM; it is taken as an interrupt, so that a run cleans up.

    Returns:
        main's status, or the `exit_status` of its error.
    """
    arguments = sys.argv[1:]
    set_up_logging(wanted_format(arguments))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main(arguments)
    except InputError as error:
        announce("error", f"error: {error}", level=logging.ERROR)
        return exit_status(error)
    except RunError as error:
        announce("failed", f"failed: {error}", level=logging.ERROR)
        return exit_status(error)
    except KeyboardInterrupt as error:
        announce("interrupted", "interrupted", level=logging.ERROR)
        return exit_status(error)
    except Exception as error:
        announce("failed", "failed: a fault of the program", level=logging.ERROR, error=error)
        return exit_status(error)


def exit_status(error: BaseException) -> int:
    """2 for wrong options or input, 130 when interrupted, 1 for everything else that ends a run."""
    if isinstance(error, InputError):
        return WRONG_INPUT
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def add_dataclass_options(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """Add one option for each field of a dataclass, with its type, default and, from its metadata, help."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        meaning = field.metadata["help"].replace("%", "%%")
        parser.add_argument(
            f"--{field.name}", type=types[field.name], default=field.default, help=f"{meaning} (default: %(default)s)"
        )
