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

    What is held back is bounded by `BatchLimits.max_waiting` and `max_waiting_size` for each window, however large the
    bundle and its texts are. (Beam's own
    length-aware batching takes effect only with state and timers, which would put all scoring on one worker.)
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

    def process(self, tweet: TokenizedTweet, window: Any = beam.DoFn.WindowParam) -> Iterator[list[TokenizedTweet]]:
        if window not in self._buckets:
            self._buckets[window] = LengthBuckets(self._limits)
        batch = self._buckets[window].add(tweet, tweet.length, _size(tweet.tweet))
        if batch is not None:
            yield batch

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, buckets in self._buckets.items():
            for batch in buckets.drain():
                yield WindowedValue(batch, window.max_timestamp(), (window,))
        self._buckets = {}


def _size(tweet: Tweet) -> int:
    """Characters of a tweet: lines of many megabytes are legal, and thousands of tweets wait for a batch."""
    return len(tweet.id) + len(tweet.text) + sum(len(value) for value in tweet.extra if isinstance(value, str))
