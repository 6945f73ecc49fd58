"""Rows of Arrow's record batches as records, of Parquet and of Arrow's own files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from transforms.input import raw_records
from transforms.input.raw_records import Damage, Record

_VALUE_ERRORS = (ValueError, OverflowError, RecursionError)
"""Of Arrow's values as Python's: a string that is not UTF-8, a date outside Python's range."""
Convert = Callable[[Any], Any]


def conversions(schema: Any) -> dict[str, Convert]:
    """What makes of the columns' values what JSON would have, by their names; those that are so already have none."""
    return {field.name: convert for field in schema if (convert := _conversion(field.type)) is not None}


def rows_as_records(batch: Any, position: int, converted: dict[str, Convert]) -> Iterator[Record | Damage]:
    """Rows of a batch; all at once where they are small, since that is faster.

    Whole decimals are integers, and bytes that are UTF-8 are strings: so some databases export ids and texts.

    Args:
        batch: a `pyarrow.RecordBatch`.
        position: number of its first row.
        converted: `conversions` of its schema.
    """
    rows: list[dict[str, Any]] | None = None
    is_large = batch.nbytes > raw_records.MAX_RECORD_BYTES
    with contextlib.suppress(*_VALUE_ERRORS):
        rows = None if is_large else batch.to_pylist()
    if rows is not None and not converted:
        for index, value in enumerate(rows):
            yield Record(position + index, value, b"")
        return
    for index in range(len(batch)):
        try:
            if rows is None:
                row = batch.slice(index, 1)
                if is_large and row.nbytes > raw_records.MAX_RECORD_BYTES:
                    raise ValueError(f"row is longer than {raw_records.MAX_RECORD_BYTES >> 20} MiB")
                value = row.to_pylist()[0]
            else:
                value = rows[index]
            for name, convert in converted.items():
                value[name] = convert(value[name])
        except _VALUE_ERRORS as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            yield Damage(position + index, reason, b"")
            continue
        yield Record(position + index, value, b"")


def _conversion(kind: Any) -> Convert | None:
    """What makes of a value of a type what JSON would have; None where it is so already."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_decimal(kind) and kind.scale <= 0:
        return _whole
    if types.is_fixed_size_binary(kind):
        return _padded
    binaries = types.is_binary, types.is_large_binary, types.is_binary_view
    if any(is_binary(kind) for is_binary in binaries):
        return _text
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _conversion(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _of_values(_conversion(kind.value_type))
    if types.is_struct(kind):
        parts = {field.name: convert for field in kind if (convert := _conversion(field.type)) is not None}
        return _of_fields(parts) if parts else None
    if isinstance(kind, pa.BaseExtensionType):
        return _conversion(kind.storage_type)
    return None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else value


def _text(value: Any) -> Any:
    """Bytes as a string, if they are one; as a text, others are refused as what they are."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value


def _padded(value: Any) -> Any:
    """As `_text`; what is shorter than the size of its type is padded with NULs."""
    text = _text(value)
    return text.rstrip("\0") if isinstance(text, str) else text


def _of_values(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda values: None if values is None else [convert(value) for value in values]


def _of_fields(parts: dict[str, Convert]) -> Convert:
    def fields(value: Any) -> Any:
        if value is not None:
            for name, convert in parts.items():
                value[name] = convert(value[name])
        return value

    return fields
