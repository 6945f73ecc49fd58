"""Parquet files as records, by row groups."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torchmoji_core.errors import InputError, first_line
from transforms.input.arrow_values import conversions, rows_as_records
from transforms.input.delimited import check_names
from transforms.input.parquet_guard import Footer, batch_rows, read_footer
from transforms.input.raw_records import Damage, DamagedFileError, Record
from transforms.input.source_file import SourceFile, raise_unless_damage

BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20


def parquet_rows(file: SourceFile) -> tuple[int, int]:
    """Number of rows in a file and in the largest of its row groups, from the footer alone.

    Raises:
        InputError: if the file is not Parquet, truncated, or makes absurd claims, or has a column twice.
        SourceError: if reading it fails.
    """
    try:
        parquet, footer = _open(file)
        names = parquet.schema_arrow.names
    except _errors() as error:
        raise_unless_damage(error)
        raise DamagedFileError(f"not a readable Parquet file: {first_line(error)}") from None
    check_names(names)
    return sum(footer.rows), max(footer.rows, default=0)


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    # The last two are Arrow's for some damaged headers, names that are not UTF-8 for instance.
    return pa.ArrowException, OSError, EOFError, RuntimeError, ValueError


def _open(file: SourceFile) -> tuple[Any, Footer]:
    import pyarrow.parquet as pq

    footer = read_footer(file)
    # Columns are read piece by piece, since a row group may be larger than memory.
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES), footer


def read_parquet(
    file: SourceFile, start: int, end: int | None, columns: Container[str] | None
) -> Iterator[Record | Damage]:
    """The rows [start, end) of a file, and what cannot be read of them.

    Args:
        file: its content.
        start: first row.
        end: row behind the last; None for all.
        columns: top-level columns to read; None for all.
    """
    errors = _errors()
    try:
        parquet, footer = _open(file)
        names = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
        check_names(parquet.schema_arrow.names)
        converted = conversions(parquet.schema_arrow)
        converted = {name: converted[name] for name in (converted if names is None else names) if name in converted}
    except InputError as error:
        yield Damage(start, str(error), b"")
        return
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
                rows = batch_rows(file, footer, group, names, BATCH_ROWS)
                # Arrow's own threads would wait for the interpreter at every read, longer than the reading takes.
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
                    skipped = min(max(0, start - position), len(batch))
                    part = batch.slice(skipped, min(last - position, len(batch)) - skipped)
                    yield from rows_as_records(part, position + skipped, converted)
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
