"""Tells the threads of a local run to stop: each looks here between two pieces of work.

A thread cannot be ended from outside. So where one of several has failed, or the run was interrupted, the others find
that out by `check_stopped`, and end by themselves. Elsewhere, as in worker processes and on clusters, it does nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torchmoji_core.errors import RunError


class StoppedError(RunError):
    """The run of this thread has ended, for a reason that is reported elsewhere."""


class _ThisThread(threading.local):
    stopped: threading.Event | None = None


_this_thread = _ThisThread()


@contextlib.contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Have `check_stopped` in this thread raise, within this block, once the event is set."""
    before, _this_thread.stopped = _this_thread.stopped, event
    try:
        yield
    finally:
        _this_thread.stopped = before


def check_stopped() -> None:
    """Go on, or not.

    Raises:
        StoppedError: if this thread's work is not needed any more.
    """
    event = _this_thread.stopped
    if event is not None and event.is_set():
        raise StoppedError("the run was stopped")
