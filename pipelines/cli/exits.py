"""How commands end: exit statuses, and errors in one line. Imports no Beam."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from pipelines.cli import console
from pipelines.cli.interrupts import INTERRUPTED, ignore_signals, interruptible, is_told_to_end
from pipelines.cli.logs import announce, set_up_logging, wanted_format
from torchmoji_core.errors import InputError, LockHeldError, TorchMojiError, first_line, is_outage, shortage_of

DONE, FAILED, WRONG_INPUT, TOO_MANY_DEAD_LETTERS, LOCK_HELD, COULD_NOT_TELL = range(6)
YOUNG_OBJECTS = 1_000_000
"""So many more objects begin a search for cycles. With the usual 700, importing torch and Beam takes 0.5 s longer, with
50,000 still 0.2: they make 400,000 objects that stay, numba 130,000 more. A run leaves 14,000 in cycles, however many
rows it has."""
_kept: BaseException | None = None
"""The error with which a command has ended: to free what its frames hold, channels of gRPC for instance, may take for
ever where a server is gone. The process ends without."""
LAST_SECONDS = 10.0
"""For what threads still do when a command has done its work; then the process ends without them."""


def run_command(main: Callable[[list[str]], int]) -> int:
    """Run a command's main; a user's mistake ends in one line on standard error and an exit status.

    SIGTERM, SIGINT and SIGHUP end it within seconds (`interrupts`).

    Returns:
        main's status, or the `exit_status` of its error; 141 if a dry run's output had no reader.
    """
    global _kept
    console.secure_streams()
    gc.set_threshold(YOUNG_OBJECTS)
    arguments = sys.argv[1:]
    set_up_logging(wanted_format(arguments))
    try:
        with interruptible():
            ended = main(arguments)
            if ended != DONE and is_told_to_end():
                raise KeyboardInterrupt  # of which a library has made a failure of its own
            return told(ended, is_all="--dry_run" in arguments)
    except (Exception, KeyboardInterrupt) as error:
        _kept = error
        return _said(error)


def _said(error: BaseException) -> int:
    """Say in one line how a command has ended. Returns the exit status."""
    status = exit_status(error)
    if isinstance(error, InputError):
        event = "error" if status == WRONG_INPUT else "failed"
        announce(event, f"{event}: {error}", level=logging.ERROR)
    elif isinstance(error, LockHeldError):
        announce("lock_held", f"not started: {error}", level=logging.WARNING)
    elif isinstance(error, KeyboardInterrupt):
        announce("interrupted", "interrupted", level=logging.ERROR)
    elif isinstance(error, Exception) and (reason := failure(error)) is not None:
        announce("failed", f"failed: {reason}", level=logging.ERROR)
    else:
        announce("failed", "failed: a fault of the program", level=logging.ERROR, error=error)
    return status


def told(status: int, is_all: bool) -> int:
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
        return f"{shortage} ({first_line(error)})" if shortage else first_line(error)
    return str(shortage) if shortage else None


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
    """End the process. After a run that did not come to its end, threads of Beam may wait for ever; so not for them.

    The command is done, and has its status: from now on nobody can interrupt it. What is left of the interpreter's own
    end is to take a million objects of torch and Beam apart, for a third of a second; that is left out.
    """
    ignore_signals()
    if status not in (FAILED, INTERRUPTED):
        last = threading.Timer(LAST_SECONDS, os._exit, (status,))
        last.daemon = True
        last.start()
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads, as the interpreter does
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        console.lost_output(stream)
    os._exit(status)
