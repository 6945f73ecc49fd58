"""ScoreBatches: batches of tokenized tweets -> Arrow record batches, through Beam's RunInference.

RunInference shares one model per process, measures it, and can swap it. What it would do to a batch with one bad row
(lose the batch) is prevented in the handler, which bisects.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from torchmoji_core import __version__
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import RunError
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.inference.scores import Scores, score_schema
from torchmoji_core.tokenizer import TOKENIZER_VERSION
from transforms import metrics
from transforms.options import PARTITION_COLUMN, ScoreOptions
from transforms.records import DeadLetter, Outcome, TokenizedTweet, Tweet

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)


class ScoredBatch(NamedTuple):
    """Result of one batch: record batches of what was scored (one, unless a row failed), dead letters for the rest."""

    parts: tuple[pa.RecordBatch, ...]
    dead_letters: tuple[DeadLetter, ...]


class ScoreBatches(beam.PTransform):
    """Score batches. Gives an `Outcome` of `pyarrow.RecordBatch`, one row per tweet, and DeadLetters."""

    def __init__(self, options: ScoreOptions = ScoreOptions()) -> None:  # noqa: B008
        super().__init__()
        self._options = options

    def expand(self, batches: beam.PCollection[list[TokenizedTweet]]) -> Outcome:
        handler = _RecordBatchHandler(self._options).with_no_batching()
        unpacked = (
            batches
            | "RunInference" >> RunInference(handler)
            | "Unpack"
            >> beam.FlatMap(_unpack)
            .with_output_types(pa.RecordBatch, dead=DeadLetter)
            .with_outputs("dead", main="rows")
        )
        return Outcome(unpacked["rows"], (unpacked["dead"],))


def _unpack(scored: ScoredBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
    yield from scored.parts
    for letter in scored.dead_letters:
        yield beam.pvalue.TaggedOutput("dead", letter)


class LoadedModel:
    """A scorer, the schema of its rows, and the metadata that files carry."""

    def __init__(self, scorer: Scorer, name: str, options: ScoreOptions) -> None:
        self.scorer = scorer
        self.schema = output_schema(scorer, name, options)


def output_schema(scorer: Scorer, name: str, options: ScoreOptions) -> pa.Schema:
    """Schema of the output: id, text, kept fields, timestamp, scores; with metadata that says what made it.

    Every metadata value is a string; `classes` is a JSON list in the order of `probabilities`.
    """
    fields = [pa.field("id", pa.string())]
    if "text" in options.outputs:
        fields.append(pa.field("text", pa.string()))
    if "source" in options.outputs:
        fields.append(pa.field("source", pa.string()))
    if options.partitioned:
        fields.append(pa.field(PARTITION_COLUMN, pa.string()))
    fields += [field.column for field in options.keep]
    if options.timestamp:
        fields.append(pa.field("timestamp", pa.timestamp("us", tz="UTC")))
    fields += list(score_schema(scorer.classes, options.score_outputs, options.embedding_type))
    metadata = {
        "torchmoji.bundle": name,
        "torchmoji.fingerprint": scorer.fingerprint,
        "torchmoji.classes": json.dumps(scorer.classes, ensure_ascii=False),
        "torchmoji.tokenizer": TOKENIZER_VERSION,
        "torchmoji.precision": scorer.precision,
        "torchmoji.arithmetic": scorer.arithmetic,
        "torchmoji.maxlen": str(scorer.maxlen),
        "torchmoji.version": __version__,
        "torchmoji.run_id": options.run_id,
    }
    return pa.schema(fields, metadata=metadata)


class _RecordBatchHandler(ModelHandler[TokenizedTweet, ScoredBatch, LoadedModel]):
    """RunInference's view of a scorer, for batches made by `BatchByLength`. Holds options, never a model."""

    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._model = options.model
        self._progress: metrics.Progress | None = None

    def load_model(self) -> LoadedModel:
        return load_model(self._model, self._options)

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model = model_path or self._model

    def run_inference(
        self, batch: Sequence[TokenizedTweet], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[ScoredBatch]:
        def score(rows: list[TokenizedTweet]) -> tuple[Scores, pa.RecordBatch]:
            scores = model.scorer.score_ids([row.ids for row in rows])
            return scores, _to_record_batch(rows, scores, model, self._options)

        scored, dead = bisect(list(batch), score)
        for rows, (scores, _) in scored:
            _count(rows, scores)
        parts = [part for _, (_, part) in scored]
        if self._progress is None:
            self._progress = metrics.Progress(self._options.progress)
        self._progress.add(rows=len(batch))
        letters = tuple(
            DeadLetter(
                row.tweet.source or "score",
                row.tweet.id,
                f"cannot be scored: {error}",
                row.tweet.text.encode("utf-8", "replace"),
            )
            for row, error in dead
        )
        return [ScoredBatch(tuple(parts), letters)]

    def get_num_bytes(self, batch: Sequence[TokenizedTweet]) -> int:
        return sum(4 * row.length for row in batch)

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise ValueError("this model takes no inference_args")


def load_model(model: str | None, options: ScoreOptions) -> LoadedModel:
    """Load a bundle for scoring in this process.

    Raises:
        RunError: if it is not the one that `options` ask for.
    """
    bundle = load_bundle(model)
    if options.fingerprint not in (None, bundle.fingerprint):
        raise RunError(
            f"the model {bundle.name} has fingerprint {bundle.fingerprint[:12]}, the run was planned with "
            f"{str(options.fingerprint)[:12]}: it was replaced meanwhile; run again"
        )
    loaded = LoadedModel(
        Scorer(bundle, options.precision, options.threads, options.cache_mb, options.embedding_type),
        bundle.name,
        options,
    )
    _LOGGER.info("model %s, fingerprint %s, %s", bundle.name, bundle.fingerprint[:12], loaded.scorer.arithmetic)
    return loaded


def bisect(
    rows: list[TokenizedTweet], score: Callable[[list[TokenizedTweet]], T]
) -> tuple[list[tuple[list[TokenizedTweet], T]], list[tuple[TokenizedTweet, Exception]]]:
    """Score rows, halving a batch that fails until each failing row stands alone.

    Returns:
        The parts that were scored, in order, and the rows that could not be with their errors.

    Raises:
        MemoryError: as it came; fewer rows of a healthy batch would not have been at fault.
    """
    if not rows:
        return [], []
    try:
        return [(rows, score(rows))], []
    except MemoryError:
        raise
    except Exception as error:  # whatever one row can do to the model must cost one row
        if len(rows) == 1:
            return [], [(rows[0], error)]
    middle = len(rows) // 2
    first, second = bisect(rows[:middle], score), bisect(rows[middle:], score)
    return first[0] + second[0], first[1] + second[1]


def _to_record_batch(
    rows: list[TokenizedTweet], scores: Scores, model: LoadedModel, options: ScoreOptions
) -> pa.RecordBatch:
    tweets: list[Tweet] = [row.tweet for row in rows]
    columns: dict[str, pa.Array] = {"id": pa.array([tweet.id for tweet in tweets], pa.string())}
    if "text" in options.outputs:
        columns["text"] = pa.array([tweet.text for tweet in tweets], pa.string())
    if "source" in options.outputs:
        columns["source"] = pa.array([tweet.source for tweet in tweets], pa.string())
    if options.partitioned:
        columns[PARTITION_COLUMN] = pa.array([tweet.partition for tweet in tweets], pa.string())
    for index, field in enumerate(options.keep):
        columns[field.name] = pa.array([tweet.extra[index] for tweet in tweets], field.column.type)
    if options.timestamp:
        columns["timestamp"] = pa.array([tweet.timestamp for tweet in tweets], pa.timestamp("us", tz="UTC"))
    tokens = None
    if "attention" in options.outputs:
        tokenizer, maxlen = model.scorer.tokenizer, model.scorer.maxlen
        tokens = [tokenizer.tokens(tweet.text, maxlen) for tweet in tweets]
    scored = scores.to_arrow(options.score_outputs, options.top_k, options.embedding_type, tokens)
    columns.update(zip(scored.schema.names, scored.columns, strict=True))
    # Scores know whether ids were cut off only if they saw them; the tokenizing step knows.
    columns["truncated"] = pa.array([row.truncated for row in rows])
    return pa.record_batch([columns[name] for name in model.schema.names], schema=model.schema)


def _count(rows: list[TokenizedTweet], scores: Scores) -> None:
    with_tokens = scores.n_tokens > 0
    metrics.counter(metrics.SCORED).inc(int(with_tokens.sum()))
    metrics.counter(metrics.EMPTY).inc(int((~with_tokens).sum()))
    metrics.counter(metrics.TOKENS).inc(int(scores.n_tokens.sum()))
    metrics.counter(metrics.UNKNOWN).inc(int(scores.n_unknown.sum()))
    metrics.counter(metrics.REUSED).inc(int(scores.reused.sum()))
    metrics.counter(metrics.TRUNCATED).inc(sum(row.truncated for row in rows))
    metrics.counter(metrics.BATCHES).inc()
    metrics.distribution(metrics.BATCH_ROWS).update(len(rows))
    metrics.distribution(metrics.BATCH_TOKENS).update(int(scores.n_tokens.sum()))
    top = np.bincount(scores.probabilities[with_tokens].argmax(axis=1), minlength=len(scores.classes))
    for index in np.flatnonzero(top):
        metrics.counter(f"{metrics.TOP_PREFIX}{index}").inc(int(top[index]))
