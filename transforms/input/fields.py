"""Which fields of a record are asked for, and what their values become: ids, times, kept fields. Pure, no Beam."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import valid_unicode
from torchmoji_core.options import check_choice, check_options, option
from transforms.input.layouts import AUTO, NAMES, named
from transforms.input.paths import look_up, top

HTML = (AUTO, "keep", "entities", "tags")
"""What is done with HTML in texts."""

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
_WITH_WEEKDAY = ("%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z")
"""Twitter's, which is that of `date`, and that of mail and HTTP."""


@dataclass(frozen=True)
class KeptField:
    """An input field that is carried through to a column."""

    name: str
    """Of the output column."""
    kind: str = "string"
    """One of `KEPT_TYPES`."""
    path: str = ""
    """Dotted path in the input; the same as the name unless something else is given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path or self.name)
        if not self.name:
            raise InputError("a kept field needs a name")
        check_choice(f"kept field {self.name}: type", self.kind, KEPT_TYPES)

    @property
    def option(self) -> str:
        """As the command line has it, without the type."""
        return self.name if self.path == self.name else f"{self.path}:as={self.name}"

    @property
    def column(self) -> pa.Field:
        return pa.field(self.name, KEPT_TYPES[self.kind])


@dataclass(frozen=True)
class FieldMapping:
    """Where a record has its text, id, timestamp, and what else to keep."""

    text: tuple[str, ...] = option(
        (AUTO,),
        "field with the text; dots go into nested fields; the first of several that is there and not blank; auto: as "
        "the layout has it",
        name="text_field",
        metavar="PATHS",
    )
    id: tuple[str, ...] = option(
        (AUTO,),
        "field with the id; without one, or with '', ids are hashes of file and position",
        name="id_field",
        metavar="PATHS",
    )
    timestamp: str | None = option(
        None,
        "field with the time, written as column timestamp: ISO 8601 and what databases make of it, Twitter's format, "
        "or seconds, milliseconds or microseconds since 1970; auto: where the layout has it",
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
    layout: str = option(
        AUTO, f"how records are written; auto tells it for each file; or {', '.join(NAMES)}", metavar="NAME"
    )
    html: str = option(
        AUTO,
        "HTML in texts: keep it, decode its entities (&lt; is <), or its tags as well; auto: as the layout's platform "
        "writes it",
        choices=HTML,
    )

    def __post_init__(self) -> None:
        if not self.text:
            raise InputError("the field mapping needs at least one text field")
        if self.layout != AUTO:
            named(self.layout)
        check_options(self)
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
            *(field.path for field in self.keep),
            *self.partition_by,
        ]
        return tuple(dict.fromkeys(name for path in paths if path != AUTO for name in (path, top(path))))


class FieldError(ValueError):
    """A record that is not a tweet; the message says why."""


def to_id(value: Any, name: str) -> str:
    """An id as a string.

    Raises:
        FieldError: if it is neither a string nor an integer, or written as a float: those lose digits of tweet ids.
            The message has the remedy.
    """
    if isinstance(value, str):
        if not value.isalnum() and _FLOAT.fullmatch(value):
            raise FieldError(f"id field {name!r} is {_shown(value)}, a float, which loses digits of ids; {_OTHER_IDS}")
        if not value.isalnum() and (guarded := _GUARDED.fullmatch(value)):
            return guarded[1] or guarded[2]
        return valid_unicode(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    lost = " (floats lose digits of ids)" if isinstance(value, float) else ""
    raise FieldError(
        f"id field {name!r} is {type(value).__name__}, neither a string nor an integer{lost}; {_OTHER_IDS}"
    )


_FLOAT = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?[eE]\+\d+|\d+[.,]\d+[eE]-?\d+|\d+\.0*)", re.ASCII)
"""What spreadsheets and pandas make of large integers. Ids may look like 12e34, with neither a point nor a sign."""
_GUARDED = re.compile(r"""=?"(\d+)"|'(\d+)'?""", re.ASCII)
"""How digits are kept from spreadsheets, which would make floats of them: ="123" and '123."""
_OTHER_IDS = "give --id_field with another column, or '' for hashes of file and position"


