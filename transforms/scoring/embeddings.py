"""TorchMojiEmbeddings: embeddings for Beam's `MLTransform`, and so for its sinks of vector databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.ml.transforms.base import EmbeddingsManager, EmbeddingTypeAdapter

from torchmoji_core.bundle import load_config
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import normalized
from torchmoji_core.options import check_choice
from transforms import metrics
from transforms.options import ScoreOptions
from transforms.scoring.loaded_model import LoadedModel
from transforms.scoring.model_refresh import SwappingHandler

FEATURES = ("embedding", "probabilities")


class TorchMojiEmbeddings(EmbeddingsManager):
    """Puts the embedding of each text in its place.

    >>> rows | MLTransform(write_artifact_location=...).with_transform(TorchMojiEmbeddings(columns=["text"]))

    A vector is a list of floats, float32 as computed; zeros for a text that is None or has no tokens. The artifacts
    hold these options and the model's fingerprint, but no weights: who reads them must reach the same model.
    """

    def __init__(
        self,
        columns: list[str] | None = None,
        model: str | None = None,
        feature: str = FEATURES[0],
        normalize: bool = False,
        precision: str = "auto",
        **options: Any,
    ) -> None:
        """Args:
            columns: of dictionaries or Rows, whose texts are replaced by vectors.
            model: bundle, by path or URI; None for the bundled one.
            feature: `embedding`, or `probabilities` of the classes.
            normalize: whether vectors are divided by their length.
            precision: one of `torchmoji_core.inference.PRECISIONS`.
            **options: of Beam's `EmbeddingsManager`: `type_adapter` instead of columns, for Beam's `EmbeddableItem` for
                instance; `min_batch_size`, `max_batch_size`.

        Raises:
            InputError: for an unknown option or model, or neither columns nor a type_adapter.
        """
        if (columns is None) == (options.get("type_adapter") is None):
            raise InputError("TorchMojiEmbeddings takes columns, a list of names, or a type_adapter")
        if columns is not None and (
            not columns or isinstance(columns, str) or any(type(c) is not str for c in columns)
        ):
            raise InputError("TorchMojiEmbeddings takes a list of columns: columns=['text']")
        check_choice("feature", feature, FEATURES)
        unknown = options.keys() - {"type_adapter", "min_batch_size", "max_batch_size", "large_model"}
        if unknown:
            raise InputError(f"TorchMojiEmbeddings has no option {min(unknown)!r}")
        super().__init__(columns=columns, **options)
        # Plain values, which Beam writes to the artifacts.
        self.model, self.feature, self.normalize, self.precision = model, feature, normalize, precision
        self.fingerprint = load_config(model)[1]
        self._options()

    def _options(self) -> ScoreOptions:
        return ScoreOptions(self.model, self.precision, embedding_type=None, fingerprint=self.fingerprint)

    def get_model_handler(self) -> _VectorHandler:
        """Texts in, vectors out."""
        least = self.min_batch_size or min(64, self.max_batch_size or 64)
        sizes = {"min_batch_size": least, "max_batch_size": self.max_batch_size or max(512, least)}
        return _VectorHandler(self._options(), self.feature, self.normalize, sizes)

    def get_ptransform_for_processing(self, **kwargs: Any) -> beam.PTransform:
        """RunInference on elements as the type adapter knows them."""
        return RunInference(_AdaptedHandler(self.get_model_handler(), self.type_adapter))


class _VectorHandler(SwappingHandler[str | None, list[float]]):
    def __init__(self, options: ScoreOptions, feature: str, normalize: bool, sizes: dict[str, int]) -> None:
        super().__init__(options)
        self._feature, self._normalize, self._sizes = feature, normalize, sizes

    def run_inference(
        self, batch: Sequence[str | None], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> list[list[float]]:
        scores = model.scorer.score(batch, missing="empty").fillna()
        vectors = getattr(scores, self._feature)
        found: list[list[float]] = (normalized(vectors) if self._normalize else vectors).tolist()
        return found

    def get_num_bytes(self, batch: Sequence[str | None]) -> int:
        return sum(len(text or "") for text in batch)

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def batch_elements_kwargs(self) -> dict[str, int]:
        return dict(self._sizes)


class _AdaptedHandler(_VectorHandler):
    """The same for elements that an adapter takes texts from and puts vectors into."""

    def __init__(self, handler: _VectorHandler, adapter: EmbeddingTypeAdapter[Any, Any]) -> None:
        super().__init__(handler._options, handler._feature, handler._normalize, handler._sizes)
        self._adapter = adapter

    def run_inference(
        self, batch: Sequence[Any], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> list[Any]:
        vectors = super().run_inference(self._adapter.input_fn(batch), model)
        found: list[Any] = self._adapter.output_fn(batch, vectors)
        return found

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return super().get_num_bytes([text for text in self._adapter.input_fn(batch) if isinstance(text, str)])
