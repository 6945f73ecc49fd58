"""Ends a run that makes no progress, whatever the reason, instead of holding the output for ever."""

from __future__ import annotations

import faulthandler
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pipelines.cli.exits import FAILED
from pipelines.cli.interrupts import abandon, heed_interrupt
from pipelines.cli.logs import announce, quoted
from torchmoji_core.errors import RunError

_LOOKS_PER_TIMEOUT = 20
_DUMP_SECONDS = 1.0
_LOG_BYTES = 20_000


class Watchdog:
    """Watches a run in the main thread; a context manager around it."""

    def __init__(
        self,
        state: Callable[[], object],
        timeout: float,
        dump_workers: Callable[[], object] = lambda: None,
        worker_log: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        elsewhere: str | None = None,
    ) -> None:
        """Args:
        state: gives another value whenever the run has got on.
        timeout: seconds without progress that end the run; 0 for never.
        dump_workers: has worker processes write their stacks into their log.
        worker_log: that log.
        clock: of seconds.
        elsewhere: what to say if the work is done by others, so that the stacks of this process tell nothing.
        """
        self._state, self._timeout, self._clock = state, timeout, clock
        self._dump_workers, self._worker_log = dump_workers, worker_log
        self._last, self._since = state(), clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._has_barked, self._elsewhere = False, elsewhere
        # What else is printed while the run goes on goes elsewhere.
        self._stream = sys.stderr

    def __enter__(self) -> Watchdog:
        if self._timeout:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._has_barked:
            heed_interrupt()
            said = self._elsewhere or (
                f"no progress for {self._timeout:g} seconds, so the run was ended; where it stood is logged above"
            )
            raise RunError(f"{said}. If something it waits for is that slow, give --stall_timeout more") from error

    def is_stalled(self) -> bool:
        """Look; whether there was no progress for too long."""
        state, now = self._state(), self._clock()
        if state != self._last:
            self._last, self._since = state, now
        return now - self._since >= self._timeout

    def _watch(self) -> None:
        while not self._ended.wait(self._timeout / _LOOKS_PER_TIMEOUT):
            if self.is_stalled() and not self._ended.is_set():
                self._has_barked = True
                if self._elsewhere is not None:
                    abandon(FAILED)
                    return
                lines = [f"no progress for {self._timeout:g} seconds; all threads:", *quoted(stacks())]
                announce("stalled", lines, level=logging.ERROR, stream=self._stream)
                self._report_workers()
                abandon(FAILED)
                return

    def _report_workers(self) -> None:
        self._dump_workers()
        self._ended.wait(_DUMP_SECONDS)
        if self._worker_log is not None and self._worker_log.exists():
            said = self._worker_log.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace")
            if said:
                lines = ["the workers' last words:", *quoted(said)]
                announce("workers_log", lines, level=logging.ERROR, stream=self._stream)


def stacks() -> str:
    """Where each thread of this process is."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "replace")
