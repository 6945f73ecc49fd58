"""ScoreBatches: batches of tokenized tweets -> Arrow record batches, through Beam's RunInference.

RunInference shares one model per process, measures it, and can swap it. But it would lose a whole batch for one bad
row, so the handler bisects a batch that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference

from transforms import metrics
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, Outcome, TokenizedTweet
from transforms.scoring.loaded_model import LoadedModel
from transforms.scoring.model_refresh import ModelUpdates, SwappingHandler
from transforms.scoring.score import ScoredBatch, score_batch


class ScoreBatches(beam.PTransform):
    """Score batches. Gives an `Outcome` of `pyarrow.RecordBatch`, one row per tweet, and DeadLetters."""

    def __init__(self, options: ScoreOptions = ScoreOptions(), model_updates: ModelUpdates = None) -> None:  # noqa: B008
        """Args:
        options: what to score with first, and which columns to make.
        model_updates: other models, announced while the pipeline runs.
        """
        super().__init__()
        self._options = options
        self._model_updates = model_updates

    def expand(self, batches: beam.PCollection[list[TokenizedTweet]]) -> Outcome:
        handler = RecordBatchHandler(self._options).with_no_batching()
        unpacked = (
            batches
            | "RunInference" >> RunInference(handler, model_metadata_pcoll=self._model_updates)
            | "Unpack"
            >> beam.FlatMap(_unpack)
            .with_output_types(pa.RecordBatch, dead=DeadLetter)
            .with_outputs("dead", main="rows")
        )
        return Outcome(unpacked["rows"], (unpacked["dead"],))


def _unpack(scored: ScoredBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
    return scored.unpack()


class RecordBatchHandler(SwappingHandler[TokenizedTweet, ScoredBatch]):
    """RunInference's view of a scorer, for batches made by `BatchByLength`. Holds options, and models per process."""

    def __init__(self, options: ScoreOptions) -> None:
        """Args:
        options: what to score with, and which columns to make.
        """
        super().__init__(options)
        self._progress: metrics.Progress | None = None

    def run_inference(
        self, batch: Sequence[TokenizedTweet], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[ScoredBatch]:
        scored = score_batch(batch, model, self._options)
        if self._progress is None:
            self._progress = metrics.Progress(self._options.progress)
        self._progress.add(rows=len(batch))
        return [scored]

    def get_num_bytes(self, batch: Sequence[TokenizedTweet]) -> int:
        return sum(4 * row.length for row in batch)

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise ValueError("this model takes no inference_args")
