"""Names of the counters and distributions of all transforms, in one namespace, and the local progress side channel."""

from __future__ import annotations

import functools
import os
import struct
import weakref
from pathlib import Path

from apache_beam.metrics import Metrics

from transforms.stopping import check_stopped

NAMESPACE = "torchmoji"

READ = "read"
"""Records met, damaged ones included. read = scored + empty + dead at the end of every run."""
SCORED = "scored"
EMPTY = "empty"
DEAD = "dead"
TOKENS = "tokens"
UNKNOWN = "unknown_tokens"
TRUNCATED = "truncated"
BYTES_READ = "bytes_read"
FILES_READ = "files_read"
BATCHES = "batches"
BATCH_ROWS = "batch_rows"
BATCH_TOKENS = "batch_tokens"
REUSED = "reused"
"""Rows whose tokens were met before, in the same batch or in the cache, and that were not scored again."""
TEXT_TOKENS = "text_tokens"
MODEL_SWAPS = "model_swaps"
"""How often a process put another model in the place of the one it scored with."""
MODELS_REFUSED = "models_refused"
"""Bundles that were found or announced and not taken."""
FILES_WRITTEN = "files_written"
ROWS_WRITTEN = "rows_written"
BYTES_WRITTEN = "bytes_written"
ROWS_PUBLISHED = "rows_published"
EVENT_LAG = "event_lag_ms"
"""Distribution, of streaming runs: milliseconds from a tweet's event time to its arrival at the hold stage."""
HOLD_WAIT = "hold_wait_ms"
"""Distribution: milliseconds that the first of the tweets that go on together has been held."""
HELD_ROWS = "held_rows"
"""Distribution: tweets that go on together. batch_rows says how full the model's batches are."""
LATENCY = "latency_ms"
"""Distribution, of streaming runs: milliseconds from a row's event time until its file is in place."""
TOP_PREFIX = "top_"
"""Followed by a class index: how often that class was the most probable one."""


@functools.cache
def counter(name: str) -> Metrics.DelegatingCounter:
    """Counts wherever it is called from; kept, since to make it costs more than to count."""
    return Metrics.counter(NAMESPACE, name)


@functools.cache
def distribution(name: str) -> Metrics.DelegatingDistribution:
    """As `counter`."""
    return Metrics.distribution(NAMESPACE, name)


class Progress:
    """Counts of one local run, shared by its processes through small files: for a display, and to see that it gets on.

    Beam's local runner gives out metrics only at its end. Off where no directory is given, as on clusters.
    """

    _FORMAT = struct.Struct("<qqq")

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._rows = self._bytes = self._beats = 0
        self._name = f"{os.getpid()}-{id(self)}"
        if directory is not None:
            _displays.add(self)

    def add(self, rows: int = 0, bytes_read: int = 0) -> None:
        """Add to the counts of this process; with nothing to add, show that it gets on.

        Raises:
            StoppedError: if nobody waits for this thread's work any more.
        """
        check_stopped()
        if self._directory is None:
            return
        self._rows += rows
        self._bytes += bytes_read
        self._beats += 1
        try:
            content = self._FORMAT.pack(self._rows, self._bytes, self._beats)
            Path(self._directory, self._name).write_bytes(content)
        except OSError:
            self._directory = None  # a display is not worth a failure

    @classmethod
    def total(cls, directory: str) -> tuple[int, int]:
        """Rows and bytes of all processes so far."""
        rows, bytes_read, _ = cls.state(directory)
        return rows, bytes_read

    @classmethod
    def state(cls, directory: str) -> tuple[int, int, int]:
        """Rows, bytes, and how often a process has shown that it gets on."""
        totals = [0, 0, 0]
        for path in Path(directory).iterdir():
            content = path.read_bytes()
            if len(content) == cls._FORMAT.size:
                totals = [total + value for total, value in zip(totals, cls._FORMAT.unpack(content), strict=True)]
        return totals[0], totals[1], totals[2]


_displays: weakref.WeakSet[Progress] = weakref.WeakSet()


def get_on() -> None:
    """Show that this process gets on where rows and bytes do not tell, as in a long upload.

    Raises:
        StoppedError: if nobody waits for this thread's work any more.
    """
    check_stopped()
    for display in list(_displays):
        display.add()
