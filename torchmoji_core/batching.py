"""Cutting rows into batches by length: of a list that is known, and of a stream that is not. No model, no Beam.

The engine computes no padding, so batches of one length are not about waste: they keep every step of the recurrence
as wide as the batch, and bounds on rows and tokens bound its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torchmoji_core.options import AT_LEAST_1, check_number, option

T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batch, and of what waits for one."""

    max_rows: int = option(512, "rows of a batch", name="max_batch_rows", metavar="N")
    max_tokens: int = option(8192, "and its tokens", name="max_batch_tokens", metavar="N")
    """About 150 MB of features and gates at full size."""
    max_waiting: int = 16_384
    """Rows held back in all; above it the fullest bucket goes first."""
    max_waiting_size: int = 64 << 20
    """Characters that they may have in all; above it the largest bucket goes first."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value, AT_LEAST_1, is_whole=True)


def plan_batches(lengths: Sequence[int], limits: BatchLimits = BatchLimits()) -> Iterator[list[int]]:
    """Cut rows into batches of similar length, longest first, so that the largest batch comes first.

    Args:
        lengths: tokens of each row; rows without tokens are in no batch.
        limits: a row longer than max_tokens is a batch of its own.

    Yields:
        Row indices; every row with tokens exactly once.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if lengths[index] == 0:
            break
        if batch and (len(batch) >= limits.max_rows or tokens + lengths[index] > limits.max_tokens):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


class LengthBuckets(Generic[T]):
    """Rows that arrive one by one, held in a bucket for each length until a batch is full."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._buckets: dict[int, _Bucket[T]] = {}
        """By the length of their rows."""
        self.waiting = 0
        """Rows held back in all."""
        self.waiting_size = 0
        """And their size."""

    def add(self, row: T, length: int, size: int = 0) -> list[T] | None:
        """Hold a row of so many tokens, which takes so much memory; returns a batch when one is due."""
        limits = self._limits
        bucket = self._buckets.get(length)
        if bucket is None:
            full = min(limits.max_rows, limits.max_tokens // length) if length else limits.max_rows
            bucket = self._buckets[length] = _Bucket(full)
        rows = bucket.rows
        rows.append(row)
        bucket.size += size
        self.waiting += 1
        self.waiting_size += size
        if len(rows) >= bucket.full:
            return self._take(length)
        if self.waiting >= limits.max_waiting:
            return self._take(max(self._buckets, key=lambda length: len(self._buckets[length].rows)))
        if self.waiting_size > limits.max_waiting_size:
            return self._take(max(self._buckets, key=lambda length: self._buckets[length].size))
        return None

    def drain(self) -> Iterator[list[T]]:
        """The batches that are left, longest first; the buckets are empty afterwards.

        Neighbouring buckets are joined as far as the limits allow, so that a short input is not cut into crumbs.
        """
        batch: list[T] = []
        longest = 0
        for length in sorted(self._buckets, reverse=True):
            rows = self._take(length)
            longest = longest or length
            total = len(batch) + len(rows)
            if batch and (total > self._limits.max_rows or total * longest > self._limits.max_tokens):
                yield batch
                batch, longest = [], length
            batch += rows
        if batch:
            yield batch

    def _take(self, length: int) -> list[T]:
        bucket = self._buckets.pop(length)
        self.waiting -= len(bucket.rows)
        self.waiting_size -= bucket.size
        return bucket.rows


class _Bucket(Generic[T]):
    __slots__ = ("full", "rows", "size")

    def __init__(self, full: int) -> None:
        self.full = full
        """Rows that are a batch."""
        self.rows: list[T] = []
        self.size = 0
