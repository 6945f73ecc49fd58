"""Lines of text and JSON lines, read in parts if wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator

from transforms.input import raw_records
from transforms.input.compression import READ_ERRORS, ExpansionError, Readable
from transforms.input.encodings import BOM, UTF_8, is_utf_16_among_utf_8, not_decoded
from transforms.input.raw_records import Damage, Record, damage
from transforms.input.source_file import raise_unless_damage

TWO_ENCODINGS = "a part of the file is in UTF-16: convert that part, for instance with iconv -f UTF-16LE -t UTF-8"


def read_lines(file: Readable, start: int = 0, end: int | None = None) -> Iterator[Record | Damage]:
    """Lines that begin in [start, end) as raw bytes with their line ends, bounded in length."""
    position = start
    try:
        if start:
            # A line belongs to the part it begins in: skip to the first line that begins at or behind `start`.
            file.seek(start - 1)
            position = start - 1 + _skip_line(file, None if end is None else end - start + 1)
        longest = raw_records.MAX_RECORD_BYTES
        while end is None or position < end:
            line = file.readline(longest + 1)
            if not line:
                return
            if len(line) > longest and not line.endswith(b"\n"):
                yield damage(position, f"line is longer than {longest >> 20} MiB", line)
                position += len(line)
                position += _skip_line(file, None if end is None else end - position)
                continue
            yield Record(position, "", line)
            position += len(line)
    except READ_ERRORS as error:
        raise_unless_damage(error)
        yield cut_off(position, error)


def cut_off(position: int, error: Exception) -> Damage:
    """The damage where a file cannot be read on."""
    verb = "is not" if isinstance(error, ExpansionError) else "cannot be"
    return Damage(position, f"the rest of the file {verb} read: {error}", b"")


def _skip_line(file: Readable, limit: int | None) -> int:
    """Skip the rest of a line, or `limit` bytes of it: parts of one endless line must not each read it to its end."""
    skipped = 0
    while (limit is None or skipped < limit) and (line := file.readline(1 << 16)):
        skipped += len(line)
        if line.endswith(b"\n"):
            break
    return skipped


def parse_lines(lines: Iterator[Record | Damage], kind: str, encoding: str = UTF_8) -> Iterator[Record | Damage]:
    """Lines of `read_lines` as records of format text or jsonl."""
    for line in lines:
        parsed = line if isinstance(line, Damage) else parse_line(line.position, line.raw, kind, encoding)
        if parsed is not None:  # a blank line is no record in JSON lines
            yield parsed


def parse_line(position: int | str, raw: bytes, kind: str, encoding: str | None = None) -> Record | Damage | None:
    """One record of format text or jsonl; None for blank JSON.

    Args:
        position: of the line.
        raw: its bytes, as UTF-8.
        kind: text or jsonl.
        encoding: of the file; None where another cannot be given.
    """
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reason = f": {error.reason} at byte {error.start}"
        return damage(position, f"not UTF-8{reason}" if encoding is None else not_decoded(encoding, reason), raw)
    if raw.startswith(BOM):  # where files were joined, also in the middle
        text = text.lstrip("\ufeff")
    if kind == "text":
        if "\0" in text and is_utf_16_among_utf_8(raw):
            return damage(position, TWO_ENCODINGS, raw)
        return Record(position, text, raw)
    return parse_json(position, text, raw) if text and not text.isspace() else None


def parse_json(position: int | str, text: str, raw: bytes) -> Record | Damage:
    """One JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return damage(position, TWO_ENCODINGS if is_utf_16_among_utf_8(raw) else f"not JSON: {error}", raw)
    return Record(position, value, raw) if isinstance(value, dict) else as_object(position, value, raw)


def as_object(position: int | str, value: object, raw: bytes) -> Record | Damage:
    """A JSON value as a record, if it is an object."""
    if not isinstance(value, dict):
        return damage(position, f"not a JSON object but {_type_name(value)}", raw)
    return Record(position, value, raw)


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
