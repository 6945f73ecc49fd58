"""Texts with labels from Parquet, CSV or JSON Lines, every fault found and named before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchmoji_core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLIT_NAMES |= {"test": "test"}
_MOST_CLASSES = 1_000


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of one task."""

    texts: list[str]
    labels: NDArray[Any]
    """[rows] of int64, the class of each text; or [rows, classes] of bool, where several or none can hold"""
    classes: tuple[str, ...]
    splits: NDArray[np.str_] | None
    """[rows]: train, val or test; None if the data does not say"""

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

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


def one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """[rows, classes] of bool, from either form of labels."""
    if labels.ndim == 2:
        return labels.astype(bool)
    return labels[:, None] == np.arange(classes)


def read_labelled_texts(
    path: str | Path, text_field: str, label_field: str, split_field: str = "split", classes: Sequence[str] = ()
) -> LabelledTexts:
    """Read a task.

    Labels may be whole numbers, booleans or names, one of each text; or a list of each text: of booleans (or zeros
    and ones), one of each class; or of names, those that hold, as the emojis of a tweet.

    Args:
        path: .parquet, .csv or .jsonl (also .json, .ndjson); .csv and .jsonl may be compressed (.gz).
        text_field: column of the texts.
        label_field: column of the labels.
        split_field: column of the splits (train, val or validation, test); it may be missing.
        classes: names of the classes. Labels that are numbers count them from 0. By default the distinct labels.

    Raises:
        InputError: for a file that cannot be read, a missing column, an empty or missing text, a missing label, one
            outside the classes, or an unknown split; it names the first row at fault, counted from 1.
    """
    table = _read_table(Path(path))
    for name in (text_field, label_field):
        if name not in table.column_names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(map(repr, table.column_names[:20]))}")
    if not len(table):
        raise InputError(f"{path}: no rows")
    texts = table[text_field].to_pylist()
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"{path}, row {number}: {text_field!r} is {text!r}, not a text; mend or remove such rows")
        if not text.strip():
            raise InputError(f"{path}, row {number}: the text is empty; remove such rows")
    labels, names = _Labels(f"{path}, row", label_field, table[label_field].to_pylist(), tuple(classes)).read()
    splits = None
    if split_field in table.column_names:
        splits = np.array(
            [_split(f"{path}, row {n}", value) for n, value in enumerate(table[split_field].to_pylist(), 1)]
        )
    return LabelledTexts(texts, labels, names, splits)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".parquet":
            return pa.parquet.read_table(path)
        if kind == ".csv":
            parsing = pa.csv.ParseOptions(newlines_in_values=True)
            # Only an empty field is missing: a text may be the word "null".
            converting = pa.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
            return pa.csv.read_csv(path, parse_options=parsing, convert_options=converting)
        if kind in (".jsonl", ".ndjson", ".json"):
            with pa.input_stream(path) as stream:
                return pa.json.read_json(stream)
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({reason})") from None
    raise InputError(f"{path}: the name must end in .parquet, .csv or .jsonl")


def _split(where: str, value: object) -> str:
    name = _SPLIT_NAMES.get(str(value).lower())
    if name is None:
        raise InputError(f"{where}: split {value!r} is unknown; expected train, val or test")
    return name


class _Labels:
    """Labels as they stand in a file, to be made uniform."""

    def __init__(self, where: str, field: str, values: list[Any], classes: tuple[str, ...]) -> None:
        self._where, self._field, self._values, self._classes = where, field, values, classes

    def read(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        if len(set(self._classes)) != len(self._classes):
            raise InputError("a class is named twice")
        for number, value in enumerate(self._values, 1):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                raise InputError(f"{self._where} {number}: no {self._field!r}; label or remove such rows")
        if any(isinstance(value, list) for value in self._values):
            return self._read_lists()
        values = [self._plain(number, value) for number, value in enumerate(self._values, 1)]
        names = self._classes or self._distinct(values)
        return np.array([self._index(number, value, names) for number, value in enumerate(values, 1)], np.int64), names

    def _read_lists(self) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        rows = [
            [self._plain(number, value) for value in row] if isinstance(row, list) else self._fault(number, row)
            for number, row in enumerate(self._values, 1)
        ]
        if any(isinstance(value, str) for row in rows for value in row):
            names = self._classes or self._distinct([value for row in rows for value in row])
            labels = np.zeros((len(rows), len(names)), bool)
            for number, row in enumerate(rows, 1):
                labels[number - 1, [self._index(number, value, names) for value in row]] = True
            return labels, names
        width = len(self._classes) or max(map(len, rows))
        for number, row in enumerate(rows, 1):
            if len(row) != width or not set(row) <= {0, 1}:
                raise InputError(
                    f"{self._where} {number}: {self._field!r} is {row!r}; expected {width} of 0 or 1, one of each class"
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
            f"{self._where} {number}: {self._field!r} is {value!r}; expected a whole number, a name, or a list of them"
        )

    def _distinct(self, values: list[str | int]) -> tuple[str, ...]:
        if all(isinstance(value, int) for value in values):
            numbers = {int(value) for value in values}
            if min(numbers) >= 0 and max(numbers) < _MOST_CLASSES:
                return tuple(map(str, range(max(numbers) + 1)))
            outside = next(n for n, value in enumerate(values, 1) if not 0 <= int(value) < _MOST_CLASSES)
            return self._fault_outside(outside, values[outside - 1], f"0 to {_MOST_CLASSES - 1}")
        distinct = sorted({str(value) for value in values})
        if len(distinct) > _MOST_CLASSES:
            raise InputError(f"{self._field!r} has {len(distinct):,} different values; these are not classes")
        return tuple(distinct)

    def _index(self, number: int, value: str | int, names: tuple[str, ...]) -> int:
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        if isinstance(value, str) and value in names:
            return names.index(value)
        return self._fault_outside(number, value, ", ".join(names[:20]))

    def _fault_outside(self, number: int, value: object, expected: str) -> Any:
        raise InputError(f"{self._where} {number}: {self._field!r} is {value!r}, outside the classes ({expected})")
