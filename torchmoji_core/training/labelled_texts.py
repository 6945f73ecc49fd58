"""Texts with labels, every fault found and named before any training.

Their files are read by `transforms.input.training_data`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchmoji_core.errors import InputError
from torchmoji_core.names import check_name, shown

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLIT_NAMES |= {"test": "test"}
_MOST_CLASSES = 1_000


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of one task.

    It is made of columns of any kind: lists, arrays, Series of pandas, whose order counts and not their index.
    """

    texts: list[str]
    labels: NDArray[Any]
    """[rows] of int64, the class of each text; or [rows, classes] of bool, where several or none can hold. They may be
    given as any labels that `label_texts` takes, names of classes for example."""
    classes: tuple[str, ...]
    splits: NDArray[np.str_] | None
    """[rows]: train, val or test; None if the data does not say"""

    def __post_init__(self) -> None:
        """Raises:
        InputError: if columns are not of one length, or a label or a split is none.
        """
        texts, labels, splits = column_of(self.texts), self.labels, self.splits
        classes = tuple(column_of(self.classes, "classes"))
        if not _are_read(labels, len(classes)):
            labels, classes = _Labels("row", "label", column_of(labels, "labels"), classes).read()
        if splits is not None and not (isinstance(splits, np.ndarray) and np.isin(splits, SPLITS).all()):
            splits = _splits("row", splits)
        for name, column in (("labels", labels), ("splits", splits)):
            if column is not None and len(column) != len(texts):
                raise InputError(f"{len(texts):,} texts and {len(column):,} {name}; each text needs its own")
        vars(self).update(texts=texts, labels=labels, classes=classes, splits=splits)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def divided(self, ratios: Sequence[float], seed: int) -> LabelledTexts:
        """The same rows, put into train, val and test at random in given ratios, whatever their splits were.

        Args:
            ratios: shares of train, val and test; they add up to 1. The number of rows of val and of test is rounded.
            seed: decides which rows; the same rows, ratios and seed give the same splits.

        Raises:
            InputError: if `ratios` are not three such shares.
        """
        check_ratios("ratios", ratios)
        order = np.random.default_rng(seed).permutation(len(self.texts))
        val, test = (round(ratio * len(order)) for ratio in ratios[1:])
        splits = np.full(len(order), "train", dtype="<U5")
        splits[order[:val]] = "val"
        splits[order[val : val + test]] = "test"
        return replace(self, splits=splits)

    def split(self, seed: int) -> dict[str, LabelledTexts]:
        """The rows of each split, in their order.

        Data without splits is divided 80/10/10 at random; data without validation rows gives a tenth of its training
        rows. Either is decided by the seed alone.

        Raises:
            InputError: if too few rows are left to train or to validate on, or all training rows are of one class.
        """
        generator = np.random.default_rng(seed)
        splits = self.splits
        if splits is None:
            splits = np.full(len(self.texts), "train", dtype="<U5")
            order = generator.permutation(len(splits))
            splits[order[: len(order) // 10]] = "test"
        if not (splits == "val").any():
            splits = splits.copy()
            training = generator.permutation(np.flatnonzero(splits == "train"))
            splits[training[: math.ceil(len(training) / 10)]] = "val"
        parts = {name: self._rows(np.flatnonzero(splits == name)) for name in SPLITS}
        for name in ("train", "val"):
            if not parts[name].texts:
                raise InputError(f"the data has no rows to {'train' if name == 'train' else 'validate'} on")
        truth = one_hot(parts["train"].labels, len(self.classes))
        counts = truth.sum(axis=0)
        if self.multi_label:
            constant = [name for name, n in zip(self.classes, counts, strict=True) if n in (0, len(truth))]
            if constant:
                raise InputError(f"class {constant[0]!r} holds for all training texts or for none; leave it out")
        else:
            if (counts > 0).sum() < 2:
                raise InputError(f"all training texts are of class {self.classes[int(counts.argmax())]!r}")
            absent = [name for name, n in zip(self.classes, counts, strict=True) if not n]
            if absent:
                raise InputError(f"class {absent[0]!r} has no training text; nothing can be learnt about it")
        return parts

    def _rows(self, rows: NDArray[np.integer]) -> LabelledTexts:
        return LabelledTexts([self.texts[row] for row in rows], self.labels[rows], self.classes, None)


def check_ratios(what: str, ratios: object) -> None:
    """Accept shares of train, val and test that add up to 1.

    Raises:
        InputError: for anything else.
    """
    try:
        shares = [float(ratio) for ratio in ratios]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        shares = []
    if len(shares) != len(SPLITS) or min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise InputError(f"{what} must be three shares, of train, val and test, that add up to 1, not {shown(ratios)}")


def _are_read(labels: Any, classes: int) -> bool:
    """Whether labels are an array as `LabelledTexts` holds it, and of so many classes."""
    if not isinstance(labels, np.ndarray):
        return False
    if labels.ndim == 2:
        return labels.dtype == bool and labels.shape[1] == classes
    return labels.dtype == np.int64 and bool(np.isin(labels, np.arange(classes)).all())


def column_of(values: Any, what: str = "texts") -> list[Any]:
    """The values of a list, an array or a Series as Python's, in their order.

    Args:
        values: any iterable.
        what: what they are, for errors.

    Raises:
        TypeError: if they are no list of values.
    """
    for method in ("tolist", "to_pylist"):
        if hasattr(values, method):
            values = getattr(values, method)()
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a list, an array or a Series, not {shown(values)}")
    return list(values)


def one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """[rows, classes] of bool, from either form of labels."""
    if labels.ndim == 2:
        return labels.astype(bool)
    return labels[:, None] == np.arange(classes)


def label_texts(
    source: str,
    texts: Iterable[Any],
    labels: Iterable[Any],
    splits: Iterable[Any] | None,
    classes: Sequence[str] = (),
    text_field: str = "text",
    label_field: str = "label",
) -> LabelledTexts:
    """Make a task of columns, as they stand in a file or a table.

    Labels may be whole numbers, booleans or names, one of each text; or a list of each text: of booleans (or zeros
    and ones), one of each class; or of names, those that hold, as the emojis of a tweet.

    Args:
        source: where the rows are from, for errors.
        texts: one of each row: a list, an array, a Series of pandas, whose order counts and not its index.
        labels: likewise.
        splits: likewise (train, val or validation, test); None where the data does not say.
        classes: names of the classes. Labels that are numbers count them from 0. By default the distinct labels.
        text_field: column of the texts, for errors.
        label_field: column of the labels, for errors.

    Raises:
        InputError: for an empty or missing text, a missing label, one outside the classes, a class whose name is no
            line of text, or an unknown split; it names the first row at fault, counted from 1.
    """
    texts, classes = column_of(texts), column_of(classes, "classes")
    if not texts:
        raise InputError(f"{source}: no rows")
    for name in classes:
        check_name("the name of a class", name)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(
                f"{source}, row {number}: {text_field!r} is {shown(text)}, not a text; mend or remove such rows"
            )
        if not text.strip():
            raise InputError(f"{source}, row {number}: the text is empty; remove such rows")
    found, names = _Labels(f"{source}, row", label_field, column_of(labels, "labels"), tuple(classes)).read()
    return LabelledTexts(texts, found, names, None if splits is None else _splits(f"{source}, row", splits))


def _splits(where: str, values: Iterable[Any]) -> NDArray[np.str_]:
    return np.array([_split(f"{where} {number}", value) for number, value in enumerate(column_of(values, "splits"), 1)])


def _split(where: str, value: object) -> str:
    name = _SPLIT_NAMES.get(value.lower()) if isinstance(value, str) else None
    if name is None:
        raise InputError(f"{where}: split {shown(value)} is unknown; expected train, val or test")
    return name


class _Labels:
    """Labels as they stand in a file, to be made uniform."""

    def __init__(self, where: str, field: str, values: list[Any], classes: tuple[str, ...]) -> None:
        self._where, self._field, self._values, self._classes = where, field, values, classes

    def read(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        if len(set(self._classes)) != len(self._classes):
            raise InputError("a class is named twice")
        if len(self._classes) > _MOST_CLASSES:
            raise InputError(f"{len(self._classes):,} classes are named; {_MOST_CLASSES:,} are the most")
        for number, value in enumerate(self._values, 1):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                raise InputError(f"{self._where} {number}: no {self._field!r}; label or remove such rows")
        if any(isinstance(value, list) for value in self._values):
            return self._read_lists()
        values = [self._plain(number, value) for number, value in enumerate(self._values, 1)]
        indices, names = self._indices([[value] for value in values])
        return np.array([index for (index,) in indices], np.int64), names

    def _read_lists(self) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        rows = [
            [self._plain(number, value) for value in row] if isinstance(row, list) else self._fault(number, row)
            for number, row in enumerate(self._values, 1)
        ]
        if any(isinstance(value, str) for row in rows for value in row):
            indices, names = self._indices(rows)
            labels = np.zeros((len(rows), len(names)), bool)
            for row_of_labels, held in zip(labels, indices, strict=True):
                row_of_labels[held] = True
            return labels, names
        width = len(self._classes) or max(map(len, rows))
        if not 0 < width <= _MOST_CLASSES:
            raise InputError(f"{self._field!r} has lists of {width:,}; expected 1 to {_MOST_CLASSES:,} of 0 or 1")
        for number, row in enumerate(rows, 1):
            if len(row) != width or not set(row) <= {0, 1}:
                raise InputError(
                    f"{self._where} {number}: {self._field!r} is {shown(row)}; "
                    f"expected {width} of 0 or 1, one of each class"
                )
        return np.array(rows, bool), self._classes or tuple(map(str, range(width)))

    def _plain(self, number: int, value: Any) -> str | int:
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
            return int(value)
        return self._fault(number, value)

    def _fault(self, number: int, value: Any) -> Any:
        raise InputError(
            f"{self._where} {number}: {self._field!r} is {shown(value)}; "
            "expected a whole number, a name, or a list of them"
        )

    def _indices(self, rows: Sequence[Sequence[str | int]]) -> tuple[list[list[int]], tuple[str, ...]]:
        """The classes of each row, and the names of all classes."""
        rows_of = {value: number for number, row in reversed(list(enumerate(rows, 1))) for value in row}
        for value, number in rows_of.items():
            if isinstance(value, str):
                check_name(f"{self._where} {number}: a class in {self._field!r}", value)
        kinds = {type(value): number for value, number in sorted(rows_of.items(), key=lambda item: -item[1])}
        if len(kinds) > 1:  # is 1 the class "1", or the second one?
            raise InputError(
                f"{self._where}s {min(kinds.values())} and {max(kinds.values())}: {self._field!r} is a number in one "
                "and a name in the other; give numbers or names"
            )
        names = self._classes or self._distinct(rows_of)
        index: dict[str | int, int]
        index = (
            {name: number for number, name in enumerate(names)} if str in kinds else {n: n for n in range(len(names))}
        )
        for value, number in rows_of.items():
            if value not in index:
                outside = ", ".join(names[:20]) if self._classes else f"0 to {_MOST_CLASSES - 1}"
                raise InputError(
                    f"{self._where} {number}: {self._field!r} is {shown(value)}, outside the classes ({outside})"
                )
        return [[index[value] for value in row] for row in rows], names

    def _distinct(self, values: Iterable[str | int]) -> tuple[str, ...]:
        numbers = [value for value in values if isinstance(value, int)]
        if numbers:
            return tuple(map(str, range(min(max(numbers), _MOST_CLASSES - 1) + 1)))
        distinct = sorted(map(str, values))
        if len(distinct) > _MOST_CLASSES:
            raise InputError(f"{self._field!r} has {len(distinct):,} different values; these are not classes")
        return tuple(distinct)
