"""What scoring gives: numpy arrays, one row per text, and their Arrow form, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchmoji_core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

from torchmoji_core.labels import are_emojis

SCORE_OUTPUTS = ("top", "probabilities", "embedding", "attention")
EMBEDDING_TYPES = ("float32", "float16")
"""How files hold the components of embeddings, which lie in [-1, 1]: as multiples of `EMBEDDING_STEP`, or as half
floats, which round by at most 2.5e-4, and which neither Spark nor Delta knows."""
EMBEDDING_STEP = 2.0**-12
"""Rounding to multiples of it, half to even, changes a component by at most 1/8192 (1.2e-4); what is left compresses to
little more than half floats do."""
DEFAULT_TOP = 5


@dataclass(frozen=True)
class Scores:
    """Scores of n texts, in the order of the texts. A text without tokens has NaN in every score."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """[n, classes]; a row sums to 1, unless several classes can hold of a text"""
    embedding: NDArray[np.floating]
    """[n, dimension]; float32 as computed, unless the scorer was asked for one of `EMBEDDING_TYPES`"""
    attention: NDArray[np.float32]
    """[n, most tokens of a text]; weight of each token, summing to 1, zero behind a text's end"""
    n_tokens: NDArray[np.int32]
    """[n], tokens that were read: at most maxlen"""
    n_unknown: NDArray[np.int32]
    """[n], how many of those are not in the vocabulary"""
    truncated: NDArray[np.bool_]
    """[n], whether the text had more tokens than were read"""
    reused: NDArray[np.bool_]
    """[n], whether the scores are those of the same tokens met before"""

    def __len__(self) -> int:
        return len(self.probabilities)

    def top(self, k: int = DEFAULT_TOP) -> list[list[tuple[str, float]]]:
        """The k most probable classes of each text with their probabilities, highest first; [] for no tokens."""
        indices, values = self._top_indices(k)
        return [
            [(self.classes[index], value) for index, value in zip(row, row_values, strict=True)] if n_tokens else []
            for row, row_values, n_tokens in zip(indices.tolist(), values.tolist(), self.n_tokens.tolist(), strict=True)
        ]

    def _top_indices(self, k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """[n, k] class indices and probabilities; equal probabilities in class order, NaN rows arbitrary."""
        indices = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return indices, np.take_along_axis(self.probabilities, indices, axis=1)

    def to_arrow(
        self,
        outputs: Sequence[str] = ("top", "probabilities", "embedding"),
        top_k: int = DEFAULT_TOP,
        embedding_type: str = "float32",
        tokens: Sequence[Sequence[str]] | None = None,
    ) -> pa.RecordBatch:
        """The scores as a record batch with the columns of `score_schema`.

        Args:
            outputs: which of `SCORE_OUTPUTS`.
            top_k: classes in the top column.
            embedding_type: of the column, one of `EMBEDDING_TYPES`. It rounds to half floats; to multiples of
                `EMBEDDING_STEP`, a scorer that is asked to does.
            tokens: the tokens of each text; needed for attention.

        Raises:
            InputError: for an unknown output or embedding type.
            ValueError: for attention without tokens, or more values in a column than its 32-bit offsets can count.
        """
        import pyarrow as pa

        schema = score_schema(self.classes, outputs, embedding_type)
        for name in outputs:
            if name != "top" and getattr(self, name).size > np.iinfo(np.int32).max:
                raise ValueError(
                    f"{len(self)} texts give more {name} values than a column holds; fewer texts at a time"
                )
        empty = self.n_tokens == 0
        columns: dict[str, pa.Array] = {
            "n_tokens": pa.array(self.n_tokens),
            "n_unknown": pa.array(self.n_unknown),
            "truncated": pa.array(self.truncated),
            "status": pa.array(np.where(empty, "empty", "scored"), pa.string()),
        }
        if "top" in outputs:
            name = top_column(self.classes)[0]
            columns[name] = self._top_column(schema.field(name).type, top_k, empty)
        if "probabilities" in outputs:
            columns["probabilities"] = _vectors(self.probabilities, empty, schema.field("probabilities").type)
        if "embedding" in outputs:
            values = self.embedding.astype(embedding_type, copy=False)
            columns["embedding"] = _vectors(values, empty, schema.field("embedding").type)
        if "attention" in outputs:
            if tokens is None:
                raise ValueError("attention needs the tokens of each text")
            columns["attention"] = self._attention_column(schema.field("attention").type, tokens, empty)
        return pa.record_batch([columns[name] for name in schema.names], schema=schema)

    def _top_column(self, kind: pa.ListType, top_k: int, empty: NDArray[np.bool_]) -> pa.Array:
        import pyarrow as pa

        indices, values = self._top_indices(top_k)
        names = pa.array(self.classes).take(pa.array(indices[~empty].ravel()))
        items = pa.StructArray.from_arrays([names, pa.array(values[~empty].ravel())], fields=list(kind.value_type))
        return _lists(items, np.where(empty, 0, indices.shape[1]), empty, kind)

    def _attention_column(
        self, kind: pa.ListType, tokens: Sequence[Sequence[str]], empty: NDArray[np.bool_]
    ) -> pa.Array:
        import pyarrow as pa

        present = np.arange(self.attention.shape[1])[None, :] < self.n_tokens[:, None]
        words = [
            valid_unicode(token) for row, n in zip(tokens, self.n_tokens.tolist(), strict=True) for token in row[:n]
        ]
        items = pa.StructArray.from_arrays(
            [pa.array(words, pa.string()), pa.array(self.attention[present])], fields=list(kind.value_type)
        )
        return _lists(items, self.n_tokens, empty, kind)


def top_column(classes: Sequence[str]) -> tuple[str, str]:
    """Name of the column of most probable classes, and of the class in its structs."""
    return ("top_emojis", "emoji") if are_emojis(classes) else ("top_classes", "class")


def score_schema(classes: Sequence[str], outputs: Sequence[str], embedding_type: str) -> pa.Schema:
    """The Arrow schema of scores; columns that depend on tokens are null in rows without any.

    Vectors are plain lists although their length is fixed: a null in a fixed-size list, as a text without tokens
    has, makes a Parquet file that Arrow can write and not read.

    Raises:
        InputError: for an unknown output or embedding type.
    """
    import pyarrow as pa

    unknown = [name for name in outputs if name not in SCORE_OUTPUTS]
    if unknown:
        raise InputError(f"output {unknown[0]!r} is unknown; choose from {', '.join(SCORE_OUTPUTS)}")
    if embedding_type not in EMBEDDING_TYPES:
        raise InputError(f"embedding type {embedding_type!r} is unknown; choose one of {', '.join(EMBEDDING_TYPES)}")
    name, item = top_column(classes)
    kind = pa.float16() if embedding_type == "float16" else pa.float32()
    fields = {
        "top": pa.field(name, pa.list_(pa.struct([(item, pa.string()), ("probability", pa.float32())]))),
        "probabilities": pa.field("probabilities", pa.list_(pa.float32())),
        "embedding": pa.field("embedding", pa.list_(kind)),
        "attention": pa.field("attention", pa.list_(pa.struct([("token", pa.string()), ("weight", pa.float32())]))),
    }
    return pa.schema(
        [fields[output] for output in SCORE_OUTPUTS if output in outputs]
        + [
            pa.field("n_tokens", pa.int32()),
            pa.field("n_unknown", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("status", pa.string()),
        ]
    )


def valid_unicode(text: str) -> str:
    """The text with lone surrogates, which JSON's escapes can make and no file format can hold, as U+FFFD.

    Both are one unknown token, so scores do not change.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _vectors(values: NDArray[np.floating], empty: NDArray[np.bool_], kind: pa.ListType) -> pa.Array:
    import pyarrow as pa

    present = values[~empty] if empty.any() else values
    return _lists(pa.array(present.ravel()), np.where(empty, 0, values.shape[1]), empty, kind)


def _lists(items: pa.Array, lengths: NDArray[np.integer], empty: NDArray[np.bool_], kind: pa.ListType) -> pa.Array:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind, mask=pa.array(empty))
