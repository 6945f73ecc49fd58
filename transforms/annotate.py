"""AnnotateTweets: tokenize, batch, score, for streams and for pipelines of other people."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import valid_unicode
from transforms.columns import FINGERPRINT_COLUMN
from transforms.options import DEFAULT_OUTPUTS, ScoreOptions
from transforms.records import DeadLetter, Outcome, Tweet
from transforms.scoring.batch import BatchByLength
from transforms.scoring.buffer import BufferOptions, BufferTweets
from transforms.scoring.model_refresh import ModelUpdates
from transforms.scoring.run_inference import ScoreBatches
from transforms.scoring.tokenize import TokenizeTweets


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
        limits: BatchLimits = BatchLimits(),  # noqa: B008
        buffer: BufferOptions | None = None,
        model_updates: ModelUpdates = None,
        options: ScoreOptions | None = None,
        **fields: Any,
    ) -> None:
        """Args:
        model: bundle, by path or URI; None for the bundled one.
        outputs: columns to make.
        limits: of a batch.
        buffer: when tweets that are held across bundles go on, for input that comes in a trickle; None where bundles
            are large, as those of files are.
        model_updates: announcements of models that take the place of the first one, as `WatchModels` gives them. Rows
            then have the column fingerprint.
        options: all that `ScoreOptions` has, instead of model, outputs and fields.
        **fields: further ones of `ScoreOptions`.

        Raises:
            InputError: for an unknown value, when the pipeline is built.
        """
        super().__init__()
        self._limits, self._buffer, self._model_updates = limits, buffer, model_updates
        if options is None:
            options = ScoreOptions(model=model, outputs=tuple(outputs), **fields)
        elif model is not None or fields:
            raise InputError("AnnotateTweets takes options, or model and other fields of them, but not both")
        if model_updates is not None:
            options = dataclasses.replace(options, outputs=(*options.outputs, FINGERPRINT_COLUMN))
        self._options = options

    def expand(self, tweets: beam.PCollection[Tweet | str]) -> Outcome:
        checked = tweets | "CheckTweets" >> beam.FlatMap(_check, len(self._options.keep)).with_output_types(
            Tweet, dead=DeadLetter
        ).with_outputs("dead", main="tweets")
        tokenized = checked["tweets"] | "TokenizeTweets" >> TokenizeTweets(self._options.model)
        if self._buffer is not None:
            tokenized = tokenized | "BufferTweets" >> BufferTweets(self._buffer, self._limits)
        scored = (
            tokenized
            | "BatchByLength" >> BatchByLength(self._limits)
            | "ScoreBatches" >> ScoreBatches(self._options, self._model_updates)
        )
        return Outcome(scored.results, (checked["dead"], *scored.dead_letters))


def _check(element: Any, n_extra: int) -> Iterator[Tweet | beam.pvalue.TaggedOutput]:
    checked = check_tweet(element, n_extra)
    yield beam.pvalue.TaggedOutput("dead", checked) if isinstance(checked, DeadLetter) else checked


def check_tweet(element: Any, n_extra: int) -> Tweet | DeadLetter:
    """A tweet whose id and text are valid Unicode, or a dead letter for anything else.

    Other people's pipelines hand over anything: an element that is not a tweet costs its row, not the run.

    Args:
        element: a Tweet, or a text.
        n_extra: how many extra values it must have.
    """
    if isinstance(element, str):
        text = valid_unicode(element)
        element = Tweet(hashlib.sha256(text.encode()).hexdigest()[:32], text)
    if not isinstance(element, Tweet) or not isinstance(element.text, str) or not isinstance(element.id, str):
        reason = f"not a Tweet with a string as id and text: {type(element).__name__}"
    elif not isinstance(element.extra, tuple | list) or len(element.extra) != n_extra:
        reason = f"the tweet has not {n_extra} extra values, one for each kept field, but {str(element.extra)[:40]}"
    else:
        return element._replace(text=valid_unicode(element.text), id=valid_unicode(element.id))
    position = getattr(element, "message", "") or getattr(element, "id", "")
    return DeadLetter("AnnotateTweets", str(position), reason, repr(element)[:1000].encode("utf-8", "replace"))
