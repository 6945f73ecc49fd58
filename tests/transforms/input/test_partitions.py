"""Partitions: which directory a row belongs to, by fields of its record and by time."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.input.test_fields import MICROSECONDS, MOMENT, find_timestamp
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import valid_unicode
from transforms.input.fields import (
    FieldError,
    FieldMapping,
    KeptField,
    partition_directory,
)

DAY = 86_400
NULL = "__HIVE_DEFAULT_PARTITION__"


def directory(record: dict[str, Any], *fields: str, timestamp: int | None = None, modified: float | None = None) -> str:
    """Of a record whose mapping has no timestamp."""
    return partition_directory(record, FieldMapping(partition_by=fields), timestamp, modified)


def test_without_partition_fields_there_is_no_directory() -> None:
    assert directory({"lang": "en"}, timestamp=5, modified=5.0) == ""


@pytest.mark.parametrize(
    ("timestamp", "modified", "name"),
    [
        (0, None, "1970-01-01"),
        (DAY * 1_000_000 - 1, None, "1970-01-01"),
        (DAY * 1_000_000, None, "1970-01-02"),
        (-1, None, "1969-12-31"),
        (MICROSECONDS, 0.0, "2024-03-21"),
        (-62_135_596_800_000_000, None, "0001-01-01"),
        (253_402_300_799_999_999, None, "9999-12-31"),
        (None, DAY - 0.001, "1970-01-01"),
        (None, float(DAY), "1970-01-02"),
        (None, -0.5, "1969-12-31"),
        (None, None, NULL),
    ],
)
def test_dates_are_days_in_utc_of_the_timestamp_or_else_of_the_file(
    timestamp: int | None, modified: float | None, name: str
) -> None:
    assert directory({}, "date", timestamp=timestamp, modified=modified) == f"date={name}"


@pytest.mark.parametrize(
    ("timestamp", "modified", "name"),
    [
        (0, None, "00"),
        (3_599_999_999, None, "00"),
        (3_600_000_000, None, "01"),
        (DAY * 1_000_000 - 1, None, "23"),
        (DAY * 1_000_000, None, "00"),
        (-1, None, "23"),
        (MICROSECONDS, 0.0, "08"),
        (None, 3_600.0, "01"),
        (None, -0.5, "23"),
        (None, None, NULL),
    ],
)
def test_hours_are_those_of_the_day_in_utc(timestamp: int | None, modified: float | None, name: str) -> None:
    found = directory({"hour": "of its own"}, "date", "hour", timestamp=timestamp, modified=modified)
    assert found.partition("/")[2] == f"hour={name}"


def test_a_record_without_the_timestamp_asked_for_is_not_given_that_of_its_file() -> None:
    mapping = FieldMapping(timestamp="at", partition_by=("date", "hour"))
    assert partition_directory({"at": None}, mapping, None, 5.0) == f"date={NULL}/hour={NULL}"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_days_that_are_in_no_calendar_in_utc(text: str) -> None:
    """They once ended the run: a date of Python ends with the year 9999."""
    mapping = FieldMapping(timestamp="at", partition_by=("date",))
    timestamp = find_timestamp({"at": text}, mapping)
    with pytest.raises(FieldError, match="'date' is a day that no calendar holds"):
        partition_directory({"at": text}, mapping, timestamp, None)


def test_the_field_named_date_is_not_looked_up() -> None:
    assert directory({"date": "../.."}, "date", modified=0.0) == "date=1970-01-01"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("en", "en"),
        ("two words", "two words"),
        (None, NULL),
        ("", NULL),
        (3, "3"),
        (-3, "-3"),
        (10**30, "1" + "0" * 30),
        (1.5, "1.5"),
        (-0.0, "-0.0"),
        (1e300, "1e%2B300"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "true"),
        (False, "false"),
        (date(2024, 3, 21), "2024-03-21"),
        (MOMENT, "2024-03-21"),
        ("../../etc", "..%2F..%2Fetc"),
        ("/", "%2F"),
        ("..", ".."),
        (".", "."),
        ("\0", "%00"),
        ("\\", "%5C"),
        ("a=b/c=d", "a%3Db%2Fc%3Dd"),
        ("100%", "100%25"),
        ("%2F", "%252F"),
        ("*?[x]", "%2A%3F%5Bx%5D"),
        ("😂", "%F0%9F%98%82"),
        ("half \ud83d", "half %EF%BF%BD"),
        ("line\nbreak", "line%0Abreak"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_values_name_a_directory(value: Any, name: str) -> None:
    assert directory({"x": value}, "x") == f"x={name}"


def test_several_fields_are_nested_in_their_order() -> None:
    record = {"user": {"lang": "en"}, "b": "b"}
    assert directory(record, "b", "user.lang", "date", "no", modified=0.0) == (
        f"b=b/user.lang=en/date=1970-01-01/no={NULL}"
    )


@pytest.mark.parametrize("value", [{"a": 1}, {}, ["a"], [], b"bytes", Decimal("1.5")], ids=ascii)
def test_values_that_are_no_name_are_refused(value: Any) -> None:
    with pytest.raises(FieldError, match=f"partition field 'x' is {type(value).__name__}, not a string or a number"):
        directory({"x": value}, "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [("x", "x" * 10_000), ("x", "x" * 254), ("x", "😂" * 22), ("x" * 250, "value"), ("x", 10**300), ("x" * 240, None)],
    ids=lambda value: ascii(value)[:20],
)
def test_names_that_a_filesystem_would_refuse_are_refused(field: str, value: Any) -> None:
    with pytest.raises(FieldError, match="makes a name of more than 255 bytes"):
        directory({field: value}, field)


def test_the_longest_name_is_one_that_filesystems_take(tmp_path: Path) -> None:
    name = directory({"x": "v" * 253}, "x")
    (tmp_path / name).mkdir()
    assert len(name) == 255


@given(
    st.one_of(
        st.text(),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.dates(),
        st.text("./\\%=\0 \ud800😂", max_size=400),
        st.just(NULL),
    ),
    st.text(min_size=1, max_size=30) | st.sampled_from(["..", "../..", "a/b", "/", "date", "half \udcff"]),
)
def test_whatever_the_value_it_is_one_directory_below_the_output(value: Any, field: str) -> None:
    try:
        found = partition_directory({field: value}, FieldMapping(partition_by=(field, "date")), None, 0.0)
    except FieldError as error:
        assert "more than 255 bytes" in str(error) or value == NULL
        return
    assert value != NULL or field == "date"
    names = found.split("/")
    assert len(names) == 2
    assert names[1] == "date=1970-01-01"
    assert len(names[0].encode()) <= 255
    assert not {"", ".", ".."} & set(names)
    assert found.isascii() and found.isprintable()
    key, _, name = names[0].partition("=")
    assert unquote(key) == valid_unicode(field)
    if field == "date":
        return
    if value is None or value == "":
        assert name == NULL
    elif isinstance(value, str):
        assert unquote(name) == valid_unicode(value)
    elif isinstance(value, bool):
        assert unquote(name) == ("true" if value else "false")
    else:
        assert unquote(name) == str(value)


@pytest.mark.parametrize("field", ["lang", "date"])
def test_a_partition_cannot_be_kept_as_well(field: str) -> None:
    with pytest.raises(InputError, match=f"field '{field}' is a partition"):
        FieldMapping(keep=(KeptField(field),), partition_by=(field,))
