"""BatchByLength: every tweet in one batch, of its own window, of similar length, and few held back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.window import FixedWindows, GlobalWindow, IntervalWindow, SlidingWindows, TimestampedValue
from apache_beam.utils.windowed_value import WindowedValue
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import Run, functions_of
from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from transforms.records import TokenizedTweet, Tweet
from transforms.scoring.batch import BatchByLength


def tokenized(index: int, length: int) -> TokenizedTweet:
    return TokenizedTweet(Tweet(str(index), ""), [11] * length, length, False)


def tokenized_tweets(lengths: Iterable[int]) -> list[TokenizedTweet]:
    return [tokenized(index, length) for index, length in enumerate(lengths)]


def ids(batches: Iterable[list[TokenizedTweet]]) -> list[int]:
    return sorted(int(row.tweet.id) for batch in batches for row in batch)


@functools.cache
def batching(limits: BatchLimits) -> Any:
    """The function that makes batches, as Beam calls it."""
    return functions_of(BatchByLength(limits), "Batch")[0]


def with_window(batch: Any, window: Any = beam.DoFn.WindowParam, timestamp: Any = beam.DoFn.TimestampParam) -> Any:
    return float(window.start), float(window.end), float(timestamp), batch


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=80),
    limits=st.sampled_from(
        [
            BatchLimits(max_rows, max_tokens, max_waiting)
            for max_rows, max_tokens in ((1, 50), (3, 1), (4, 100), (10, 30))
            for max_waiting in (1, 7, 16, 30)
        ]
    ),
)
def test_a_bundle(lengths: list[int], limits: BatchLimits) -> None:
    """Nothing is lost or doubled, limits hold, and what waits is bounded while the bundle goes on."""
    do_fn = batching(limits)
    do_fn.start_bundle()
    batches: list[list[TokenizedTweet]] = []
    for n_in, row in enumerate(tokenized_tweets(lengths), start=1):
        batches += do_fn.process(row, GlobalWindow())
        assert n_in - len(ids(batches)) < limits.max_waiting
    rest = list(do_fn.finish_bundle())
    assert all(value.windows == (GlobalWindow(),) for value in rest)
    batches += [value.value for value in rest]
    assert ids(batches) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= limits.max_rows
        assert len(batch) == 1 or sum(row.length for row in batch) <= limits.max_tokens


def test_batches_leave_within_the_bundle() -> None:
    """A bundle may be the whole input, so waiting for its end would hold all of it."""
    do_fn = batching(BatchLimits(max_rows=8, max_tokens=10_000))
    do_fn.start_bundle()
    early = [batch for row in tokenized_tweets([5] * 100) for batch in do_fn.process(row, GlobalWindow())]
    assert [len(batch) for batch in early] == [8] * 12
    assert [len(value.value) for value in do_fn.finish_bundle()] == [4]


def test_tokens_fill_a_batch_too() -> None:
    do_fn = batching(BatchLimits(max_rows=1000, max_tokens=100))
    do_fn.start_bundle()
    early = [batch for row in tokenized_tweets([20] * 12) for batch in do_fn.process(row, GlobalWindow())]
    assert [len(batch) for batch in early] == [5, 5]


def test_a_bundle_that_failed_leaves_nothing_to_the_next() -> None:
    do_fn = batching(BatchLimits())
    do_fn.start_bundle()
    list(do_fn.process(tokenized(0, 3), GlobalWindow()))
    do_fn.start_bundle()  # the same instance is used again after an exception elsewhere
    list(do_fn.process(tokenized(1, 3), GlobalWindow()))
    assert ids(value.value for value in do_fn.finish_bundle()) == [1]


def test_in_a_pipeline(run: Run) -> None:
    rows = tokenized_tweets(index % 31 for index in range(500))

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        limits = BatchLimits(max_rows=16, max_tokens=200, max_waiting=10_000)
        return {"batches": pipeline | beam.Create(rows) | BatchByLength(limits)}

    batches = run(build)["batches"]
    assert ids(batches) == list(range(500))
    assert all(len(batch) <= 16 and sum(row.length for row in batch) <= 200 for batch in batches)
    spreads = [max(row.length for row in batch) - min(row.length for row in batch) for batch in batches]
    assert sum(spread <= 1 for spread in spreads) > len(spreads) / 2


def test_windows_are_not_mixed(run: Run) -> None:
    """Each batch is in the window of all of its rows, whether it left within the bundle or at its end."""
    rows = tokenized_tweets([7] * 60)

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | beam.Create([TimestampedValue(row, int(row.tweet.id) % 30) for row in rows])
            | beam.WindowInto(FixedWindows(10))
            | BatchByLength(BatchLimits(max_rows=8))
            | beam.Map(with_window)
        )
        return {"batches": batches}

    batches = run(build)["batches"]
    assert ids(batch for _, _, _, batch in batches) == list(range(60))
    for start, end, timestamp, batch in batches:
        assert start <= timestamp < end
        assert {int(row.tweet.id) % 30 // 10 * 10 for row in batch} == {start}
    assert sorted(len(batch) for *_, batch in batches) == [4, 4, 4, 8, 8, 8, 8, 8, 8]


def test_sliding_windows_hold_each_row_in_all_of_its_windows(run: Run) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | beam.Create([TimestampedValue(row, 12) for row in tokenized_tweets([3, 4, 5])])
            | beam.WindowInto(SlidingWindows(size=10, period=5))
            | BatchByLength()
            | beam.Map(with_window)
        )
        return {"batches": batches}

    batches = run(build)["batches"]
    assert sorted(start for start, *_ in batches) == [5.0, 10.0]
    assert all(ids([batch]) == [0, 1, 2] for *_, batch in batches)


@pytest.mark.parametrize("limits", [BatchLimits(max_waiting=6), BatchLimits(max_waiting_size=5)], ids=str)
def test_all_windows_of_a_bundle_are_bounded_together(limits: BatchLimits) -> None:
    """A bundle of old posts may be of thousands of windows. The tweets here are of a character each."""
    do_fn = batching(limits)
    do_fn.start_bundle()
    windows = [IntervalWindow(start, start + 10) for start in range(0, 70, 10)]
    batches: list[tuple[Any, list[TokenizedTweet]]] = []
    for index in range(90):
        row = TokenizedTweet(Tweet("", chr(index + 32)), [11], index % 20, False)
        for emitted in do_fn.process(row, windows[index % 7]):
            if isinstance(emitted, WindowedValue):
                batches.append((*emitted.windows, emitted.value))
            else:
                batches.append((windows[index % 7], emitted))
        assert index + 1 - sum(len(batch) for _, batch in batches) <= 5
    batches += [(*value.windows, value.value) for value in do_fn.finish_bundle()]
    numbers = [(window, ord(row.tweet.text) - 32) for window, batch in batches for row in batch]
    assert sorted(number for _, number in numbers) == list(range(90))
    assert all(windows[number % 7] == window for window, number in numbers)


def test_types() -> None:
    rows = beam.Pipeline() | beam.Create(tokenized_tweets([1]))
    assert (rows | BatchByLength()).element_type == beam.typehints.List[TokenizedTweet]


def test_long_texts_do_not_wait_for_a_full_batch() -> None:
    """Thousands of texts of 16 MiB would be held."""
    do_fn = batching(BatchLimits(max_waiting_size=10_000))
    do_fn.start_bundle()
    waiting = 0
    for index in range(200):
        tweet = Tweet(str(index), "x" * 900, None, ("y" * 900, 5, None))
        waiting += 1
        waiting -= sum(map(len, do_fn.process(TokenizedTweet(tweet, [11], 1, False), GlobalWindow())))
        assert waiting <= 5
    assert sum(len(value.value) for value in do_fn.finish_bundle()) == waiting


@pytest.mark.parametrize("name", ["max_rows", "max_tokens", "max_waiting"])
def test_limits_are_checked_when_the_pipeline_is_built(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        BatchByLength(BatchLimits(**{name: 0}))
