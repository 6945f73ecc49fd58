"""File formats as records: text lines, JSON lines, CSV/TSV, Parquet; compressed or not. Pure functions, no Beam.

A reader yields a `Record` for what could be read and a `Damage` for what could not, and goes on behind the damage
where the format allows. Positions are byte offsets in the uncompressed content, row numbers in Parquet, and ids of
messages.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
from collections.abc import Container, Iterator
from typing import Any, BinaryIO, NamedTuple

from torchmoji_core.errors import InputError, first_line
from torchmoji_core.locations import plain
from transforms.input.compression import COMPRESSIONS, READ_ERRORS, ExpansionError, Readable, decompress
from transforms.input.parquet_guard import Footer, batch_rows, read_footer
from transforms.input.source_file import SourceFile, raise_unless_damage
from transforms.storage.listing import Glob, with_names_that_exist

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")
_FORMAT_OF_SUFFIX = {
    "txt": "text", "text": "text", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
    "csv": "csv", "tsv": "tsv", "parquet": "parquet", "pq": "parquet",
}  # fmt: skip

MAX_RECORD_BYTES = 16 << 20
"""A longer line is damage: nothing a person wrote is that long, and it would have to fit into memory many times."""
RAW_KEPT = 1 << 20
"""Bytes of a damaged record that are kept for its dead letter."""
PARQUET_BATCH_ROWS = 1024
_PARQUET_BUFFER_BYTES = 1 << 20
_VALUE_ERRORS = (ValueError, OverflowError, RecursionError)
"""Of Arrow's values as Python's: a string that is not UTF-8, a date outside Python's range."""


class Record(NamedTuple):
    """One record: fields by name, or the line itself in format text."""

    position: int | str
    value: dict[str, Any] | str
    raw: bytes


class Damage(NamedTuple):
    """Something that could not be read."""

    position: int | str
    reason: str
    raw: bytes


def guess_format(path: str) -> tuple[str | None, str | None]:
    """Format and compression by the name of a file; None for a format that the name does not tell.

    >>> guess_format("a/tweets.jsonl.gz")
    ('jsonl', 'gz')
    """
    parts = path.rsplit("/", 1)[-1].lower().split(".")
    compression = parts.pop() if len(parts) > 1 and parts[-1] in COMPRESSIONS else None
    return (_FORMAT_OF_SUFFIX.get(parts[-1]) if len(parts) > 1 else None), compression


def absolute(path: str) -> str:
    """A local path or glob as an absolute one, so that a file has one name, and ids hold, wherever a run is started.

    A directory stands for the files in it. A name that is there is that file or directory, and no glob: what would be
    one is escaped, as by `glob.escape`.
    """
    if isinstance(path, Glob):
        return path
    path = plain(path)
    if "://" in path:
        return path
    path = "/" + os.path.abspath(path).lstrip("/")  # noqa: PTH100 - links are to stay as given
    if os.path.isdir(path):  # noqa: PTH112
        return Glob(f"{glob.escape(path.rstrip('/'))}/*")
    return with_names_that_exist(path)


def absolute_directory(path: str) -> str:
    """A local directory as an absolute path without a slash at its end; a URI likewise."""
    path = plain(path)
    return path.rstrip("/") or "/" if "://" in path else os.path.abspath(path)  # noqa: PTH100


def resolve_format(path: str, given: str | None) -> str:
    """The format to read a file in.

    Raises:
        InputError: if it is neither given nor told by the name.
    """
    if given is not None and given not in FORMATS:
        raise InputError(f"--format {given!r} is unknown; choose one of {', '.join(FORMATS)}")
    kind = given or guess_format(path)[0]
    if kind is None:
        raise InputError(f"{path}: the name does not tell its format; give --format {{{','.join(FORMATS)}}}")
    return kind


def is_splittable(path: str, kind: str) -> bool:
    """Whether parts of a file can be read without reading what is before them."""
    return kind in ("text", "jsonl") and guess_format(path)[1] is None


