"""What waits in a local stream to be scored; on clusters `transforms.scoring.buffer` holds tweets."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.streams.stages import Prepared
from torchmoji_core.batching import BatchLimits
from transforms import metrics
from transforms.records import TokenizedTweet

CHUNK_ROWS = 2048
"""The most that is scored and written together: larger chunks make better batches, but nothing of them is acknowledged
before all is written."""


@dataclass(frozen=True)
class LoopOptions:
    """How much is taken on, and how long it waits."""

    max_messages: int
    """The most in flight."""
    max_bytes: int
    """The most of payloads in flight; one message may always be, whatever its size."""
    max_latency: float
    """Seconds that a message waits for others, to be scored with them."""
    limits: BatchLimits


class Chunk(NamedTuple):
    """Messages that are scored, written and acknowledged together."""

    positions: list[str]
    prepared: list[Prepared]


class Buffer:
    """Messages that wait for each other, oldest first: until there are enough for a batch, or one has waited enough."""

    def __init__(self, options: LoopOptions) -> None:
        self._options = options
        self._waiting: collections.deque[tuple[float, str, Sequence[Prepared], int]] = collections.deque()
        self._tokens = self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, position: str, prepared: Sequence[Prepared], size: int, now: float) -> None:
        """Take up a message.

        Args:
            position: what tells it from others.
            prepared: its tweets and dead letters; none of a notice.
            size: bytes of its payload.
            now: seconds of the clock that `is_due` is asked with.
        """
        self._waiting.append((now, position, prepared, size))
        self._count(prepared, size, 1)

    def is_due(self, now: float) -> bool:
        """Whether the oldest messages are to be scored now."""
        options, limits = self._options, self._options.limits
        return bool(self._waiting) and (
            now - self._waiting[0][0] >= options.max_latency
            or len(self._waiting) >= limits.max_rows
            or self._tokens >= limits.max_tokens
            # If messages are large, there may never be enough for a batch in flight.
            or self._bytes >= options.max_bytes // 4
            or len(self._waiting) >= options.max_messages // 2
        )

    def take(self, now: float) -> Chunk:
        """The messages that have waited longest."""
        metrics.distribution(metrics.BUFFER_WAIT).update(round(1000 * (now - self._waiting[0][0])))
        chunk = Chunk([], [])
        while self._waiting and max(len(chunk.positions), len(chunk.prepared)) < CHUNK_ROWS:
            _, position, prepared, size = self._waiting.popleft()
            self._count(prepared, size, -1)
            chunk.positions.append(position)
            chunk.prepared.extend(prepared)
        metrics.distribution(metrics.HELD_ROWS).update(len(chunk.prepared))
        return chunk

    def _count(self, prepared: Sequence[Prepared], size: int, sign: int) -> None:
        self._bytes += sign * size
        self._tokens += sign * sum(item.length for item in prepared if isinstance(item, TokenizedTweet))
