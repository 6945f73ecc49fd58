"""The local stream: messages in, files out, in a loop of four threads.

    pull, prepare  ->  Buffer  ->  score  ->  write  ->  acknowledge, and extend what is in flight meanwhile

Where the source does not remember what was acknowledged, as Kafka, the files' record says what they cover of it.
A message is in flight from its delivery to its acknowledgement. So many messages, and bytes of payloads, may be in
flight; what comes faster stays in the source. Messages that are scored together are written together, and acknowledged
when all their rows and dead letters are in files that are in place and on the disk.

Scoring holds Python's lock only for a small part of the time, so the other threads cost it little. What comes while a
batch is scored goes on together: batches grow with the load, and a stream that has fallen behind catches up.
To stop, nothing more is pulled, what waits for company goes on at once, and each thread ends when the one before it has
ended and nothing of it is left.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pipelines.data_set.coverage import Covers
from pipelines.streams.buffer import Buffer, Chunk, LoopOptions
from pipelines.streams.sources import Source, SourceUnavailableError
from pipelines.streams.stages import Prepared
from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.records import Message
from transforms.scoring.score import ScoredBatch

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
DEADLINE_SECONDS = 60
"""For how long a message is ours each time we ask for it; if this process dies, its messages come again after that."""
EXTEND_SECONDS = 4.0
"""Below ten seconds, the shortest deadline that a subscription of Pub/Sub may have."""
LONGEST_PAUSE = 30.0
LAST_SECONDS = 10.0
"""For what is being acknowledged when the stream ends."""
RETRY_SECONDS = 1.0
_TICK = 0.02
"""Real seconds between two looks at what a thread waits for, if it is not told to look earlier."""


class Work(Protocol):
    """What is done with messages; see `stages.Stages`."""

    def prepare(self, message: Message) -> Sequence[Prepared]: ...

    def score(self, prepared: Sequence[Prepared]) -> ScoredBatch: ...

    def write(self, scored: ScoredBatch, covers: Covers) -> None: ...


@dataclass
class _InFlight:
    receipt: str
    size: int
    is_written: bool = False


class _OverError(Exception):
    """There is nothing more to do for this thread."""


class Loop:
    """Reads a source until it is told to stop. Its threads are daemons: a process that has to end may end."""

    def __init__(
        self, source: Source, work: Work, options: LoopOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        source: where messages are from.
        work: what is done with them.
        options: how much is taken on.
        clock: seconds; to be replaced in tests.
        """
        self._source, self._work, self._options, self._clock = source, work, options, clock
        self._changed = threading.Condition()
        # Held to read and change all that follows.
        self._in_flight: dict[str, _InFlight] = {}
        self._bytes = 0
        self._buffer = Buffer(options)
        self._scored: tuple[list[str], ScoredBatch] | None = None
        self._written: list[str] = []
        self._pull_at = self._acknowledge_at = clock()
        self._extend_at = clock() + EXTEND_SECONDS
        self._stopping = self._abandoned = False
        self._running = {"pull", "score", "write", "acknowledge"}
        self.written = 0
        """Messages whose rows and dead letters are in place, since the start."""
        self.error: Exception | None = None
        """What ended the stream."""
        self.ended = threading.Event()
        """Set when all that was pulled is acknowledged, after `stop`, or when there is an error."""
        self.tally = metrics.Tally()
        self._threads = [
            threading.Thread(target=self._run, args=(name, target), name=name, daemon=True)
            for name, target in (
                ("pull", self._pull),
                ("score", self._score),
                ("write", self._write),
                ("acknowledge", self._acknowledge),
            )
        ]

    def __len__(self) -> int:
        """Messages in flight."""
        return len(self._in_flight)

    @property
    def unwritten(self) -> int:
        """Messages in flight that are not yet written."""
        with self._changed:
            return sum(not item.is_written for item in self._in_flight.values())

    @property
    def is_running(self) -> bool:
        """Whether a thread may still write."""
        return "write" in self._running

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Pull no more. What is in flight goes on without waiting for company; `ended` says when it is done."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._source.stop()

    def abandon(self) -> int:
        """End now, and give back what is not written. Returns how many messages that are."""
        self.stop()
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        # A request that extends deadlines must not come after the one that gives messages back.
        self._threads[-1].join(LAST_SECONDS)
        with self._changed:
            left = [item.receipt for item in self._in_flight.values() if not item.is_written]
            written = [item.receipt for item in self._in_flight.values() if item.is_written]
        try:
            if written:
                self._source.acknowledge(written)
            if left:
                self._source.extend(left, 0)
        except (SourceUnavailableError, RunError) as error:
            _LOGGER.debug("messages come again only when their time is over: %s", error)
        return len(left)

    # --- threads ---

    def _run(self, name: str, target: Callable[[], None]) -> None:
        try:
            with self.tally.counting():
                target()
        except _OverError:
            pass
        except Exception as error:
            self.error = self.error or error
        with self._changed:
            self._running.discard(name)
            self._changed.notify_all()
        if not self._running or self.error is not None:
            self.ended.set()

    def _wait(self, ready: Callable[[], T | None]) -> T:
        """What `ready` gives as soon as that is not None; it is asked whenever anything has changed.

        Raises:
            _OverError: if the work of this thread is not needed any more, or from `ready`.
        """
        with self._changed:
            while not self._abandoned:
                found = ready()
                if found is not None:
                    return found
                self._changed.wait(_TICK)
        raise _OverError

    def _pull(self) -> None:
        pause = 0.0
        while True:
            room = self._wait(self._room)
            try:
                received = self._source.pull(room)
                pause = 0.0
            except SourceUnavailableError as error:
                pause = min(2 * pause or 0.5, LONGEST_PAUSE)
                _LOGGER.warning("pulling failed, again in %.1f s: %s", pause, error)
                self._pull_at = self._clock() + pause
                continue
            messages = [item.message for item in received if self._take_on(item.message, item.receipt)]
            for message in messages:
                prepared = self._work.prepare(message)
                with self._changed:
                    self._buffer.add(message.position, prepared, len(message.data), self._clock())

    def _room(self) -> int | None:
        """How many messages may be taken on; None if that has to wait."""
        if self._stopping:
            raise _OverError
        room = self._options.max_messages - len(self._in_flight)
        if self._clock() < self._pull_at:
            return None
        if not self._in_flight or (room > 0 and self._bytes < self._options.max_bytes):
            return max(room, 1)
        return None

    def _take_on(self, message: Message, receipt: str) -> bool:
        """Whether a message is new: one in flight that is delivered again only has a new receipt."""
        with self._changed:
            known = self._in_flight.get(message.position)
            if known is not None:
                known.receipt = receipt
                return False
            self._in_flight[message.position] = _InFlight(receipt, len(message.data))
            self._bytes += len(message.data)
            return True

    def _score(self) -> None:
        while True:
            chunk = self._wait(self._next_chunk)
            scored = self._work.score(chunk.prepared)
            self._wait(lambda: True if self._scored is None else None)
            with self._changed:
                self._scored = chunk.positions, scored
                self._changed.notify_all()

    def _next_chunk(self) -> Chunk | None:
        has_ended = "pull" not in self._running
        now = self._clock()
        if self._buffer.is_due(now) or (has_ended and len(self._buffer)):
            return self._buffer.take(now)
        if has_ended:
            raise _OverError
        return None

    def _write(self) -> None:
        while True:
            positions, scored = self._wait(self._next_scored)
            with self._changed:
                receipts = [self._in_flight[position].receipt for position in positions]
            self._work.write(scored, self._source.covers(receipts))
            with self._changed:
                for position in positions:
                    self._in_flight[position].is_written = True
                self._written += positions
                self.written += len(positions)
                self._changed.notify_all()

    def _next_scored(self) -> tuple[list[str], ScoredBatch] | None:
        scored, self._scored = self._scored, None
        if scored is not None:
            self._changed.notify_all()
        elif "score" not in self._running:
            raise _OverError
        return scored

    def _acknowledge(self) -> None:
        """Acknowledge what is written, and keep the rest from being delivered again."""
        while True:
            positions = self._wait(self._next_written)
            try:
                if positions:
                    self._source.acknowledge([self._in_flight[position].receipt for position in positions])
                    self._forget(positions)
            except SourceUnavailableError as error:
                _LOGGER.warning("acknowledging failed, and is tried again: %s", error)
                with self._changed:
                    self._written = positions + self._written
                self._acknowledge_at = self._clock() + RETRY_SECONDS
            if self._clock() >= self._extend_at:
                self._extend_at = self._clock() + EXTEND_SECONDS
                with self._changed:
                    receipts = [item.receipt for item in self._in_flight.values()]
                with contextlib.suppress(SourceUnavailableError):
                    self._source.extend(receipts, DEADLINE_SECONDS)

    def _next_written(self) -> list[str] | None:
        """Messages to acknowledge; none of them if it is time to extend."""
        now = self._clock()
        if now >= self._extend_at or (self._written and now >= self._acknowledge_at):
            written, self._written = self._written, []
            return written
        if "write" not in self._running and not self._written:
            raise _OverError
        return None

    def _forget(self, positions: Sequence[str]) -> None:
        with self._changed:
            for position in positions:
                self._bytes -= self._in_flight.pop(position).size
            self._changed.notify_all()
