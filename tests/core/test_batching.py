"""No row is lost or doubled, and no batch or store is larger than its limits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.batching import BatchLimits, LengthBuckets, plan_batches
from torchmoji_core.errors import InputError

moderate = settings(max_examples=200, deadline=None)
lengths_of_rows = st.lists(st.integers(0, 40), max_size=80)
limits_of_batches = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 12),
    max_tokens=st.integers(1, 120),
    max_waiting=st.integers(1, 30),
)


def assert_within(lengths: Sequence[int], limits: BatchLimits) -> None:
    assert 1 <= len(lengths) <= limits.max_rows
    assert sum(lengths) <= limits.max_tokens or len(lengths) == 1  # a row cannot be cut


@given(lengths_of_rows, limits_of_batches)
@moderate
def test_planned_batches_hold_every_row_with_tokens_once(lengths: list[int], limits: BatchLimits) -> None:
    batches = list(plan_batches(lengths, limits))
    assert sorted(row for batch in batches for row in batch) == [row for row, length in enumerate(lengths) if length]
    for batch in batches:
        assert_within([lengths[row] for row in batch], limits)
    planned = [lengths[row] for batch in batches for row in batch]
    assert planned == sorted(planned, reverse=True)


@given(lengths_of_rows, limits_of_batches)
@moderate
def test_planned_batches_are_not_cut_without_need(lengths: list[int], limits: BatchLimits) -> None:
    batches = [[lengths[row] for row in batch] for batch in plan_batches(lengths, limits)]
    for batch, following in pairwise(batches):
        assert len(batch) == limits.max_rows or sum(batch) + following[0] > limits.max_tokens


def test_the_default_limits_are_used() -> None:
    assert [len(batch) for batch in plan_batches([1] * 1_100)] == [512, 512, 76]
    assert [len(batch) for batch in plan_batches([30] * 300)] == [273, 27]


@given(lengths_of_rows, limits_of_batches)
@moderate
def test_buckets_give_every_row_once(lengths: list[int], limits: BatchLimits) -> None:
    buckets: LengthBuckets[tuple[int, int]] = LengthBuckets(limits)
    batches = []
    waiting = 0
    for row, length in enumerate(lengths):
        waiting += 1
        batch = buckets.add((row, length), length)
        if batch is not None:
            batches.append(batch)
            (length,) = {length for _, length in batch}
            full = len(batch) == limits.max_rows or (len(batch) + 1) * length > limits.max_tokens
            assert full or waiting == limits.max_waiting  # nothing leaves before it is due
            waiting -= len(batch)
        assert waiting < limits.max_waiting
    left = list(buckets.drain())
    assert sum(map(len, left)) == waiting
    assert list(buckets.drain()) == []
    rows = [row for batch in batches + left for row, _ in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches + left:
        assert_within([length for _, length in batch], limits)


def test_a_full_bucket_is_given_at_once() -> None:
    buckets: LengthBuckets[str] = LengthBuckets(BatchLimits(max_rows=2))
    assert buckets.add("a", 4) is None
    assert buckets.add("b", 5) is None
    assert buckets.add("c", 4) == ["a", "c"]
    assert list(buckets.drain()) == [["b"]]


def test_the_fullest_bucket_goes_when_too_many_rows_wait() -> None:
    buckets: LengthBuckets[str] = LengthBuckets(BatchLimits(max_waiting=4))
    assert [buckets.add(name, length) for name, length in (("a", 1), ("b", 2), ("c", 2))] == [None] * 3
    assert buckets.add("d", 3) == ["b", "c"]


def test_the_largest_bucket_goes_when_what_waits_is_too_large() -> None:
    buckets: LengthBuckets[str] = LengthBuckets(BatchLimits(max_waiting_size=100))
    assert [buckets.add(name, length, 20) for name, length in (("a", 1), ("b", 1), ("c", 1))] == [None] * 3
    assert buckets.add("d", 2, 90) == ["d"]
    assert buckets.add("e", 2, 40) is None
    assert buckets.add("f", 3, 1) == ["a", "b", "c"]
    assert list(buckets.drain()) == [["f", "e"]]


def test_draining_joins_neighbours() -> None:
    buckets: LengthBuckets[int] = LengthBuckets(BatchLimits(max_rows=10))
    for length in range(1, 9):
        buckets.add(length, length)
    drained = list(buckets.drain())
    assert len(drained) == 1
    assert sorted(drained[0]) == list(range(1, 9))


@pytest.mark.parametrize("name", ["max_rows", "max_tokens", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, not {value}"):
        BatchLimits(**{name: value})
