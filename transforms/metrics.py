"""Names of the counters and distributions of all transforms, in one namespace, and the local progress side channel."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from apache_beam.metrics import Metrics

from transforms.stopping import check_stopped

NAMESPACE = "torchmoji"

READ = "read"
"""Records met, damaged ones included. read = scored + empty + dead + notices at the end of every run."""
SCORED = "scored"
EMPTY = "empty"
DEAD = "dead"
NOTICES = "notices"
CUT = "cut_by_platform"
WITHOUT_ID = "without_id"
WITH_HTML = "with_html"
TIMES_UNREAD = "times_unread"
MEMBERS_PASSED_OVER = "members_passed_over"
TOKENS = "tokens"
UNKNOWN = "unknown_tokens"
TRUNCATED = "truncated"
BYTES_READ = "bytes_read"
FILES_READ = "files_read"
BATCHES = "batches"
BATCH_ROWS = "batch_rows"
BATCH_TOKENS = "batch_tokens"
REUSED = "reused"
MODEL_SWAPS = "model_swaps"
"""How often a process put another model in the place of the one it scored with."""
MODELS_REFUSED = "models_refused"
LOST = "lost"
"""Messages, or offsets, that a topic had deleted before they were read."""
FILES_WRITTEN = "files_written"
ROWS_WRITTEN = "rows_written"
BYTES_WRITTEN = "bytes_written"
ROWS_PUBLISHED = "rows_published"
EVENT_LAG = "event_lag_ms"
"""Distribution, of streaming runs: milliseconds from a tweet's event time to its arrival at the buffer."""
BUFFER_WAIT = "buffer_wait_ms"
"""Distribution: of tweets that go on together, the milliseconds that the first was in the buffer."""
HELD_ROWS = "held_rows"
"""Distribution: tweets that go on together. batch_rows says how full the model's batches are."""
LATENCY = "latency_ms"
"""Distribution, of streaming runs: milliseconds from a row's event time until its file is in place."""
TOP_PREFIX = "top_"
"""Followed by a class index: how often that class was the most probable one."""


class Reported(NamedTuple):
    """How a figure is told to people and machines."""

    gauge: str
    """Its name for Prometheus, without what all have in front."""
    about: str
    remark: str = ""
    """A line of the summary of a run where it is not 0, with a remedy."""
    unit: float = 1.0
    """What makes the gauge's base unit of it."""


OF_RUNS = {
    READ: Reported("read_records", "Records met, damaged ones included."),
    SCORED: Reported("scored_records", "Records scored."),
    EMPTY: Reported("empty_records", "Records without tokens, which have no scores."),
    DEAD: Reported("dead_records", "Records that became dead letters."),
    NOTICES: Reported(
        "notice_records",
        "Records that are no posts and not meant to be, such as deletions.",
        "notices     {:,} records are no posts, but deletions and the like; with --layout plain they are dead letters",
    ),
    CUT: Reported(
        "cut_records",
        "Records scored by a text that their platform has cut.",
        "cut         {:,} texts were cut by their platform (column cut_by_platform); fetch them again in full (version "
        "1.1: tweet_mode=extended)",
    ),
    WITHOUT_ID: Reported(
        "without_id_records",
        "Records without an id, which got a hash of file and position.",
        "without id  {:,} records, whose ids are hashes of file and position; --id_field names the field, if there is "
        "one",
    ),
    WITH_HTML: Reported(
        "with_html_records",
        "Records scored with HTML's tags or entities in their texts.",
        "html        {:,} texts hold tags or entities of HTML; --html tags, or --html entities, makes words of them",
    ),
    MEMBERS_PASSED_OVER: Reported(
        "passed_over_members",
        "Files in .zip files that were not read, since their names tell no format or begin with . or _.",
        "passed over {:,} members of .zip files, whose names tell no format or begin with . or _; unpack the file to "
        "give them by their names",
    ),
    TIMES_UNREAD: Reported(
        "unread_time_records",
        "Records whose time could not be read and is null.",
        "no time     {:,} records have a time that cannot be read, and null in its place; see --timestamp_field",
    ),
    ROWS_WRITTEN: Reported("written_rows", "Rows in the files written."),
    FILES_WRITTEN: Reported("written_files", "Files written, of rows and of dead letters."),
    BYTES_WRITTEN: Reported("written_bytes", "Size of those files."),
    FILES_READ: Reported("read_files", "Input files read."),
    BYTES_READ: Reported("read_bytes", "Input read, as stored."),
    TOKENS: Reported("read_tokens", "Tokens of the texts scored."),
    UNKNOWN: Reported("unknown_tokens", "Tokens that are not in the vocabulary."),
    TRUNCATED: Reported("truncated_records", "Records with more tokens than the model reads."),
    REUSED: Reported("reused_records", "Records not scored again, since their tokens were met before."),
}
"""Of every run. One that failed has left nothing: what is missing is 0."""
IN_FLIGHT = "in_flight"
OF_STREAMS = {
    IN_FLIGHT: Reported("in_flight_messages", "Messages read and not yet acknowledged."),
    f"{LATENCY}_mean": Reported("latency_mean_seconds", "From a row's time to its file being in place.", unit=1e-3),
    f"{LATENCY}_max": Reported("latency_max_seconds", "The longest of those times.", unit=1e-3),
    f"{EVENT_LAG}_mean": Reported("event_lag_mean_seconds", "From a tweet's time to its arrival.", unit=1e-3),
    f"{BUFFER_WAIT}_mean": Reported("buffer_wait_mean_seconds", "How long tweets were held for a batch.", unit=1e-3),
    f"{BATCH_ROWS}_mean": Reported("batch_mean_rows", "How full the model's batches were."),
    MODEL_SWAPS: Reported("model_swaps", "Models that took the place of another."),
    MODELS_REFUSED: Reported("models_refused", "Bundles that were found and not taken."),
    LOST: Reported("lost_messages", "Offsets of Kafka that were deleted before they were read."),
}
"""Of streams, besides."""


