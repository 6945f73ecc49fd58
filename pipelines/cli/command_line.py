"""What the command lines share: exit statuses, one-line errors, options from dataclasses. Imports no Beam."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from pipelines.cli import console
from pipelines.cli.interrupts import INTERRUPTED, interruptible
from pipelines.cli.logs import announce, set_up_logging, wanted_format
from torchmoji_core.errors import InputError, LockHeldError, TorchMojiError, first_line, is_outage, shortage_of

DONE, FAILED, WRONG_INPUT, TOO_MANY_DEAD_LETTERS, LOCK_HELD, COULD_NOT_TELL = range(6)
LAST_SECONDS = 10.0
"""For what threads still do when a command has done its work; then the process ends without them."""
T = TypeVar("T")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; --help lists all options")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after --help, whose output is all that it does."""
        super().exit(_told(status, is_all=True), message)


def run_command(main: Callable[[list[str]], int]) -> int:
    """Run a command's main; a user's mistake ends in one line on standard error and an exit status.

    SIGTERM, SIGINT and SIGHUP end it within seconds (`interrupts`).

    Returns:
        main's status, or the `exit_status` of its error; 141 if a dry run's output had no reader.
    """
    console.secure_streams()
    arguments = sys.argv[1:]
    set_up_logging(wanted_format(arguments))
    try:
        with interruptible():
            return _told(main(arguments), is_all="--dry_run" in arguments)
    except InputError as error:
        status = exit_status(error)
        event = "error" if status == WRONG_INPUT else "failed"
        announce(event, f"{event}: {error}", level=logging.ERROR)
        return status
    except LockHeldError as error:
        announce("lock_held", f"not started: {error}", level=logging.WARNING)
        return exit_status(error)
    except KeyboardInterrupt as error:
        announce("interrupted", "interrupted", level=logging.ERROR)
        return exit_status(error)
    except Exception as error:
        reason = failure(error)
        if reason is not None:
            announce("failed", f"failed: {reason}", level=logging.ERROR)
        else:
            announce("failed", "failed: a fault of the program", level=logging.ERROR, error=error)
        return exit_status(error)


def _told(status: int, is_all: bool) -> int:
    """The exit status of what has succeeded, after a word on output that was lost.

    Args:
        status: of the work.
        is_all: whether the output is all there is of it.
    """
    if is_all and status == DONE and console.is_unread():
        return console.BROKEN_PIPE
    fault = console.lost_output(sys.stdout)
    if fault is not None and fault.errno != errno.EPIPE:
        announce("output_lost", f"not all could be written to standard output: {fault.strerror}", level=logging.WARNING)
    return status


def failure(error: Exception) -> str | None:
    """What has failed, in one line, if the same may succeed another time; None for wrong options and our own faults.

    A store or disk may fail at any point, and a machine run short.
    """
    if exit_status(error) != FAILED:
        return None
    shortage = None if isinstance(error, TorchMojiError) else shortage_of(error)
    if isinstance(error, TorchMojiError | OSError):
        return f"{shortage.what}; {shortage.remedy} ({first_line(error)})" if shortage else first_line(error)
    return f"{shortage.what}; {shortage.remedy}" if shortage else None


def exit_status(error: BaseException) -> int:
    """2 for wrong options or input, 4 where another run writes, 130 when interrupted, 1 for everything else.

    A file or model that cannot be read for lack of memory, or because a store is down, is not wrong: trying again may
    help.
    """
    if isinstance(error, InputError):
        return FAILED if is_outage(error) or shortage_of(error) is not None else WRONG_INPUT
    if isinstance(error, LockHeldError):
        return LOCK_HELD
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def end(status: int) -> NoReturn:
    """End the process. After a run that did not come to its end, threads of Beam may wait for ever; so not for them."""
    for stream in (sys.stdout, sys.stderr):
        console.lost_output(stream)
    if status in (FAILED, INTERRUPTED):
        os._exit(status)
    last = threading.Timer(LAST_SECONDS, os._exit, (status,))
    last.daemon = True
    last.start()
    sys.exit(status)


def add_options(
    parser: argparse._ActionsContainer,
    options: type[Any],
    without: Collection[str] = (),
    are_told: bool = False,
    **defaults: Any,
) -> None:
    """Add an option to a parser, or a group of one, for each field of a dataclass that is an `option`.

    Args:
        parser: to add to.
        options: the dataclass.
        without: fields to leave out.
        are_told: whether what is not given is not in what is parsed, so that it can be told.
        **defaults: instead of the fields' own.
    """
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        if "help" not in field.metadata or field.name in without:
            continue
        given, kind = dict(field.metadata), types[field.name]
        name, meaning = given.pop("name", field.name), given.pop("help").replace("%", "%%")
        default = shown = defaults.get(field.name, field.default)
        if kind is bool:
            given["action"] = "store_true"
        elif get_origin(kind) is tuple:
            shown = ",".join(default or ())
            if not given.keys() & {"nargs", "action"}:
                given["type"], default = names, shown
        else:
            given.setdefault("type", next(each for each in (*get_args(kind), kind) if each is not type(None)))
            if given["type"] is seconds:
                given["metavar"], shown = "TIME", None if default is None else as_time(default)
        if shown not in (None, False, ""):
            meaning += f" (default: {shown})"
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS if are_told else default, help=meaning, **given)


def take_options(options: type[T], given: argparse.Namespace, **others: Any) -> T:
    """What `add_options` has added, as the dataclass.

    Args:
        options: the dataclass.
        given: the parsed command line; what it has not keeps its default.
        others: further fields.

    Raises:
        InputError: if the dataclass refuses a value.
    """
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        name = field.metadata.get("name", field.name)
        if "help" in field.metadata and hasattr(given, name):
            others.setdefault(field.name, getattr(given, name))
    return options(**others)


def names(text: str) -> tuple[str, ...]:
    """Names that commas separate."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def seconds(text: str) -> float:
    """Seconds of a time like 90, 500ms, 90s, 10m, 2h or 1d.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a time like 500ms, 30s, 10m, 2h or 1d, not {text!r}")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def as_time(number: float) -> str:
    """Seconds as `seconds` reads them."""
    unit = next(unit for unit in ("h", "m", "s", "ms") if unit == "ms" or (number and number % _SECONDS[unit] == 0))
    return f"{number / _SECONDS[unit]:g}{unit}"
