"""Which fields of an input record become a tweet: look-up by dotted path, types, kept fields. Pure, no Beam."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import valid_unicode
from torchmoji_core.options import option

DEFAULT_TEXT_FIELDS = ("extended_tweet.full_text", "full_text", "data.text", "text")
"""Tried in order: the whole text of a tweet in versions 1.1 and 2 of Twitter's API, then the plain name."""
DEFAULT_ID_FIELDS = ("id_str", "data.id", "id")

KEPT_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "json": pa.string(),
}
DATE = "date"
HOUR = "hour"
"""Partition fields that every record has: the day and the hour, in UTC, of its timestamp or of its file."""
MAX_PARTITION_NAME = 255
"""Bytes of a directory's name, where most filesystems end them."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_EPOCH = date(1970, 1, 1)
_TWITTER_TIME = "%a %b %d %H:%M:%S %z %Y"


@dataclass(frozen=True)
class KeptField:
    """An input field that is carried through to a column of the same name."""

    name: str
    """Dotted path in the input, name of the output column."""
    kind: str = "string"
    """One of `KEPT_TYPES`."""

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a kept field needs a name")
        if self.kind not in KEPT_TYPES:
            raise InputError(
                f"kept field {self.name}: type {self.kind!r} is unknown; choose from {', '.join(KEPT_TYPES)}"
            )

    @property
    def column(self) -> pa.Field:
        return pa.field(self.name, KEPT_TYPES[self.kind])


@dataclass(frozen=True)
class FieldMapping:
    """Where a record has its text, id, timestamp, and what else to keep."""

    text: tuple[str, ...] = option(
        DEFAULT_TEXT_FIELDS,
        "field with the text; dots go into nested fields; the first of several that is there and not null",
        name="text_field",
        metavar="PATHS",
    )
    id: tuple[str, ...] = option(
        DEFAULT_ID_FIELDS,
        "field with the id; without one, ids are hashes of file and position",
        name="id_field",
        metavar="PATHS",
    )
    timestamp: str | None = option(
        None,
        "field with the time, written as column timestamp: ISO 8601, Twitter's format, or seconds since 1970",
        name="timestamp_field",
        metavar="PATH",
    )
    keep: tuple[KeptField, ...] = ()
    partition_by: tuple[str, ...] = option(
        (),
        "fields whose values name directories, DIR/date=2026-01-31/part-*.parquet; date is the day and hour the hour "
        "(UTC) of the timestamp or, without --timestamp_field, of the file; '' for none",
        metavar="FIELDS",
    )

    def __post_init__(self) -> None:
        if not self.text:
            raise InputError("the field mapping needs at least one text field")
        names = [field.name for field in self.keep]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"kept field {sorted(twice)[0]!r} is named twice")
        if both := set(names) & set(self.partition_by):
            raise InputError(
                f"field {sorted(both)[0]!r} is a partition, which readers get from directories; do not keep it as well"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """All names a record is asked for, and the first part of each dotted one."""
        paths = [
            *self.text,
            *self.id,
            *([self.timestamp] if self.timestamp else []),
            *(field.name for field in self.keep),
            *self.partition_by,
        ]
        return tuple(dict.fromkeys(name for path in paths for name in (path, path.partition(".")[0])))


class FieldError(ValueError):
    """A record that is no tweet; the message says why."""


def look_up(record: dict[str, Any], path: str) -> Any:
    """The value under a name, or else under a dotted path of names; None where there is none.

    >>> look_up({"data": {"text": "hi"}}, "data.text")
    'hi'
    """
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def find_text(record: dict[str, Any], mapping: FieldMapping) -> str:
    """The text of a record.

    Raises:
        FieldError: if no text field is there, or it is not a string.
    """
    for path in mapping.text:
        value = look_up(record, path)
        if value is None:
            continue
        if not isinstance(value, str):
            raise FieldError(f"text field {path!r} is {type(value).__name__}, not a string")
        return valid_unicode(value)
    raise FieldError(f"no text: none of the fields {', '.join(mapping.text)}")


def find_id(
    record: dict[str, Any], mapping: FieldMapping, source: str, position: int | str, default: str | None = None
) -> str:
    """The id of a record as a string; without one, the default or else `position_id`.

    Raises:
        FieldError: if it is neither a string nor an integer: floats lose digits of tweet ids.
    """
    for path in mapping.id:
        value = look_up(record, path)
        if value is None or value == "":
            continue
        if isinstance(value, str):
            return valid_unicode(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise FieldError(f"id field {path!r} is {type(value).__name__}, neither a string nor an integer")
    return default or position_id(source, position)


def position_id(source: str, position: int | str) -> str:
    """The id of a record without one: 32 hexadecimal digits, the same whenever the same file is read.

    >>> position_id("tweets.txt", 0)
    'e92141e17acbd40d6f8825bfb12038e2'
    """
    return hashlib.sha256(f"{source}\0{position}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def find_timestamp(record: dict[str, Any], mapping: FieldMapping) -> int | None:
    """Microseconds since 1970 in UTC; None where the field is missing or null, or none is asked for.

    Raises:
        FieldError: if there is a value that is no time.
    """
    value = look_up(record, mapping.timestamp) if mapping.timestamp else None
    return None if value is None or value == "" else to_microseconds(value, mapping.timestamp or "")


def to_microseconds(value: Any, name: str) -> int:
    """A time in any accepted form as microseconds since 1970; times without a zone are in UTC."""
    try:
        if isinstance(value, str):
            try:
                # Digits alone are a number, unless they may be a date: milliseconds would pass for one of another age.
                is_number = value.isdecimal() and len(value) != len("YYYYMMDD")
                value = float(value) if is_number else datetime.fromisoformat(value)
            except ValueError:
                value = datetime.strptime(value, _TWITTER_TIME) if value[:1].isalpha() else float(value)
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            delta = value - datetime(1970, 1, 1, tzinfo=UTC)
            return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if isinstance(value, int | float) and not isinstance(value, bool):
            microseconds = round(value * 1_000_000)
            datetime.fromtimestamp(value, UTC)  # raises for what no calendar holds, milliseconds for instance
            return microseconds
    except (ValueError, OverflowError):
        pass
    except OSError as error:
        if error.errno not in (errno.EOVERFLOW, errno.EINVAL):  # what the C library says of times out of its range
            raise
    raise FieldError(f"field {name!r} is no time: {_shown(value)}; expected ISO 8601 or seconds since 1970")


def partition_directory(
    record: dict[str, Any], mapping: FieldMapping, timestamp: int | None, modified: float | None
) -> str:
    """The directory of a record's row in Hive's layout, `date=2026-01-31/lang=en`; "" without `partition_by`.

    `date` is the day, in UTC, of the record's timestamp or, where no timestamp is asked for, of the last change of its
    file; `hour` is the hour of that day, 00 to 23. Characters that could leave the directory, or that a filesystem may
    not take, are percent-encoded, as Hive's readers expect; a value that is missing, null or empty gets Hive's name for
    it.

    Args:
        record: fields by name; empty for a line of text.
        mapping: `partition_by` and the rest.
        timestamp: microseconds since 1970 of the record.
        modified: seconds since 1970 of the last change of its file, where known.

    Raises:
        FieldError: if a value is neither a string, a number, a boolean nor a date, longer than a name may be, Hive's
            name for a missing one, or a day that no calendar holds.
    """
    names = []
    for field in mapping.partition_by:
        is_time = field in (DATE, HOUR)
        value = _day_or_hour(field, mapping, timestamp, modified) if is_time else look_up(record, field)
        if isinstance(value, datetime):
            value = value.date()
        if value is not None and not isinstance(value, str | int | float | date):
            raise FieldError(f"partition field {field!r} is {type(value).__name__}, not a string or a number")
        text = str(value).lower() if isinstance(value, bool) else "" if value is None else valid_unicode(str(value))
        name = f"{quote(valid_unicode(field), safe='')}={quote(text, safe=' ') if text else HIVE_NULL}"
        if text == HIVE_NULL:  # percent-encoding is no way out: pyarrow and polars decode before they compare
            raise FieldError(f"partition field {field!r} is {HIVE_NULL!r}, which readers take for a missing value")
        if len(name) > MAX_PARTITION_NAME:
            raise FieldError(f"partition field {field!r} makes a name of more than {MAX_PARTITION_NAME} bytes")
        names.append(name)
    return "/".join(names)


def _day_or_hour(field: str, mapping: FieldMapping, timestamp: int | None, modified: float | None) -> date | str | None:
    seconds = timestamp // 1_000_000 if timestamp is not None else modified if not mapping.timestamp else None
    if seconds is None:
        return None
    if field == HOUR:
        return f"{math.floor(seconds / 3600) % 24:02}"
    try:
        return _EPOCH + timedelta(days=math.floor(seconds / 86_400))
    except (OverflowError, ValueError):  # in its own time zone it may be of the year 1 or 9999
        raise FieldError(f"partition field {field!r} is a day that no calendar holds in UTC") from None


def find_kept(record: dict[str, Any], mapping: FieldMapping) -> tuple[Any, ...]:
    """The values of the kept fields, in their order.

    Raises:
        FieldError: if one is not of its declared type.
    """
    return tuple(convert_kept(look_up(record, field.name), field) for field in mapping.keep)


def convert_kept(value: Any, field: KeptField) -> Any:
    """A kept value as its declared type takes it; numbers and booleans may be spelled out, as they are in CSV.

    Raises:
        FieldError: if it is something else.
    """
    if value is None or (value == "" and field.kind not in ("string", "json")):
        return None
    try:
        if field.kind == "json":
            return valid_unicode(value if isinstance(value, str) else _to_json(value))
        if field.kind == "string" and isinstance(value, str | int | float | bool | date):
            return valid_unicode(value if isinstance(value, str) else json.dumps(value, default=str).strip('"'))
        if field.kind == "bool" and (isinstance(value, bool) or str(value).lower() in ("true", "false")):
            return str(value).lower() == "true"
        if field.kind == "int64" and isinstance(value, int | str) and not isinstance(value, bool):
            return pa.scalar(int(value), pa.int64()).as_py()
        if field.kind == "float64" and isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
        if field.kind == "timestamp":
            return to_microseconds(value, field.name)
        if field.kind == "date" and isinstance(value, str | date):
            return date.fromisoformat(value) if isinstance(value, str) else date(value.year, value.month, value.day)
    except (ValueError, OverflowError, RecursionError):
        pass
    raise FieldError(f"kept field {field.name!r} is {_shown(value)}, not of type {field.kind}")


def _to_json(value: Any) -> str:
    """JSON, with null for numbers that JSON has not: readers refuse a whole column for one NaN in it."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    """The beginning of a value, for a message; its type where it is nested too deep or has too many digits."""
    try:
        return repr(str(value)[:40])
    except (RecursionError, ValueError):
        return type(value).__name__


def infer_kind(values: Sequence[Any]) -> str:
    """The type of a kept field that holds all of the values, from a sample of records.

    >>> infer_kind([1, 2.5, None])
    'float64'
    """
    # Where pandas is installed, Parquet's nanoseconds come as its own kind of datetime.
    kinds = {datetime if isinstance(value, datetime) else type(value) for value in values if value is not None}
    if not kinds or kinds == {str}:
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64"
    if kinds <= {int, float}:
        return "float64"
    if datetime in kinds and kinds <= {datetime}:
        return "timestamp"
    return "date" if kinds == {date} else "json"
