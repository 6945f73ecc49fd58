"""AnnotateFiles: what `ReadTweets` and `AnnotateTweets` do, from files on, and in fewer steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.batching import BatchLimits, LengthBuckets
from transforms.input.parts import Split
from transforms.input.read import BESIDE, COUNTS, DEAD, PartReader, SplitInputs, beside
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, PartCount, TokenizedBatch, TokenizedTweet, Tweet
from transforms.scoring.batch import tweet_size
from transforms.scoring.score import ScoreFileBatches
from transforms.scoring.tokenize import TweetTokenizer, tokenize


class Annotated(NamedTuple):
    """What `AnnotateFiles` gives."""

    results: beam.PCollection[pa.RecordBatch]
    dead_letters: tuple[beam.PCollection[DeadLetter], ...]
    counts: tuple[beam.PCollection[PartCount], ...]


class AnnotateFiles(beam.PTransform):
    """Files -> `Annotated`: Arrow record batches, one row per tweet, dead letters, and counts of what was read.

    The rows are those of `ReadTweets` and `AnnotateTweets`. But one step makes batches of a part of a file, so that
    Beam carries no single tweets.
    """

    def __init__(
        self,
        inputs: SplitInputs,
        reader: PartReader,
        options: ScoreOptions = ScoreOptions(),  # noqa: B008
        limits: BatchLimits = BatchLimits(),  # noqa: B008
    ) -> None:
        """Args:
        inputs: the files.
        reader: of their parts.
        options: what to score with, and which columns to make.
        limits: of a batch.
        """
        super().__init__()
        self._inputs, self._options = inputs, options
        self._read = _ReadBatches(reader, options.model, limits)

    def expand(self, pbegin: beam.Pipeline) -> Annotated:
        split = pbegin | "SplitInputs" >> self._inputs
        read = split.parts | "ReadBatches" >> beam.ParDo(self._read).with_output_types(
            TokenizedBatch, **BESIDE
        ).with_outputs(*BESIDE, main="batches")
        scored = read["batches"] | "ScoreBatches" >> ScoreFileBatches(self._options)
        return Annotated(
            scored.results, (split.dead_letters, read[DEAD], *scored.dead_letters), (split.counts, read[COUNTS])
        )


class _ReadBatches(beam.DoFn):
    def __init__(self, reader: PartReader, model: str | None, limits: BatchLimits) -> None:
        self._reader, self._tokenizer, self._limits = reader, TweetTokenizer(model), limits

    def start_bundle(self) -> None:
        self._buckets: LengthBuckets[TokenizedTweet] = LengthBuckets(self._limits)

    def process(self, part: Split) -> Iterator[TokenizedBatch | beam.pvalue.TaggedOutput]:
        (tokenizer, maxlen), buckets = self._tokenizer.get(), self._buckets
        for tweet in self._reader.read(part):
            if not isinstance(tweet, Tweet):
                yield beside(tweet)
                continue
            row = tokenize(tweet, tokenizer, maxlen)
            if batch := buckets.add(row, row.length, tweet_size(tweet)):
                yield TokenizedBatch(batch)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for batch in self._buckets.drain():
            yield GlobalWindows.windowed_value(TokenizedBatch(batch))
