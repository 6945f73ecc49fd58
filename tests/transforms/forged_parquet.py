"""Parquet files whose headers say what no writer would: footers and page headers are decoded, changed and put back.

Headers are structs of Thrift's compact protocol, here as {field number: (kind, value)}; lists are (kind, values).
Numbers of fields are those of the Parquet format's `parquet.thrift`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

Struct = dict[int, tuple[int, Any]]
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
MAX_I64 = (1 << 63) - 1


class Encoded(NamedTuple):
    """Values of a list as they are written, where there are too many to make."""

    length: int
    content: bytes


def whole(rows: int = 10, text: str = "so happy", **options: Any) -> bytes:
    """A good file with the columns id and text."""
    table = pa.table({"id": [f"row-{index}" for index in range(rows)], "text": [text] * rows})
    return write(table, **options)


def write(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def forge(content: bytes, change: Callable[[Struct], None]) -> bytes:
    """Change the footer of a file."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer, _ = _read_struct(content, start)
    change(footer)
    encoded = _struct(footer)
    return content[:start] + encoded + len(encoded).to_bytes(4, "little") + b"PAR1"


def forge_page(content: bytes, change: Callable[[Struct], None], data: bytes | None = None) -> bytes:
    """Change the header of the first page of the last column, and perhaps put other data in."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer, _ = _read_struct(content, start)
    column = columns_of(footer)[-1]
    offset = min(column[field][1] for field in (9, 11) if field in column)
    header, end = _read_struct(content, offset)
    if data is not None:
        end += header[3][1]
        header[3] = (I32, len(data))
    change(header)
    encoded = _struct(header) + (data or b"")

    def lengthen(footer: Struct) -> None:
        column = columns_of(footer)[-1]
        column[7] = (I64, column[7][1] + len(encoded) - (end - offset))

    return forge(content[:offset] + encoded + content[end:], lengthen)


def columns_of(footer: Struct) -> list[Struct]:
    """Metadata of the columns of the first row group."""
    return [chunk[3][1] for chunk in footer[4][1][1][0][1][1][1]]


def claim_rows(rows: int, everywhere: bool = True) -> Callable[[Struct], None]:
    """A number of rows in the footer, and perhaps in the row group and its columns."""

    def change(footer: Struct) -> None:
        footer[3] = (I64, rows)
        if everywhere:
            footer[4][1][1][0][3] = (I64, rows)
            for column in columns_of(footer):
                column[5] = (I64, rows)

    return change


def nest(depth: int) -> Callable[[Struct], None]:
    """The text below groups within groups."""

    def change(footer: Struct) -> None:
        root, identity, text = footer[2][1][1]
        group = {3: (I32, 1), 4: (BINARY, b"g"), 5: (I32, 1)}
        footer[2] = (LIST, (STRUCT, [root, identity, *[group] * depth, text]))
        columns_of(footer)[-1][3] = (LIST, (BINARY, [b"g"] * depth + [b"text"]))

    return change


# --- Thrift's compact protocol -------------------------------------------------------------------------------------


def _read_struct(content: bytes, at: int) -> tuple[Struct, int]:
    found: Struct = {}
    number = 0
    while content[at]:
        header, at = content[at], at + 1
        if header >> 4:
            number += header >> 4
        else:
            number, at = _read_integer(content, at)
        value, at = (header & 15 == 1, at) if header & 15 in (1, 2) else _read(content, at, header & 15)
        found[number] = (header & 15, value)
    return found, at + 1


def _read(content: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):
        return content[at], at + 1
    if kind in (4, I32, I64):
        return _read_integer(content, at)
    if kind == BINARY:
        size, at = _read_unsigned(content, at)
        return content[at : at + size], at + size
    if kind == STRUCT:
        return _read_struct(content, at)
    assert kind == LIST, kind
    size, of = content[at] >> 4, content[at] & 15
    at += 1
    if size == 15:
        size, at = _read_unsigned(content, at)
    values = []
    for _ in range(size):
        value, at = _read(content, at, of)
        values.append(value)
    return (of, values), at


def _read_unsigned(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 128:
        value, shift, at = value | (content[at] & 127) << shift, shift + 7, at + 1
    return value | content[at] << shift, at + 1


def _read_integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _read_unsigned(content, at)
    return (value >> 1) ^ -(value & 1), at


def _struct(fields: Struct) -> bytes:
    encoded, before = bytearray(), 0
    for number, (kind, value) in sorted(fields.items()):
        kind = kind if kind not in (1, 2) else 1 if value else 2
        step = number - before
        encoded += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _integer(number)
        encoded += b"" if kind in (1, 2) else _encode(kind, value)
        before = number
    return bytes(encoded) + b"\0"


def _encode(kind: int, value: Any) -> bytes:
    if kind in (1, 2, 3):
        return bytes([value])
    if kind in (4, I32, I64):
        return _integer(value)
    if kind == BINARY:
        return _unsigned(len(value)) + value
    if kind == STRUCT:
        return _struct(value)
    of, values = value
    if isinstance(values, Encoded):
        return bytes([0xF0 | of]) + _unsigned(values.length) + values.content
    head = bytes([len(values) << 4 | of]) if len(values) < 15 else bytes([0xF0 | of]) + _unsigned(len(values))
    return head + b"".join(_encode(of, item) for item in values)


def _unsigned(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _integer(value: int) -> bytes:
    return _unsigned(value << 1 if value >= 0 else (-value << 1) - 1)
