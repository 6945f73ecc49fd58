"""What readers give: a `Record` for what could be read, a `Damage` for what could not; and the bounds of both."""

from __future__ import annotations

from typing import Any, NamedTuple

from torchmoji_core.errors import InputError

MAX_RECORD_BYTES = 16 << 20
"""A longer record is damage: nothing a person wrote is that long, and it would have to fit into memory many times."""
RAW_KEPT = 1 << 20
"""Bytes of a damaged record that are kept for its dead letter."""


class DamagedFileError(InputError):
    """A file is not what its beginning or name says: cut off, or changed since it was written. Others may be sound."""


class Record(NamedTuple):
    """One record: fields by name, or the line itself in format text."""

    position: int | str
    """Byte offset in the content as UTF-8, row number in Parquet and Arrow; with the name of a .zip file's member
    before it, and a colon; the id of a message."""
    value: dict[str, Any] | str
    raw: bytes


class Damage(NamedTuple):
    """Something that could not be read."""

    position: int | str
    reason: str
    raw: bytes


def damage(position: int | str, reason: str, raw: bytes | bytearray) -> Damage:
    """A `Damage` with the first `RAW_KEPT` bytes."""
    return Damage(position, reason, bytes(raw[:RAW_KEPT]))
