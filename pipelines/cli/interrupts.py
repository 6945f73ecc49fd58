"""Being told to stop: SIGTERM, SIGINT and SIGHUP end every command within seconds, whatever it is doing then.

A signal raises KeyboardInterrupt in the main thread, so that what was begun is cleaned up. That alone is not enough:
Python runs a signal's handler only between two instructions of the main thread, which may be inside a library for
minutes; it drops an exception that comes while a finalizer runs; and cleaning up may wait for a store that is down. So
a separate thread hears of the signal too, through Python's wakeup file descriptor. It raises the interrupt again
until it is heard, and when the time is over it ends the process. That leaves the same behind as a killed process, and
the next run removes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

from pipelines.cli.logs import announce

INTERRUPTED = 130
END_SECONDS = 7.0
"""From a signal to the end of the process, if it has not ended by itself."""
LAST_SECONDS = 3.0
"""The same where the process was asked to stop before, and had time for it."""
REPEAT_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _heard() -> list[signal.Signals]:
    """Those that count. If a terminal's hang-up is ignored, as with `nohup`, the command is to go on."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


class _Interrupts:
    """What is known of the signals that came while a command runs."""

    def __init__(self, end: Callable[[int], object]) -> None:
        self._stream = sys.stderr  # while a pipeline runs, what is printed there goes to a log that nobody sees
        self._end = end
        self._main = threading.get_ident()
        self.heard = threading.Event()
        """Whether the interrupt has arrived where it is dealt with."""
        self.came = threading.Event()
        self.grace: float | None = None
        """Seconds that the next signal gives before it is an interrupt; None for none."""
        self._status = INTERRUPTED
        self._is_deadline_hard = True
        self._deadline: float | None = None
        self._repeat: float | None = None

    def watch(self, wakeup: int) -> None:
        """Hear of signals, and see to it that they have their effect, until the other end is closed."""
        while True:
            due = [time_ for time_ in (self._deadline, self._repeat) if time_ is not None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            if select.select([wakeup], [], [], timeout)[0]:
                numbers = os.read(wakeup, 256)
                if not numbers:
                    return
                if any(number in SIGNALS for number in numbers):
                    self._receive()
            self._act(time.monotonic())

    @property
    def is_abandoned(self) -> bool:
        """Whether it was this program that ended its work."""
        return self._status != INTERRUPTED

    @property
    def is_told_to_end(self) -> bool:
        """Whether the command was told to end from outside, so that errors since then come from that."""
        return self.came.is_set() and not self.is_abandoned

    def abandon(self, status: int) -> None:
        """Interrupt the main thread, and end with a status if that has no effect."""
        self._status = status
        self.grace = None
        self._interrupt()

    def _receive(self) -> None:
        now = time.monotonic()
        grace, self.grace = self.grace, None
        if grace is not None:
            self._deadline, self._is_deadline_hard = now + grace, False
            return
        self.came.set()
        seconds = END_SECONDS if self._is_deadline_hard else LAST_SECONDS
        if self._deadline is None or not self._is_deadline_hard:
            self._deadline = now + seconds
        self._is_deadline_hard = True
        self._repeat = now + REPEAT_SECONDS

    def _act(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            if self._is_deadline_hard:
                self._end_process()
            self._interrupt()
        elif self._repeat is not None and now >= self._repeat:
            self._repeat = None
            if not self.heard.is_set():
                self._interrupt()

    def _interrupt(self) -> None:
        # To the main thread, so that a system call which it waits in is interrupted.
        signal.pthread_kill(self._main, signal.SIGINT)

    def _end_process(self) -> None:
        # The message must not keep it from ending: its reader may be gone, or the main thread may be printing.
        said = threading.Thread(target=_say_the_end, args=(self._stream,), daemon=True)
        said.start()
        said.join(1.0)
        self._end(self._status)


def _say_the_end(stream: TextIO) -> None:
    announce(
        "ended", "ended at once, since cleaning up took too long; the next run removes what is left",
        level=logging.ERROR, stream=stream,
    )  # fmt: skip


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: native ones abort the process at an exception there. It comes again soon."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


_current: _Interrupts | None = None


@contextlib.contextmanager
def interruptible(end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Have these signals raise KeyboardInterrupt in this block, and end the process if that does not.

    Schedulers stop what they have started with SIGTERM, so it is Ctrl-C's equal. In other threads than the main one,
    where Python has no handlers, nothing changes.

    Args:
        end: what ends the process, given the exit status.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    interrupts = _Interrupts(end)

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.came.set()
        if not _is_importing(frame):
            raise KeyboardInterrupt

    before = _current
    previous = {number: signal.signal(number, interrupt) for number in _heard()}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=interrupts.watch, args=(reading,), name="interrupts", daemon=True)
    _current = interrupts
    thread.start()
    try:
        yield
    except Exception as error:
        if interrupts.is_told_to_end:  # a library has made another error of the interrupt, or what was closed failed
            raise KeyboardInterrupt from error
        raise
    finally:
        interrupts.heard.set()
        signal.set_wakeup_fd(wakeup)
        _current = before
        os.close(writing)
        thread.join()
        os.close(reading)
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_ending() -> bool:
    """Whether the process has been told to end at once, or ends because its work stood still."""
    return _current is not None and (_current.came.is_set() or _current.is_abandoned)


def is_told_to_end() -> bool:
    """Whether a signal has told the process to end."""
    return _current is not None and _current.is_told_to_end


def heed_interrupt() -> None:
    """Have an interrupt that was heard not raised again, so that cleaning up after it is not interrupted in turn."""
    if _current is not None:
        _current.heard.set()


def abandon(status: int) -> None:
    """Interrupt the main thread's work, from another thread, and end with a status if that has no effect."""
    if _current is not None:
        _current.abandon(status)


def ignore_signals() -> None:
    """Have these signals no effect from now on."""
    for number in _heard():
        signal.signal(number, signal.SIG_IGN)


def end_at_once() -> None:
    """Have these signals end the process where it stands from now on, as they end other programs."""
    for number in _heard():
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def told_to_stop(seconds: float) -> Iterator[threading.Event]:
    """An event that the first of these signals sets; the second is an interrupt.

    Args:
        seconds: time to stop in, after which it is an interrupt too.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    interrupts = _current
    previous = {number: signal.getsignal(number) for number in _heard()}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def hear(number: int, frame: object) -> None:
        restore()
        if interrupts is not None and interrupts.is_abandoned:
            raise KeyboardInterrupt
        stop.set()

    if interrupts is not None:
        interrupts.grace = seconds
    for number in previous:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        if interrupts is not None:
            interrupts.grace = None
        restore()
