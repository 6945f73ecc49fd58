"""ScoreFileBatches: batches of tokenized tweets -> Arrow record batches; and what scores one batch, wherever that is.

One bad row must not cost a whole batch, so a batch that fails is bisected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import apache_beam as beam
import numpy as np
import pyarrow as pa

from torchmoji_core.errors import CONTENT_ERRORS, RunError, raise_shortage
from torchmoji_core.inference.scores import Scores
from transforms import metrics
from transforms.columns import Scored
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, Outcome, TokenizedBatch, TokenizedTweet, Tweet
from transforms.scoring.loaded_model import LoadedModel, load_model
from transforms.scoring.per_process import PerProcess
from transforms.scoring.tokenize import tokenize

T = TypeVar("T")


class ScoredBatch(NamedTuple):
    """Result of one batch: record batches of what was scored (one, unless a row failed), dead letters for the rest."""

    parts: tuple[pa.RecordBatch, ...]
    dead_letters: tuple[DeadLetter, ...]

    def unpack(self) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """What a step gives: the rows, and the dead letters tagged `dead`."""
        yield from self.parts
        for letter in self.dead_letters:
            yield beam.pvalue.TaggedOutput("dead", letter)


class ScoreFileBatches(beam.PTransform):
    """As `ScoreBatches`, with one model from first to last.

    It does without RunInference, whose module imports torch and scipy wherever a graph is built.
    """

    def __init__(self, options: ScoreOptions) -> None:
        """Args:
        options: what to score with, and which columns to make.
        """
        super().__init__()
        self._options = options

    def expand(self, batches: beam.PCollection[TokenizedBatch]) -> Outcome:
        scored = batches | "Score" >> beam.ParDo(_Score(self._options)).with_output_types(
            pa.RecordBatch, dead=DeadLetter
        ).with_outputs("dead", main="rows")
        return Outcome(scored["rows"], (scored["dead"],))


class _Score(beam.DoFn):
    def __init__(self, options: ScoreOptions) -> None:
        self._options = options
        self._model: PerProcess[LoadedModel] = PerProcess()
        self._progress: metrics.Progress | None = None

    def setup(self) -> None:
        self._progress = metrics.Progress(self._options.progress)
        self._model.get(self._load)

    def process(self, batch: TokenizedBatch) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        scored = score_batch(batch.rows, self._model.get(self._load), self._options)
        assert self._progress is not None
        self._progress.add(rows=len(batch.rows))
        yield from scored.unpack()

    def _load(self) -> LoadedModel:
        return load_model(self._options.model, self._options)


def score_batch(batch: Sequence[TokenizedTweet], model: LoadedModel, options: ScoreOptions) -> ScoredBatch:
    """Score one batch, and count what was scored.

    Args:
        batch: tweets, tokenized for the model that the run was started with.
        model: what to score them with now.
        options: which columns to make.

    Raises:
        RunError, Exception: as `bisect`.
    """

    def score(rows: list[TokenizedTweet]) -> tuple[list[TokenizedTweet], Scores, pa.RecordBatch]:
        if not model.reads_as_first:
            rows = [tokenize(row.tweet, model.scorer.tokenizer, model.scorer.maxlen) for row in rows]
        scores = model.scorer.score_ids([row.ids for row in rows])
        return rows, scores, _to_record_batch(rows, scores, model, options)

    def check() -> None:
        """Score a tweet that is known to be good, without cached results."""
        good = Tweet("", "a", extra=(None,) * len(options.keep))
        row = tokenize(good, model.scorer.tokenizer, model.scorer.maxlen)
        _to_record_batch([row], model.scorer.score_ids([row.ids], reuse=False), model, options)

    scored, dead = bisect(list(batch), score, check)
    for _, (rows, scores, _) in scored:
        _count(rows, scores)
    letters = tuple(
        DeadLetter(
            row.tweet.source or "score",
            row.tweet.message or row.tweet.id,
            f"cannot be scored: {error}",
            row.tweet.text.encode("utf-8", "replace"),
        )
        for row, error in dead
    )
    return ScoredBatch(tuple(part for _, (_, _, part) in scored), letters)


def bisect(
    rows: list[TokenizedTweet], score: Callable[[list[TokenizedTweet]], T], check: Callable[[], object]
) -> tuple[list[tuple[list[TokenizedTweet], T]], list[tuple[TokenizedTweet, Exception]]]:
    """Score rows, halving a batch that fails until each failing row stands alone.

    A row is given up only with proof, since a dead letter is committed and nobody scores its tweet again. The proof:
    the error is of a kind that values cause (`CONTENT_ERRORS`), as lack of memory, threads or files is not; the row
    fails alone; a row that is known to be good does not fail; and then the row fails once more. Any other error is the
    fault of the machine, the model or the program, and ends the run.

        rows a b c d fail together; a b are scored; c d fail; c is scored; d fails alone: d is checked so

    Args:
        rows: of a batch.
        score: scores some of them.
        check: raises if rows that are good cannot be scored now.

    Returns:
        The parts that were scored, and the rows that could not be with their errors.

    Raises:
        RunError: if the check fails by an error that values cause.
        Exception: of any other kind, as it came.
    """
    scored, suspects = _halve(rows, score)
    if not suspects:
        return scored, []
    try:
        check()
    except CONTENT_ERRORS as error:
        raise RunError(f"a tweet that is known to be good cannot be scored: {error}") from error
    dead = []
    for row, _ in suspects:
        again, failed = _halve([row], score)
        scored += again
        dead += failed
    return scored, dead


def _halve(
    rows: list[TokenizedTweet], score: Callable[[list[TokenizedTweet]], T]
) -> tuple[list[tuple[list[TokenizedTweet], T]], list[tuple[TokenizedTweet, Exception]]]:
    if not rows:
        return [], []
    try:
        return [(rows, score(rows))], []
    except CONTENT_ERRORS as error:
        raise_shortage(error)
        if len(rows) == 1:
            return [], [(rows[0], error)]
    middle = len(rows) // 2
    first, second = _halve(rows[:middle], score), _halve(rows[middle:], score)
    return first[0] + second[0], first[1] + second[1]


def _to_record_batch(
    rows: list[TokenizedTweet], scores: Scores, model: LoadedModel, options: ScoreOptions
) -> pa.RecordBatch:
    tokens = None
    if "attention" in options.outputs:
        tokenizer, maxlen = model.scorer.tokenizer, model.scorer.maxlen
        tokens = [tokenizer.tokens(row.tweet.text, maxlen) for row in rows]
    # Scores know whether ids were cut off only if they saw them; the tokenizing step knows.
    scores = replace(scores, truncated=np.array([row.truncated for row in rows], bool))
    of_scores = scores.to_arrow(options.score_outputs, options.top_k, options.embedding_type or "float32", tokens)
    scored = Scored(rows, model.scorer.fingerprint)
    columns = [
        of_scores.column(column.name) if column.name in of_scores.schema.names else column.make(scored, column.type)
        for column in model.columns
    ]
    return pa.record_batch(columns, schema=model.schema)


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