class Tally:
    """Counts where no pipeline of Beam's runs. Safe for threads."""

    _of_this_thread: ContextVar[Tally | None] = ContextVar("tally", default=None)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()
        self._distributions: dict[str, tuple[int, int, int, int]] = {}
        """Count, sum, smallest and largest value."""

    @classmethod
    def current(cls) -> Tally | None:
        """The one that counts in this thread."""
        return cls._of_this_thread.get()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count here what this thread counts within this block."""
        token = self._of_this_thread.set(self)
        try:
            yield
        finally:
            self._of_this_thread.reset(token)

    def inc(self, name: str, n: int) -> None:
        with self._lock:
            self._counters[name] += n

    def update(self, name: str, value: int) -> None:
        with self._lock:
            count, total, least, most = self._distributions.get(name, (0, 0, value, value))
            self._distributions[name] = count + 1, total + value, min(least, value), max(most, value)

    def counts(self) -> dict[str, int]:
        """Counters by name."""
        with self._lock:
            return dict(self._counters)

    def figures(self) -> dict[str, float]:
        """Counters by name, and NAME_count, NAME_mean, NAME_min and NAME_max of each distribution."""
        with self._lock:
            found: dict[str, float] = dict(self._counters)
            for name, (count, total, least, most) in self._distributions.items():
                found |= {
                    f"{name}_count": count,
                    f"{name}_mean": round(total / count, 3),
                    f"{name}_min": least,
                    f"{name}_max": most,
                }
            return found


class _Counter:
    def __init__(self, name: str) -> None:
        self._name, self._of_beam = name, Metrics.counter(NAMESPACE, name)

    def inc(self, n: int = 1) -> None:
        tally = Tally.current()
        if tally is None:
            self._of_beam.inc(n)
        else:
            tally.inc(self._name, n)


class _Distribution:
    def __init__(self, name: str) -> None:
        self._name, self._of_beam = name, Metrics.distribution(NAMESPACE, name)

    def update(self, value: int) -> None:
        tally = Tally.current()
        if tally is None:
            self._of_beam.update(value)
        else:
            tally.update(self._name, value)


@functools.cache
def counter(name: str) -> _Counter:
    """Counts wherever it is called from: in a pipeline for Beam, elsewhere in the thread's `Tally`, if it has one.

    Kept, since to make it costs more than to count.
    """
    return _Counter(name)


def count(counts: Counter[str]) -> None:
    """Add figures to the counters of their names, and take them from where they are."""
    for name, number in counts.items():
        counter(name).inc(number)
    counts.clear()


@functools.cache
def distribution(name: str) -> _Distribution:
    """As `counter`."""
    return _Distribution(name)


class Progress:
    """Counts of one local run, shared by its processes through small files: for a display, and to show progress.

    Beam's local runner gives out metrics only at its end. Off where no directory is given, as on clusters.
    """

    _FORMAT = struct.Struct("<qqq")

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._rows = self._bytes = self._beats = 0
        self._file: int | None = None
        if directory is not None:
            _displays.add(self)

    def add(self, rows: int = 0, bytes_read: int = 0) -> None:
        """Add to the counts of this process; with nothing to add, show progress.

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
            if self._file is None:
                path = Path(self._directory, f"{os.getpid()}-{id(self)}")
                # Kept open, since to open it takes longer than all else that is done around a small batch.
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                weakref.finalize(self, os.close, self._file)
            os.pwrite(self._file, self._FORMAT.pack(self._rows, self._bytes, self._beats), 0)
        except OSError:
            self._directory = None  # a display is not worth a failure

    @classmethod
    def total(cls, directory: str) -> tuple[int, int]:
        """Rows and bytes of all processes so far."""
        rows, bytes_read, _ = cls.state(directory)
        return rows, bytes_read

    @classmethod
    def state(cls, directory: str) -> tuple[int, int, int]:
        """Rows, bytes, and how often a process has shown progress."""
        totals = [0, 0, 0]
        for path in Path(directory).iterdir():
            content = path.read_bytes()
            if len(content) == cls._FORMAT.size:
                totals = [total + value for total, value in zip(totals, cls._FORMAT.unpack(content), strict=True)]
        return totals[0], totals[1], totals[2]


_displays: weakref.WeakSet[Progress] = weakref.WeakSet()


def get_on() -> None:
    """Show that this process makes progress where rows and bytes do not show it, as in a long upload.

    Raises:
        StoppedError: if nobody waits for this thread's work any more.
    """
    check_stopped()
    for display in list(_displays):
        display.add()
