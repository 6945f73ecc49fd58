"""TorchMojiModelHandler: the model for a RunInference of your own, texts in, PredictionResults out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import PredictionResult
from numpy.typing import NDArray
from typing_extensions import TypedDict

from torchmoji_core.errors import InputError
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP
from transforms import metrics
from transforms.options import ScoreOptions
from transforms.records import TokenizedTweet, Tweet
from transforms.scoring.loaded_model import LoadedModel
from transforms.scoring.model_refresh import SwappingHandler


class Prediction(TypedDict):
    """Scores of one text; NaN and [] for a text without tokens."""

    top: list[tuple[str, float]]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]


class TorchMojiModelHandler(SwappingHandler[str | Tweet | TokenizedTweet, PredictionResult]):
    """Scores texts, Tweets or TokenizedTweets in RunInference, one `Prediction` each, in order.

    >>> texts | RunInference(TorchMojiModelHandler(max_batch_size=256))
    """

    def __init__(
        self,
        model: str | None = None,
        precision: str = "auto",
        top_k: int = DEFAULT_TOP,
        threads: int | None = None,
        cache_mb: int = DEFAULT_CACHE_MB,
        min_batch_size: int = 64,
        max_batch_size: int = 512,
    ) -> None:
        """Args:
        model: bundle, by path or URI; None for the bundled one.
        precision: one of `torchmoji_core.inference.PRECISIONS`.
        top_k: classes in `Prediction.top`.
        threads: batches that a process scores at the same time; None for one a core.
        cache_mb: bound of a process's cache of recent results, a temporary file, in 10**6 bytes; 0 for none.
        min_batch_size, max_batch_size: bounds for Beam's batching.
        """
        super().__init__(
            ScoreOptions(model, precision, top_k=top_k, embedding_type=None, threads=threads, cache_mb=cache_mb)
        )
        if not 0 < min_batch_size <= max_batch_size:
            raise InputError(f"batch sizes must be 0 < {min_batch_size} <= {max_batch_size}")
        self._batch_sizes = {"min_batch_size": min_batch_size, "max_batch_size": max_batch_size}

    def run_inference(
        self,
        batch: Sequence[str | Tweet | TokenizedTweet],
        model: LoadedModel,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        scorer = model.scorer
        scores = scorer.score_ids([_ids(example, model) for example in batch])
        for example, top, probabilities, embedding in zip(
            batch, scores.top(self._options.top_k), scores.probabilities, scores.embedding, strict=True
        ):
            prediction = Prediction(top=top, probabilities=probabilities, embedding=embedding)
            yield PredictionResult(example, prediction, scorer.fingerprint)

    def get_num_bytes(self, batch: Sequence[str | Tweet | TokenizedTweet]) -> int:
        return sum(
            4 * example.length if isinstance(example, TokenizedTweet) else len(_text(example)) for example in batch
        )

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def batch_elements_kwargs(self) -> dict[str, int]:
        return dict(self._batch_sizes)


def _text(example: str | Tweet) -> str:
    return example if isinstance(example, str) else example.text


def _ids(example: str | Tweet | TokenizedTweet, model: LoadedModel) -> Sequence[int]:
    if isinstance(example, TokenizedTweet):
        if model.reads_as_first:
            return example.ids
        example = example.tweet
    return model.scorer.tokenizer.encode(_text(example), model.scorer.maxlen + 1)
