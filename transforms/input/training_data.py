"""Files of texts to train on, read by the same readers as tweets are, and bounded as they are. Pure functions, no Beam.

They give columns; `torchmoji_core.training` checks whether those make sense. A tweet that cannot be read becomes a dead
letter, but a row that cannot be read here ends the command: the person who trains can mend the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmoji_core.errors import InputError
from torchmoji_core.files import open_regular
from torchmoji_core.limits import MAX_EXPANSION
from torchmoji_core.names import shown
from torchmoji_core.training.emoji_corpus import COLUMNS
from torchmoji_core.training.labelled_texts import LabelledTexts, label_texts
from transforms.input.formats import read_records
from transforms.input.forms import guess_format
from transforms.input.raw_records import Damage
from transforms.input.recognition import recognize
from transforms.input.source_file import SourceError

MAX_KEPT_BYTES = 256 << 20
"""The rows of a file may come to this in memory, or to `MAX_EXPANSION` times its size. A small Parquet file may say one
row four billion times, and all rows are kept here."""
BATCH_ROWS = 65_536
"""Rows of a file of emojis that are in memory at a time."""
_FORMATS = ("parquet", "csv", "tsv", "jsonl")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|nan", re.IGNORECASE)
_TRUTH = {"true": True, "false": False}


def read_labelled_texts(
    path: str | Path, text_field: str, label_field: str, split_field: str | None = "split", classes: Sequence[str] = ()
) -> LabelledTexts:
    """Read a task.

    Args:
        path: .parquet, .csv, .tsv or .jsonl (also .json, .ndjson); all but Parquet may be compressed (.gz, .bz2, .zst).
        text_field: column of the texts.
        label_field: column of the labels; see `label_texts`. In CSV those that are all numbers, or all true or false,
            are taken for such.
        split_field: column of the splits (train, val or validation, test); it may be missing. None to leave it unread.
        classes: names of the classes. Labels that are numbers count them from 0. By default the distinct labels.

    Raises:
        InputError: for a file that cannot be read, a missing column, and all that `label_texts` refuses; it names the
            first row at fault, counted from 1.
    """
    kind = guess_format(str(path))[0]
    if kind not in _FORMATS:
        raise InputError(f"{path}: the name must end in .parquet, .csv, .tsv or .jsonl")
    wanted = [text_field, label_field, *([] if split_field is None else [split_field])]
    columns: list[list[Any]] = [[] for _ in wanted]
    there: set[str] = set()
    for row in _rows(path, kind, wanted):
        there |= row.keys() & set(wanted)
        for name, column in zip(wanted, columns, strict=True):
            column.append(row.get(name))
    for name in (text_field, label_field):
        if columns[0] and name not in there:
            names = list(next(_rows(path, kind)))
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(map(shown, names[:20]))}")
    if kind in ("csv", "tsv"):
        columns = [[value or None for value in column] for column in columns]
        columns[1] = _typed(columns[1])
    texts, labels, *others = columns
    splits = others[0] if split_field in there else None
    return label_texts(str(path), texts, labels, splits, classes, text_field, label_field)


class EmojiFile:
    """A Parquet file of texts and emojis: `torchmoji_core.training.emoji_corpus.EmojiTexts`."""

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)

    @property
    def identity(self) -> list[Any]:
        """Changes when the file does.

        Raises:
            InputError: if it is not there.
        """
        with _one_line(self.name):
            status = Path(self.name).stat()
        return [os.path.abspath(self.name), status.st_size, status.st_mtime_ns]  # noqa: PTH100 - links stay as given

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """All rows, as columns by name, a piece of the file at a time.

        Raises:
            InputError: if the file cannot be read, or a column is missing.
        """
        expected = f"expected Parquet with columns {', '.join(COLUMNS)}"
        batch: dict[str, list[Any]] = {name: [] for name in columns}
        for row in _rows(self.name, "parquet", columns):
            for name in columns:
                if name not in row:
                    raise InputError(f"{self.name}: no column {name!r}; {expected}")
                batch[name].append(row[name])
            if len(batch[columns[0]]) == BATCH_ROWS:
                yield batch
                batch = {name: [] for name in columns}
        yield batch


def _rows(path: str | Path, kind: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, of Parquet with the given columns alone if they are given.

    Raises:
        InputError: for the first thing that cannot be read, or when the rows come to more than any honest file's.
    """
    kept = number = 0
    with _one_line(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        most = max(MAX_KEPT_BYTES, MAX_EXPANSION * size)
        if not size:
            raise InputError(f"{path}: cannot be read (it is empty)")
        names = None if columns is None else tuple(columns)
        try:
            form, *others = recognize(file, str(path))
        except InputError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        if others or form.kind == "text" or (kind == "parquet" and form.kind != kind):
            raise InputError(f"{path}: it is no single file in the format of its name; unpack or rename it")
        for number, record in enumerate(read_records(file, form, columns=names), 1):
            if isinstance(record, Damage):
                where = path if isinstance(record.position, int) and not record.raw else f"{path}, row {number}"
                raise InputError(f"{where}: cannot be read ({record.reason})")
            assert isinstance(record.value, dict)
            kept += sum(_bytes(record.value.get(name)) for name in columns or ())
            if kept > most:
                raise InputError(
                    f"{path}: its first {number:,} rows take {kept >> 20} MiB of memory, {MAX_EXPANSION} times the "
                    "size of the file and more, as no data do but those made to exhaust a machine"
                )
            yield record.value


def _bytes(value: object) -> int:
    """Memory of a value with all that is in it."""
    if not isinstance(value, (list, dict)):
        return sys.getsizeof(value)
    size, parts = 0, [value]
    while parts:
        part = parts.pop()
        size += sys.getsizeof(part)
        if isinstance(part, (list, dict)):
            parts += part.values() if isinstance(part, dict) else part
    return size


def _typed(values: list[str | None]) -> list[Any]:
    """The labels of a CSV file as what they all are: whole numbers, numbers, truths, or names."""
    given = {value.strip() for value in values if value is not None}
    if all(map(_WHOLE.fullmatch, given)):
        meaning: Mapping[str, Any] = {value: int(value) for value in given}
    elif all(map(_NUMBER.fullmatch, given)):
        meaning = {value: float(value) for value in given}
    elif {value.lower() for value in given} <= _TRUTH.keys():
        meaning = {value: _TRUTH[value.lower()] for value in given}
    else:
        return list(values)
    return [None if value is None else meaning[value.strip()] for value in values]


@contextlib.contextmanager
def _one_line(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, SourceError) as error:  # ValueError: a name with a NUL
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read ({reason})") from None
