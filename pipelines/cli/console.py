"""Standard streams that never fail the work: what cannot be written to them is lost, and the work goes on.

They may be closed, a pipe whose reader has gone, a full disk, a terminal that was hung up, or of an encoding without
emojis.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

BROKEN_PIPE = 141
"""What shells report of a command that SIGPIPE has ended."""


class _Output(io.FileIO):
    """The file of a standard stream; it takes everything, and keeps the first reason for which something was lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, without a buffer, so that the handler of a signal may print in the middle of a print."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                self.fault = self.fault or error
                break
            if written is None:
                select.select([], [self], [])  # another process has made the pipe we share a non-blocking one
            else:
                left = left[written:]
        return size


def secure_streams() -> None:
    """Have file descriptors 0 to 2 open, and writing to standard output and standard error never fail.

    A descriptor that is closed would be the number of the next file that is opened, and what is printed would be
    written into it. Streams that are not the process's own, such as a notebook's or a test's, are left alone.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(descriptor, True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _secured(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _secured(sys.stderr, 2)


def _secured(stream: TextIO | None, descriptor: int) -> TextIO:
    """A stream in the place of Python's own, which is None where the descriptor was closed."""
    encoding = "utf-8" if stream is None else stream.encoding
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.flush()
    return io.TextIOWrapper(_Output(descriptor), encoding, errors="backslashreplace", line_buffering=True)  # type: ignore[type-var]


def lost_output(stream: TextIO) -> OSError | None:
    """Why something could not be written to a stream of `secure_streams`; None if everything was."""
    with contextlib.suppress(OSError, ValueError):  # raised by streams that are not ours
        stream.flush()
    file = getattr(stream, "buffer", None)
    return file.fault if isinstance(file, _Output) else None


def is_unread() -> bool:
    """Whether a reader of our output has gone before it had all of it."""
    faults = (lost_output(sys.stdout), lost_output(sys.stderr))
    return any(fault is not None and fault.errno == errno.EPIPE for fault in faults)