def read_records(
    file: BinaryIO, path: str, kind: str, start: int = 0, end: int | None = None, columns: Container[str] | None = None
) -> Iterator[Record | Damage]:
    """Read one file, or the part of it that starts in [start, end).

    Args:
        file: seekable where the format is splittable or Parquet; not decompressed.
        path: its name, which tells the compression.
        kind: one of `FORMATS`.
        start: byte offset (text, jsonl; see `is_splittable`) or row (Parquet) of the part.
        end: end of the part; None for the end of the file.
        columns: top-level columns to read, where the format can choose (Parquet); None for all.

    Raises:
        SourceError: if reading the file fails.
        Exception: for lack of memory and the like. Neither is damage.
    """
    source = SourceFile(file)
    if kind == "parquet":
        return _read_parquet(source, start, end, columns)
    content = decompress(source, guess_format(path)[1])
    if kind in ("csv", "tsv"):
        return _read_csv(content, "\t" if kind == "tsv" else ",")
    return _parse_lines(_read_lines(content, start, end), kind)


# --- lines ---------------------------------------------------------------------------------------------------------


def _read_lines(file: Readable, start: int = 0, end: int | None = None) -> Iterator[Record | Damage]:
    """Lines that begin in [start, end) as raw bytes with their line ends, bounded in length."""
    position = start
    try:
        if start:
            # A line belongs to the part it begins in: skip to the first line that begins at or behind `start`.
            file.seek(start - 1)
            position = start - 1 + _skip_line(file, None if end is None else end - start + 1)
        while end is None or position < end:
            line = file.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                yield Damage(position, f"line is longer than {MAX_RECORD_BYTES >> 20} MiB", line[:RAW_KEPT])
                position += len(line)
                position += _skip_line(file, None if end is None else end - position)
                continue
            yield Record(position, "", line)
            position += len(line)
    except READ_ERRORS as error:
        raise_unless_damage(error)
        verb = "is not" if isinstance(error, ExpansionError) else "cannot be"
        yield Damage(position, f"the rest of the file {verb} read: {error}", b"")


def _skip_line(file: Readable, limit: int | None) -> int:
    """Skip the rest of a line, or `limit` bytes of it: parts of one endless line must not each read it to its end."""
    skipped = 0
    while (limit is None or skipped < limit) and (line := file.readline(1 << 16)):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def _parse_lines(lines: Iterator[Record | Damage], kind: str) -> Iterator[Record | Damage]:
    for line in lines:
        parsed = line if isinstance(line, Damage) else parse_line(line.position, line.raw, kind)
        if parsed is not None:  # a blank line is no record in JSON lines
            yield parsed


def parse_line(position: int | str, raw: bytes, kind: str) -> Record | Damage | None:
    """One record of format text or jsonl; None for blank JSON."""
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return Damage(position, f"not UTF-8: {error.reason} at byte {error.start}", raw[:RAW_KEPT])
    if position == 0:
        text = text.removeprefix("\ufeff")
    if kind == "text":
        return Record(position, text, raw)
    return _parse_json(position, text, raw) if text and not text.isspace() else None


def _parse_json(position: int | str, text: str, raw: bytes) -> Record | Damage:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Damage(position, f"not JSON: {error}", raw[:RAW_KEPT])
    if not isinstance(value, dict):
        return Damage(position, f"not a JSON object but {_type_name(value)}", raw[:RAW_KEPT])
    return Record(position, value, raw)


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# --- CSV -----------------------------------------------------------------------------------------------------------


class _CsvLines:
    """Decoded lines for `csv.reader`, remembering the raw bytes of the record being read."""

    def __init__(self, lines: Iterator[Record | Damage]) -> None:
        self._lines = lines
        self.raw = bytearray()  # grows by thousands of lines where a quote is missing its end
        self.position: int | str = 0
        self.damage: Damage | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if isinstance(line, Damage):
            self.damage = line
            raise StopIteration
        if not self.raw:
            self.position = line.position
        self.raw += line.raw
        if len(self.raw) > MAX_RECORD_BYTES:
            raise csv.Error(f"record is longer than {MAX_RECORD_BYTES >> 20} MiB; is a quote missing its end?")
        # Bytes that are not UTF-8 become lone surrogates, so that the record's end is found all the same.
        return line.raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff" if line.position == 0 else "")


