"""AnnotateTweets: tokenize, batch, score; the composite that other people's pipelines import."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from torchmoji_core.batching import BatchLimits
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP, valid_unicode
from transforms.batch import BatchByLength
from transforms.fields import KeptField
from transforms.hold import HoldOptions, HoldTweets
from transforms.model_watch import ModelUpdates
from transforms.options import DEFAULT_OUTPUTS, FINGERPRINT_COLUMN, ScoreOptions
from transforms.records import DeadLetter, Outcome, Tweet
from transforms.score import ScoreBatches
from transforms.tokenize import TokenizeTweets


class AnnotateTweets(beam.PTransform):
    """Tweets (or plain strings) -> an `Outcome` of Arrow record batches, one row per tweet, and DeadLetters.

    >>> scored, dead = pipeline | beam.Create(["what a day"]) | AnnotateTweets(outputs=("top",))
    >>> rows = scored | beam.FlatMap(lambda batch: batch.to_pylist())

    The order of rows is that of scoring. A plain string gets the hash of its text as id; make `Tweet`s for ids of
    your own. The columns are those of the README's table.
    """

    def __init__(
        self,
        model: str | None = None,
        outputs: Iterable[str] = DEFAULT_OUTPUTS,
        precision: str = "auto",
        top_k: int = DEFAULT_TOP,
        embedding_type: str | None = "float32",
        parquet_encoding: str = "plain",
        keep: Iterable[KeptField] = (),
        timestamp: bool = False,
        partitioned: bool = False,
        threads: int | None = None,
        cache_mb: int = DEFAULT_CACHE_MB,
        limits: BatchLimits = BatchLimits(),  # noqa: B008
        hold: HoldOptions | None = None,
        fingerprint: str | None = None,
        run_id: str = "",
        progress: str | None = None,
        model_updates: ModelUpdates = None,
    ) -> None:
        """Args are those of `ScoreOptions`, and:

        limits: of a batch.
        hold: when tweets go on that are held across bundles, for input that comes in a trickle; None where bundles are
            large, as those of files are.
        model_updates: where models come from that take the place of the first one, a `ModelWatch` or what `WatchModels`
            gives. Rows then have the column fingerprint.

        Raises:
            InputError: for an unknown value, when the pipeline is built.
        """
        super().__init__()
        self._limits, self._hold = limits, hold
        self._model_updates = model_updates
        columns = dict.fromkeys([*outputs, *([] if model_updates is None else [FINGERPRINT_COLUMN])])
        self._options = ScoreOptions(
            model=model,
            fingerprint=fingerprint,
            precision=precision,
            outputs=tuple(columns),
            top_k=top_k,
            embedding_type=embedding_type,
            parquet_encoding=parquet_encoding,
            keep=tuple(keep),
            timestamp=timestamp,
            partitioned=partitioned,
            threads=threads,
            cache_mb=cache_mb,
            run_id=run_id,
            progress=progress,
        )

    def expand(self, tweets: beam.PCollection[Tweet | str]) -> Outcome:
        checked = tweets | "CheckTweets" >> beam.FlatMap(_check, len(self._options.keep)).with_output_types(
            Tweet, dead=DeadLetter
        ).with_outputs("dead", main="tweets")
        tokenized = checked["tweets"] | "TokenizeTweets" >> TokenizeTweets(self._options.model)
        if self._hold is not None:
            tokenized = tokenized | "HoldTweets" >> HoldTweets(self._hold, self._limits)
        scored = (
            tokenized
            | "BatchByLength" >> BatchByLength(self._limits)
            | "ScoreBatches" >> ScoreBatches(self._options, self._model_updates)
        )
        return Outcome(scored.results, (checked["dead"], *scored.dead_letters))


def _check(element: Any, n_extra: int) -> Iterator[Tweet | beam.pvalue.TaggedOutput]:
    """Other people's pipelines hand over anything: what is no tweet costs its row, not the run."""
    if isinstance(element, str):
        text = valid_unicode(element)
        element = Tweet(hashlib.sha256(text.encode()).hexdigest()[:32], text)
    if not isinstance(element, Tweet) or not isinstance(element.text, str) or not isinstance(element.id, str):
        reason = f"not a Tweet with a string as id and text: {type(element).__name__}"
    elif not isinstance(element.extra, tuple | list) or len(element.extra) != n_extra:
        reason = f"the tweet has not {n_extra} extra values, one for each kept field, but {str(element.extra)[:40]}"
    else:
        yield element._replace(text=valid_unicode(element.text), id=valid_unicode(element.id))
        return
    letter = DeadLetter(
        "AnnotateTweets", str(getattr(element, "id", "")), reason, repr(element)[:1000].encode("utf-8", "replace")
    )
    yield beam.pvalue.TaggedOutput("dead", letter)
