"""What scoring gives: numpy arrays, one row per text, and their Arrow form, column by column."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import torchmoji_core
from torchmoji_core.errors import InputError
from torchmoji_core.labels import are_emojis
from torchmoji_core.options import AT_LEAST_1, check_choice, check_choices, check_number
from torchmoji_core.tokenizer import TOKENIZER_VERSION

if TYPE_CHECKING:
    import pandas as pd

EMBEDDING_TYPES = ("float32", "float16")
"""How files hold the components of embeddings, which lie in [-1, 1]: as multiples of `EMBEDDING_STEP`, or as half
floats, which round by at most 2.5e-4, and which neither Spark nor Delta knows."""
EMBEDDING_STEP = 2.0**-12
"""Rounding to multiples of it, half to even, changes a component by at most 1/8192 (1.2e-4); what is left is one of
8193 values, so that files with a dictionary of them are smaller than with half floats."""
DEFAULT_TOP = 5
_MOST_VALUES = 2**31 - 1
"""Of a column of lists, whose offsets have 32 bits."""


@dataclass(frozen=True, repr=False, eq=False)
class Score:
    """Scores of one text."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """[classes]"""
    embedding: NDArray[np.floating]
    """[dimension]"""
    attention: NDArray[np.float32]
    """[n_tokens]"""
    n_tokens: int
    n_unknown: int
    truncated: bool
    reused: bool

    def __repr__(self) -> str:
        top = ", ".join(f"{name} {probability:.2f}" for name, probability in self.top(3))
        return f"Score({top or 'empty'}; n_tokens={self.n_tokens})"

    def top(self, k: int = DEFAULT_TOP) -> list[tuple[str, float]]:
        """The k most probable classes with their probabilities, highest first; [] for no tokens.

        Raises:
            InputError: for a k below 1.
        """
        check_number("k", k, AT_LEAST_1, is_whole=True)
        order = np.argsort(-self.probabilities, kind="stable")[:k] if self.n_tokens else ()
        return [(self.classes[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True, repr=False, eq=False)
class Scores:
    """Scores of n texts, in the order of the texts. A text without tokens has NaN in every score.

    `scores[i]` is the `Score` of one text; a slice, a mask or a list of rows gives `Scores` of these rows, copied.
    """

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

    def __repr__(self) -> str:
        return (
            f"Scores({len(self):,} texts, {int(self.is_empty.sum()):,} of them empty; {len(self.classes)} classes, "
            f"embedding of {self.embedding.shape[1]})"
        )

    @overload
    def __getitem__(self, rows: int | np.integer) -> Score: ...
    @overload
    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> Scores: ...
    def __getitem__(self, rows: Any) -> Score | Scores:
        # Copies, since a view would keep the scores of all texts in memory.
        if isinstance(rows, (int, np.integer)) and not isinstance(rows, bool):
            return Score(
                self.classes,
                self.probabilities[rows].copy(),
                self.embedding[rows].copy(),
                self.attention[rows, : self.n_tokens[rows]].copy(),
                *(values[rows].item() for values in (self.n_tokens, self.n_unknown, self.truncated, self.reused)),
            )
        if isinstance(rows, tuple) or not (isinstance(rows, slice) or np.ndim(rows) == 1):
            raise TypeError(
                "scores are indexed by the number of a row, or by a slice, a mask or a list of rows, not by "
                f"a {type(rows).__name__} like this; single values are in probabilities, embedding and attention"
            )
        rows = np.arange(len(self))[rows]
        chosen = {name: values[rows] for name, values in vars(self).items() if name != "classes"}
        return Scores(classes=self.classes, **chosen)

    @property
    def is_empty(self) -> NDArray[np.bool_]:
        """[n], texts without tokens."""
        return self.n_tokens == 0

    def fillna(self, value: float = 0.0) -> Scores:
        """Scores in which probabilities and embeddings of empty texts are a number instead of NaN.

        scikit-learn takes no NaN. The other way is to leave such texts out: `scores[~scores.is_empty]`.
        """
        filled = replace(self, probabilities=self.probabilities.copy(), embedding=self.embedding.copy())
        filled.probabilities[self.is_empty] = filled.embedding[self.is_empty] = value
        return filled

    def predict(self, thresholds: float | Mapping[str, float] | None = None) -> NDArray[Any]:
        """The class of each text, or the classes where several can hold.

        Args:
            thresholds: the probability from which on a class holds, of all or by class; those that fine-tuning chose
                are `bundle.provenance["thresholds"]`.

        Returns:
            Without thresholds [n] of object, the name of the most probable class, None for an empty text; with
            thresholds [n, classes] of bool, False for an empty text.

        Raises:
            KeyError: if the threshold of a class is missing.
        """
        if thresholds is None:
            names = np.array([*self.classes, None], object)
            return names[np.where(self.is_empty, len(self.classes), self.probabilities.argmax(axis=1))]
        if isinstance(thresholds, Mapping):
            return self.probabilities >= np.array([thresholds[name] for name in self.classes])
        return self.probabilities >= thresholds

    def to_pandas(self, index: Any = None) -> pd.DataFrame:
        """Probabilities as a DataFrame with a column of each class, named by it.

        `scores.to_arrow().to_pandas()` has the columns of the pipeline's files instead.

        Args:
            index: of the rows, that of the texts' Series for example; None for 0 to n - 1.

        Raises:
            InputError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError("to_pandas needs pandas; install it, or take to_arrow") from None
        return pd.DataFrame(self.probabilities, index, self.classes)

    def top(self, k: int = DEFAULT_TOP) -> list[list[tuple[str, float]]]:
        """The k most probable classes of each text with their probabilities, highest first; [] for no tokens.

        Raises:
            InputError: for a k below 1.
        """
        indices, values = self._top_indices(k)
        return [
            [(self.classes[index], value) for index, value in zip(row, row_values, strict=True)] if n_tokens else []
            for row, row_values, n_tokens in zip(indices.tolist(), values.tolist(), self.n_tokens.tolist(), strict=True)
        ]

    def _top_indices(self, k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """[n, k] class indices and probabilities; equal probabilities in class order, NaN rows arbitrary."""
        check_number("k", k, AT_LEAST_1, is_whole=True)
        left, rows = self.probabilities.copy(), np.arange(len(self))
        indices = np.empty((len(self), min(k, left.shape[1])), np.intp)
        for place in range(indices.shape[1]):  # sorting all to take a few takes eight times as long
            indices[:, place] = left.argmax(axis=1)  # of equal ones the first
            left[rows, indices[:, place]] = -np.inf
        return indices, np.take_along_axis(self.probabilities, indices, axis=1)

    def to_arrow(
        self,
        outputs: Sequence[str] = ("top", "probabilities", "embedding"),
        top_k: int = DEFAULT_TOP,
        embedding_type: str = "float32",
        tokens: Sequence[Sequence[str]] | None = None,
    ) -> pa.RecordBatch:
        """The scores as a record batch of those `score_columns` that the outputs give, and those that are always there.

        Args:
            outputs: which of `SCORE_OUTPUTS`.
            top_k: classes in the top column.
            embedding_type: of the column, one of `EMBEDDING_TYPES`. It rounds to half floats; to multiples of
                `EMBEDDING_STEP`, a scorer that is asked to does.
            tokens: the tokens of each text; needed for attention.

        Raises:
            InputError: for an unknown output or embedding type, or a top_k below 1.
            ValueError: for attention without tokens, or more values in a column than its 32-bit offsets can count.
        """
        check_choice("embedding_type", embedding_type, EMBEDDING_TYPES)
        check_choices("outputs", outputs, SCORE_OUTPUTS, fewest=0)
        for name in outputs:
            if name != "top" and getattr(self, name).size > _MOST_VALUES:
                raise ValueError(
                    f"{len(self)} texts give more {name} values than a column holds; fewer texts at a time"
                )
        columns = chosen(score_columns(self.classes, embedding_type), outputs)
        made = _Made(self, self.is_empty, top_k, tokens)
        return pa.record_batch([column.make(made, column.type) for column in columns], schema=schema_of(columns))


class Column(NamedTuple):
    """A column of the output: one line of a table from which schemas, record batches and README's table follow."""

    name: str
    type: pa.DataType
    about: str
    """What it holds, in Markdown."""
    make: Callable[[Any, pa.DataType], pa.Array]
    """Gives the column of its type, from what the table says that its columns are made of."""
    output: str | None = None
    """Which output gives it; None if it is always there."""
    repeats: str | None = None
    """Path, inside the column, of values of which a file has few different ones."""
    is_short: bool = True
    """Whether it goes into messages."""


def chosen(columns: Iterable[Column], outputs: Collection[str]) -> list[Column]:
    """The columns that outputs give, and those that are always there."""
    return [column for column in columns if column.output is None or column.output in outputs]


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """The Arrow schema of columns."""
    return pa.schema([(column.name, column.type) for column in columns])


class _Made(NamedTuple):
    """What columns of scores are made of."""

    scores: Scores
    empty: NDArray[np.bool_]
    """Texts without tokens."""
    top_k: int
    tokens: Sequence[Sequence[str]] | None


def score_columns(classes: Sequence[str], embedding_type: str = "float32") -> tuple[Column, ...]:
    """The columns of scores, in their order; those of outputs are null in rows without tokens.

    Vectors are plain lists although their length is fixed: a null in a fixed-size list, as a text without tokens
    has, makes a Parquet file that Arrow can write and not read ("Expected all lists to be of size=64 but index 357 had
    size=0"). In the file both are the same. NaN instead of null would make a text without tokens look scored.
    """
    top, item = ("top_emojis", "emoji") if are_emojis(classes) else ("top_classes", "class")
    number = pa.float16() if embedding_type == "float16" else pa.float32()
    return (
        Column(
            top,
            pa.list_(pa.struct([(item, pa.string()), ("probability", pa.float32())])),
            "highest first. `top_classes`, with `class`, for models of other classes",
            _top,
            "top",
            repeats=f"list.element.{item}",
        ),
        Column(
            "probabilities",
            pa.list_(pa.float32()),
            "one of each class (64), in class order, sums to 1 (each by itself in a bundle where several classes can "
            "hold)",
            lambda made, kind: vectors(made.scores.probabilities, made.empty, kind),
            "probabilities",
            is_short=False,
        ),
        Column(
            "embedding",
            pa.list_(number),
            "1120 numbers, 2304 at full size; multiples of 1/4096, which rounds by at most 0.00012 (`list<halffloat>` "
            "with `--embedding_type float16`)",
            lambda made, kind: vectors(made.scores.embedding.astype(embedding_type, copy=False), made.empty, kind),
            "embedding",
            repeats="list.element",  # of the 8193 multiples of the step
            is_short=False,
        ),
        Column(
            "attention",
            pa.list_(pa.struct([("token", pa.string()), ("weight", pa.float32())])),
            "in the order of the text, sums to 1",
            _attention,
            "attention",
            is_short=False,
        ),
        Column(
            "n_tokens",
            pa.int32(),
            "tokens read, at most the model's maxlen (60; 30 for DeepMoji's weights)",
            lambda made, kind: pa.array(made.scores.n_tokens),
        ),
        Column(
            "n_unknown",
            pa.int32(),
            "how many of those are not in the vocabulary",
            lambda made, kind: pa.array(made.scores.n_unknown),
        ),
        Column(
            "truncated",
            pa.bool_(),
            "whether the text had more tokens",
            lambda made, kind: pa.array(made.scores.truncated),
        ),
        Column(
            "status",
            pa.string(),
            "`scored`, or `empty` for a text without tokens: its scores are null",
            lambda made, kind: pa.array(("scored", "empty"), kind).take(pa.array(made.empty.view(np.uint8))),
            repeats="",
        ),
    )


def model_metadata(name: str, fingerprint: str, classes: Sequence[str], maxlen: int) -> dict[str, str]:
    """What the metadata of a schema say of the model; `classes` is a JSON list in the order of `probabilities`."""
    return {
        "torchmoji.bundle": name,
        "torchmoji.fingerprint": fingerprint,
        "torchmoji.classes": json.dumps(list(classes), ensure_ascii=False),
        "torchmoji.tokenizer": TOKENIZER_VERSION,
        "torchmoji.maxlen": str(maxlen),
        "torchmoji.version": torchmoji_core.__version__,
    }


def _top(made: _Made, kind: pa.ListType) -> pa.Array:
    indices, values = made.scores._top_indices(made.top_k)
    names = pa.array(made.scores.classes).take(pa.array(indices[~made.empty].ravel()))
    items = pa.StructArray.from_arrays([names, pa.array(values[~made.empty].ravel())], fields=list(kind.value_type))
    return _lists(items, np.where(made.empty, 0, indices.shape[1]), made.empty, kind)


def _attention(made: _Made, kind: pa.ListType) -> pa.Array:
    if made.tokens is None:
        raise ValueError("attention needs the tokens of each text")
    weights, n_tokens = made.scores.attention, made.scores.n_tokens
    present = np.arange(weights.shape[1])[None, :] < n_tokens[:, None]
    words = [valid_unicode(token) for row, n in zip(made.tokens, n_tokens.tolist(), strict=True) for token in row[:n]]
    items = pa.StructArray.from_arrays(
        [pa.array(words, pa.string()), pa.array(weights[present])], fields=list(kind.value_type)
    )
    return _lists(items, n_tokens, made.empty, kind)


def valid_unicode(text: str) -> str:
    """The text with lone surrogates, which JSON's escapes can make and no file format can hold, as U+FFFD.

    Both are one unknown token, so scores do not change.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, dimension], each divided by its length; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found = vectors.copy()
    found /= np.where(lengths == 0, 1, lengths)  # in place, so that it stays float32
    return found


def vectors(values: NDArray[np.floating], empty: NDArray[np.bool_], kind: pa.ListType) -> pa.Array:
    """Rows as lists, null where they are empty."""
    present = values[~empty] if empty.any() else values
    return _lists(pa.array(present.ravel()), np.where(empty, 0, values.shape[1]), empty, kind)


def _lists(items: pa.Array, lengths: NDArray[np.integer], empty: NDArray[np.bool_], kind: pa.ListType) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind, mask=pa.array(empty))


SCORE_OUTPUTS = tuple(column.output for column in score_columns(()) if column.output)