def position_id(source: str, position: int | str) -> str:
    """The id of a record without one: 32 hexadecimal digits, the same whenever the same file is read.

    >>> position_id("tweets.txt", 0)
    'e92141e17acbd40d6f8825bfb12038e2'
    """
    return hashlib.sha256(f"{source}\0{position}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


_TIMES = ((1e11, 1_000_000), (1e14, 1000), (1e17, 1))
"""By the size of a number: how many microseconds it counts; larger ones count nanoseconds."""


def to_microseconds(value: Any, name: str) -> int:
    """A time in any accepted form as microseconds since 1970; times without a zone are in UTC.

    Numbers are seconds, or milliseconds from 1e11 on, microseconds from 1e14 and nanoseconds from 1e17 on. But those
    that are dates without separators, of a year from 1970 to 2100, are these. A day is its midnight.

    Raises:
        FieldError: if it is no time.
    """
    try:
        if isinstance(value, str):
            try:
                # Digits alone are a number, unless they may be a date: milliseconds would pass for one of another age.
                is_number = value.isdecimal() and len(value) != len("YYYYMMDD")
                value = int(value) if is_number else datetime.fromisoformat(value)
            except ValueError:
                value = _written(value)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        elif isinstance(value, Decimal):
            value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
        if not isinstance(value, datetime):
            value = _without_separators(value) or value
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            delta = value - datetime(1970, 1, 1, tzinfo=UTC)
            return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if isinstance(value, int | float) and not isinstance(value, bool):
            size = abs(value)
            times = next((times for bound, times in _TIMES if size < bound), 0)
            microseconds = round(value * times) if times else round(value // 1000)
            datetime.fromtimestamp(microseconds / 1e6, UTC)  # raises for a day that no calendar has
            return microseconds
    except (ValueError, OverflowError):
        pass
    except OSError as error:
        if error.errno not in (errno.EOVERFLOW, errno.EINVAL):  # what the C library says of times out of its range
            raise
    zone = _NAMED_ZONE.search(value) if isinstance(value, str) else None
    unknown = f" (zone {zone[1]} is none of {', '.join(_ZONES)})" if zone and zone[1].upper() not in _ZONES else ""
    raise FieldError(f"field {name!r} is no time: {_shown(value)}{unknown}; expected ISO 8601 or seconds since 1970")


_DIGITS = re.compile(r"(19[7-9]\d|20\d\d|2100)(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?")
"""YYYYMMDD, YYYYMMDDHHMM and YYYYMMDDHHMMSS: as numbers of seconds or milliseconds, times of no tweet."""


def _without_separators(value: Any) -> datetime | None:
    """The time that a number is the digits of; None for other numbers."""
    is_number = isinstance(value, int | float) and 19700101 <= value < 1e14 and value == int(value)
    found = _DIGITS.fullmatch(str(int(value))) if is_number else None
    with contextlib.suppress(ValueError):
        return datetime(*map(int, filter(None, found.groups()))) if found else None  # type: ignore[arg-type]
    return None


_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
}  # fmt: skip
"""Hours before or behind UTC, as mail has them (RFC 5322): names of other zones mean several."""
_NAMED_ZONE = re.compile(r"(?<=[0-9]) ?([A-Za-z]{1,5})(?= \d{4}$|$)", re.ASCII)
_OFFSET_APART = re.compile(r" (?=[+-]\d\d(?::?\d\d)?$)", re.ASCII)


def _written(text: str) -> datetime | float:
    """A time as databases and Twitter write it, or a number.

    Raises:
        ValueError: if it is none of these.
    """
    text = text.strip()
    zone = _NAMED_ZONE.search(text)
    if zone and (hours := _ZONES.get(zone[1].upper())) is not None:
        offset = f"{hours:+03}00"
        text = f"{text[: zone.start()]} {offset}{text[zone.end() :]}"
    if not text[:1].isalpha():
        with contextlib.suppress(ValueError):
            return float(text)
        return datetime.fromisoformat(_OFFSET_APART.sub("", text))
    for form in _WITH_WEEKDAY:
        with contextlib.suppress(ValueError):
            return datetime.strptime(text, form)
    raise ValueError(text)


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
    """JSON, with null for numbers that JSON does not have: readers refuse a whole column for one NaN."""
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
