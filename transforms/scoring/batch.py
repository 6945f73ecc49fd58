"""BatchByLength: tokenized tweets -> lists of similar length, within the bundle. Core's `batching` has the buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.batching import BatchLimits, LengthBuckets
from transforms.records import TokenizedTweet, Tweet


class BatchByLength(beam.PTransform):
    """Group tweets of one window into batches. No state, no timers, no shuffle: works on every runner.

    What is held back is bounded by `BatchLimits.max_waiting` and `max_waiting_size`, over all windows of a bundle
    together, however large the bundle and its texts are. (Beam's own length-aware batching takes effect only with state
    and timers, which would put all scoring on one worker.)
    """

    def __init__(self, limits: BatchLimits = BatchLimits()) -> None:  # noqa: B008
        super().__init__()
        self._limits = limits

    def expand(self, tweets: beam.PCollection[TokenizedTweet]) -> beam.PCollection[list[TokenizedTweet]]:
        return tweets | "Batch" >> beam.ParDo(_Batch(self._limits)).with_output_types(list[TokenizedTweet])


class _Batch(beam.DoFn):
    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits

    def start_bundle(self) -> None:
        self._buckets: dict[Any, LengthBuckets[TokenizedTweet]] = {}
        self._waiting = self._waiting_size = 0

    def process(
        self, tweet: TokenizedTweet, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[list[TokenizedTweet] | WindowedValue]:
        if window not in self._buckets:
            self._buckets[window] = LengthBuckets(self._limits)
        buckets = self._buckets[window]
        waiting, waiting_size = buckets.waiting, buckets.waiting_size
        batch = buckets.add(tweet, tweet.length, tweet_size(tweet.tweet))
        self._waiting += buckets.waiting - waiting
        self._waiting_size += buckets.waiting_size - waiting_size
        if batch is not None:
            yield batch
        # One window by itself keeps to the limits; many of a few tweets each may not.
        if self._waiting >= self._limits.max_waiting:
            yield from self._drain(max(self._buckets, key=lambda window: self._buckets[window].waiting))
        if self._waiting_size > self._limits.max_waiting_size:
            yield from self._drain(max(self._buckets, key=lambda window: self._buckets[window].waiting_size))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window in list(self._buckets):
            yield from self._drain(window)

    def _drain(self, window: Any) -> Iterator[WindowedValue]:
        buckets = self._buckets.pop(window)
        self._waiting -= buckets.waiting
        self._waiting_size -= buckets.waiting_size
        for batch in buckets.drain():
            yield WindowedValue(batch, window.max_timestamp(), (window,))


def tweet_size(tweet: Tweet) -> int:
    """Characters of a tweet: lines of many megabytes are legal, and thousands of tweets wait for a batch."""
    size = len(tweet.id) + len(tweet.text)
    return size + sum([len(value) for value in tweet.extra if isinstance(value, str)]) if tweet.extra else size