def _read_csv(file: Readable, delimiter: str) -> Iterator[Record | Damage]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _CsvLines(_read_lines(file))
    header: list[str] | None = None
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.raw = bytearray()
        try:
            row = next(reader)
        except (StopIteration, csv.Error) as error:
            damages = [lines.damage] if lines.damage is not None else []
            if isinstance(error, csv.Error):  # first, and what cut the record short after it
                reason = f"not {'TSV' if delimiter != ',' else 'CSV'}: {error}"
                damages.insert(0, Damage(lines.position, reason, bytes(lines.raw[:RAW_KEPT])))
            if header is None and damages:  # the next record would pass for the header
                reason = f"the header cannot be read, so the file cannot: {damages[0].reason}"
                yield damages[0]._replace(reason=reason)
                return
            if not damages:
                return
            yield from damages
            lines.damage = None
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if not row:
            continue  # a blank line
        if header is None:
            header = row
            continue
        raw = bytes(lines.raw).rstrip(b"\r\n")
        if len(row) != len(header):
            reason = f"record has {len(row)} fields, the header {len(header)}"
            yield Damage(lines.position, reason, raw[:RAW_KEPT])
        elif any("\udc80" <= character <= "\udcff" for field in row if not field.isascii() for character in field):
            yield Damage(lines.position, "not UTF-8", raw[:RAW_KEPT])
        else:
            yield Record(lines.position, dict(zip(header, row, strict=True)), raw)


# --- Parquet -------------------------------------------------------------------------------------------------------


def parquet_rows(file: BinaryIO) -> tuple[int, int]:
    """Number of rows in a file and in the largest of its row groups, from the footer alone.

    Raises:
        InputError: if the file is not Parquet, truncated, or makes absurd claims.
        SourceError: if reading it fails.
    """
    try:
        rows = _open_parquet(SourceFile(file))[1].rows
    except _parquet_errors() as error:
        raise_unless_damage(error)
        raise InputError(f"not a readable Parquet file: {first_line(error)}") from None
    return sum(rows), max(rows, default=0)


def _parquet_errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    # The last two are Arrow's for some damaged headers, names that are not UTF-8 for instance.
    return pa.ArrowException, OSError, EOFError, RuntimeError, ValueError


def _open_parquet(file: SourceFile) -> tuple[Any, Footer]:
    import pyarrow.parquet as pq

    footer = read_footer(file)
    # Columns are read piece by piece, since a row group may be larger than memory.
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES), footer


def _read_parquet(
    file: SourceFile, start: int, end: int | None, columns: Container[str] | None
) -> Iterator[Record | Damage]:
    errors = _parquet_errors()
    try:
        parquet, footer = _open_parquet(file)
        names = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
    except errors as error:
        raise_unless_damage(error)
        yield Damage(start, f"not a readable Parquet file: {first_line(error)}", b"")
        return
    first = 0
    for group, rows_of_group in enumerate(footer.rows):
        after = first + rows_of_group
        last = after if end is None else min(after, end)
        position = first
        try:
            if first < last and last > start:
                rows = batch_rows(file, footer, group, names, PARQUET_BATCH_ROWS)
                # Arrow's own threads would wait for the interpreter at every read, longer than the reading takes.
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                    skipped = min(max(0, start - position), len(batch))
                    part = batch.slice(skipped, min(last - position, len(batch)) - skipped)
                    yield from _parquet_records(part, position + skipped)
                    position += len(batch)
                    if position >= last:
                        break
                else:
                    raise EOFError("they are not there")
        except errors as error:
            raise_unless_damage(error)
            reason = f"rows {max(position, start)} to {last - 1} cannot be read: {first_line(error)}"
            yield Damage(max(position, start), reason, b"")
        first = after


def _parquet_records(batch: Any, position: int) -> Iterator[Record | Damage]:
    """Rows of a batch; all at once where they are small, since that is faster."""
    rows: list[dict[str, Any]] | None = None
    is_large = batch.nbytes > MAX_RECORD_BYTES
    with contextlib.suppress(*_VALUE_ERRORS):
        rows = None if is_large else batch.to_pylist()
    for index in range(len(batch)):
        if rows is not None:
            yield Record(position + index, rows[index], b"")
            continue
        row = batch.slice(index, 1)
        try:
            if is_large and row.nbytes > MAX_RECORD_BYTES:
                raise ValueError(f"row is longer than {MAX_RECORD_BYTES >> 20} MiB")
            yield Record(position + index, row.to_pylist()[0], b"")
        except _VALUE_ERRORS as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            yield Damage(position + index, reason, b"")
