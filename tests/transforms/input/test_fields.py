"""Fields of a record: where they are found, what is accepted in them, and what they become."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from torchmoji_core.errors import InputError
from transforms.input.fields import (
    KEPT_TYPES,
    FieldError,
    FieldMapping,
    KeptField,
    convert_kept,
    infer_kind,
    position_id,
    to_microseconds,
)
from transforms.input.paths import look_up
from transforms.input.posts import PostReader
from transforms.input.raw_records import Record
from transforms.records import DeadLetter

DEFAULT = FieldMapping()


def find_text(record: dict[str, Any], mapping: FieldMapping) -> str:
    """Of a record of no platform's layout."""
    found = PostReader(mapping).find_text(record, record)
    assert found is not None
    return found[0]


def find_id(record: dict[str, Any]) -> str:
    """Of a record with a text, at place 3 of a file."""
    (tweet,) = PostReader(FieldMapping(layout="plain")).read(Record(3, {"text": "a", **record}, b""), "x.jsonl", "x")
    if isinstance(tweet, DeadLetter):
        raise FieldError(tweet.reason)
    assert tweet is not None
    return tweet.id


def find_timestamp(record: dict[str, Any], mapping: FieldMapping) -> int | None:
    return PostReader(mapping).find_time(record, record)


# --- look-up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "path", "value"),
    [
        ({"a": 1}, "a", 1),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a": {"b": 1}}, "a", {"b": 1}),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a.b": None, "a": {"b": 2}}, "a.b", None),
        ({"a": {"b": 2}}, "a.c", None),
        ({"a": None}, "a.b", None),
        ({"a": "text"}, "a.b", None),
        ({"a": [{"b": 1}]}, "a.b", None),
        ({}, "a.b", None),
        ({"": {"": 1}}, ".", 1),
    ],
)
def test_look_up(record: dict[str, Any], path: str, value: Any) -> None:
    assert look_up(record, path) == value


def test_columns_hold_each_name_and_its_first_part_once() -> None:
    mapping = FieldMapping(("a.b", "t"), ("a.id", "id"), "when.at", (KeptField("user.name"), KeptField("t")))
    assert mapping.columns == ("a.b", "a", "t", "a.id", "id", "when.at", "when", "user.name", "user")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ()}, "at least one text field"),
        ({"keep": (KeptField("a"), KeptField("b"), KeptField("a", "int64"))}, "'a' is named twice"),
    ],
)
def test_mappings_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FieldMapping(**arguments)


def test_kept_fields_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="needs a name"):
        KeptField("")
    with pytest.raises(InputError, match=re.escape("kept field a: type 'int' is unknown; choose from string, int64")):
        KeptField("a", "int")


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "plain"}, "plain"),
        ({"full_text": "long", "text": "short…"}, "long"),
        ({"extended_tweet": {"full_text": "longest"}, "full_text": "long", "text": "short…"}, "longest"),
        ({"extended_tweet": {}, "text": "plain"}, "plain"),
        ({"data": {"text": "version 2", "id": "1"}, "includes": {}}, "version 2"),
        ({"data.text": "flattened"}, "flattened"),
        ({"full_text": None, "text": "plain"}, "plain"),
        ({"full_text": "", "text": "plain"}, "plain"),
        ({"full_text": "", "text": None}, ""),
        ({"text": "half a pair \ud83d!"}, "half a pair \ufffd!"),
        ({"text": "a pair in two \ud83d\ude0d"}, "a pair in two 😍"),
    ],
)
def test_find_text(record: dict[str, Any], text: str) -> None:
    assert find_text(record, DEFAULT) == text


@pytest.mark.parametrize("value", [1, 1.5, True, ["text"], {"text": "x"}, b"bytes"])
def test_a_text_must_be_a_string(value: Any) -> None:
    with pytest.raises(FieldError, match=f"text field 'text' is {type(value).__name__}, not a string"):
        find_text({"text": value}, DEFAULT)


@pytest.mark.parametrize("record", [{}, {"text": None}, {"body": "x"}, {"extended_tweet": {"text": "x"}}])
def test_no_text(record: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=r"no text: none of the fields extended_tweet\.full_text, full_text"):
        find_text(record, DEFAULT)


# --- id ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "tweet_id"),
    [
        ({"id": "7"}, "7"),
        ({"id": 1234567890123456789}, "1234567890123456789"),
        ({"id": 0}, "0"),
        ({"id": 1.2345678901234567e18, "id_str": "1234567890123456789"}, "1234567890123456789"),
        ({"data": {"id": "8"}, "id": 9}, "8"),
        ({"id_str": "", "id": 9}, "9"),
        ({"id_str": None, "id": "x"}, "x"),
        ({"id": " spaced "}, " spaced "),
        ({"id": '="1234567890123456789"'}, "1234567890123456789"),
        ({"id": "'1234567890123456789"}, "1234567890123456789"),
        ({"id": "'tis"}, "'tis"),
        ({"id": "\ud83d"}, "\ufffd"),
    ],
)
def test_find_id(record: dict[str, Any], tweet_id: str) -> None:
    assert find_id(record) == tweet_id


@pytest.mark.parametrize("value", [1.0, 1.2345678901234567e18, True, False, ["1"], {"id": 1}, b"1", Decimal(1)])
def test_ids_that_are_refused(value: Any) -> None:
    with pytest.raises(FieldError, match=f"id field 'id' is {type(value).__name__}.*; give --id_field with another"):
        find_id({"id": value})


@pytest.mark.parametrize(
    "value", ["1.23E+18", "1.23456789012345e+18", "1E+18", "1,23E+18", "123.0", "1234567890123456789.", "1.5e3"]
)
def test_ids_that_are_written_as_floats_are_refused_as_floats_are(value: str) -> None:
    with pytest.raises(FieldError, match=r"a float, which loses digits of ids; give --id_field with another column"):
        find_id({"id": value})


@pytest.mark.parametrize("value", ["12e34", "7e5", "2301.01234", "1.2.3", "e+18", "0x1E+2", "1 E+18", "-17"])
def test_ids_that_only_look_like_floats_are_taken(value: str) -> None:
    assert find_id({"id": value}) == value


@pytest.mark.parametrize("record", [{}, {"id": None}, {"id": ""}, {"id_str": "", "data": {"id": None}}])
def test_a_missing_id_is_a_hash_of_source_and_position(record: dict[str, Any]) -> None:
    assert find_id(record) == position_id("x.jsonl", 3)
    assert position_id("tweets.txt", 0) == "e92141e17acbd40d6f8825bfb12038e2"
    ids = {position_id(source, position) for source in ("a", "b") for position in range(100)}
    assert len(ids) == 200
    assert all(re.fullmatch("[0-9a-f]{32}", tweet_id) for tweet_id in ids)


def test_a_source_may_have_a_name_that_is_not_utf8() -> None:
    assert position_id("tweets-\udcff.txt", 0) != position_id("tweets-\udcfe.txt", 0)


# --- time ----------------------------------------------------------------------------------------------------------

MOMENT = datetime(2024, 3, 21, 8, 58, 32, 123456, tzinfo=UTC)
MICROSECONDS = 1711011512_123456


@pytest.mark.parametrize(
    ("value", "microseconds"),
    [
        ("2024-03-21T08:58:32.123456Z", MICROSECONDS),
        ("2024-03-21T08:58:32.123456", MICROSECONDS),
        ("2024-03-21 08:58:32.123456", MICROSECONDS),
        ("2024-03-21T10:58:32.123456+02:00", MICROSECONDS),
        ("2024-03-21T03:28:32.123456-0530", MICROSECONDS),
        ("20240321T085832Z", MICROSECONDS - 123456),
        ("2024-03-21T08:58:32.123Z", MICROSECONDS - 456),
        ("2024-03-21", 1710979200_000000),
        ("20240321", 1710979200_000000),
        ("2024-W12-4", 1710979200_000000),
        ("Thu Mar 21 08:58:32 +0000 2024", MICROSECONDS - 123456),
        ("Thu Mar 21 10:58:32 +0200 2024", MICROSECONDS - 123456),
        (1711011512, MICROSECONDS - 123456),
        (1711011512.123456, MICROSECONDS),
        ("1711011512", MICROSECONDS - 123456),
        ("1711011512.123456", MICROSECONDS),
        (" 1711011512 ", MICROSECONDS - 123456),
        (1711011512123, MICROSECONDS - 456),
        ("1711011512123", MICROSECONDS - 456),
        (1711011512123.456, MICROSECONDS),
        (1711011512123456, MICROSECONDS),
        ("1711011512123456789", MICROSECONDS),
        ("2024-03-21 08:58:32 UTC", MICROSECONDS - 123456),
        ("2024-03-21 08:58:32.123456 UTC", MICROSECONDS),
        ("2024-03-21 08:58:32.123456+00", MICROSECONDS),
        ("2024-03-21 08:58:32 +0000", MICROSECONDS - 123456),
        ("2024-03-21 10:58:32.1234560 +02:00", MICROSECONDS),
        ("2024-03-21 08:58:32Z", MICROSECONDS - 123456),
        ("Thu Mar 21 01:58:32 PDT 2024", MICROSECONDS - 123456),
        ("Thu Mar 21 04:58:32 EDT 2024", MICROSECONDS - 123456),
        ("Thu, 21 Mar 2024 08:58:32 GMT", MICROSECONDS - 123456),
        ("Thu, 21 Mar 2024 10:58:32 +0200", MICROSECONDS - 123456),
        ("1.711011512e9", MICROSECONDS - 123456),
        (0, 0),
        ("0", 0),
        (-1.5, -1_500_000),
        ("-1", -1_000_000),
        ("1969-12-31T23:59:58.500Z", -1_500_000),
        ("0001-01-01T00:00:00Z", -62135596800_000000),
        ("9999-12-31T23:59:59.999999Z", 253402300799_999999),
        (MOMENT, MICROSECONDS),
        (MOMENT.replace(tzinfo=None), MICROSECONDS),
        (MOMENT.astimezone(timezone(timedelta(hours=-7))), MICROSECONDS),
        (pd.Timestamp("2024-03-21T08:58:32.123456789Z"), MICROSECONDS),
        (date(2024, 3, 21), 1710979200_000000),
        (date(1, 1, 1), -62135596800_000000),
        (Decimal("1711011512.123456"), MICROSECONDS),
        (Decimal("1711011512123456789.00"), MICROSECONDS),
    ],
    ids=str,
)
def test_times(value: Any, microseconds: int) -> None:
    assert to_microseconds(value, "t") == microseconds
    assert find_timestamp({"t": value}, FieldMapping(timestamp="t")) == microseconds


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "08:58",
        "2024-13-01",
        "2024-02-30T00:00:00Z",
        "Thu Mar 21 2024",
        "nan",
        "inf",
        "1e400",
        "-",
        "٣٣٣٣-٠١-٠١",
        True,
        False,
        float("nan"),
        float("inf"),
        10**400,
        "Thu Mar 21 08:58:32 CET 2024",
        "2024-03-21 10:58:32 CEST",
        b"2024",
        ["2024-03-21"],
        {"$date": 1},
        Decimal("nan"),
        Decimal("inf"),
        Decimal("snan"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(FieldError, match=r"field 't' is no time.*expected ISO 8601 or seconds since 1970"):
        to_microseconds(value, "t")


@pytest.mark.parametrize("milliseconds", ["1711011512300", "1701011512300", "1612121512345"])
def test_milliseconds_do_not_pass_for_a_date_of_another_age(milliseconds: str) -> None:
    """Python takes the first for 1711-01-15T23:00."""
    assert datetime.fromisoformat(milliseconds).year < 1800
    assert to_microseconds(milliseconds, "t") == int(milliseconds) * 1000


@pytest.mark.parametrize("kind", [str, int, float, Decimal])
@pytest.mark.parametrize(
    ("digits", "time"),
    [
        ("20240321", "2024-03-21"),
        ("202403210858", "2024-03-21 08:58"),
        ("20240321085832", "2024-03-21 08:58:32"),
        ("19700101", "1970-01-01"),
        ("21001231235959", "2100-12-31 23:59:59"),
        ("20240231", "1970-08-23 06:17:11"),  # no day, so it counts seconds
        ("202403210860", "1976-05-31 15:06:50.860"),
        ("2024032108", "2034-02-20 07:08:28"),
        ("1711011512", "2024-03-21 08:58:32"),
        ("1711011512123", "2024-03-21 08:58:32.123"),
        ("1711011512123456", "2024-03-21 08:58:32.123456"),
    ],
)
def test_dates_without_separators_are_told_from_other_numbers(kind: Any, digits: str, time: str) -> None:
    assert to_microseconds(kind(digits), "t") == to_microseconds(time, "t")


@pytest.mark.parametrize("text", ["Thu Mar 21 08:58:32 CET 2024", "2024-03-21 10:58:32 CET"])
def test_a_zone_whose_name_is_not_known_is_named(text: str) -> None:
    with pytest.raises(FieldError, match=r"zone CET is none of UTC, GMT"):
        to_microseconds(text, "t")


@pytest.mark.parametrize("record", [{}, {"t": None}, {"t": ""}])
def test_a_missing_time_is_none(record: dict[str, Any]) -> None:
    assert find_timestamp(record, FieldMapping(timestamp="t")) is None


def test_no_time_unless_asked_for() -> None:
    assert find_timestamp({"timestamp": "never looked at"}, DEFAULT) is None


# --- kept fields ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "kept"),
    [
        *((kind, None, None) for kind in KEPT_TYPES),
        *((kind, "", None) for kind in KEPT_TYPES if kind not in ("string", "json")),
        ("string", "", ""),
        ("string", "née", "née"),
        ("string", "\ud83d", "\ufffd"),
        ("string", 17, "17"),
        ("string", 1.5, "1.5"),
        ("string", True, "true"),
        ("string", date(2024, 3, 21), "2024-03-21"),
        ("string", '"quoted"', '"quoted"'),
        ("int64", 17, 17),
        ("int64", "17", 17),
        ("int64", "-17", -17),
        ("int64", 2**63 - 1, 2**63 - 1),
        ("int64", str(-(2**63)), -(2**63)),
        ("float64", 17, 17.0),
        ("float64", "1.5e3", 1500.0),
        ("float64", 1.5, 1.5),
        ("bool", True, True),
        ("bool", "False", False),
        ("bool", "TRUE", True),
        ("timestamp", "2024-03-21T08:58:32.123456Z", MICROSECONDS),
        ("timestamp", 1711011512, MICROSECONDS - 123456),
        ("timestamp", MOMENT, MICROSECONDS),
        ("date", "2024-03-21", date(2024, 3, 21)),
        ("date", date(2024, 3, 21), date(2024, 3, 21)),
        ("date", MOMENT, date(2024, 3, 21)),
        ("json", "text", "text"),
        ("json", "", ""),
        ("json", {"a": [1, None, "é"]}, '{"a": [1, null, "é"]}'),
        ("json", [True, 1.5], "[true, 1.5]"),
        ("json", 17, "17"),
        ("json", {"t": MOMENT, "d": Decimal("1.5")}, '{"t": "2024-03-21 08:58:32.123456+00:00", "d": "1.5"}'),
        ("json", {"a": "\ud83d"}, '{"a": "\ufffd"}'),
    ],
    ids=str,
)
def test_kept_values(kind: str, value: Any, kept: Any) -> None:
    field = KeptField("k", kind)
    converted = convert_kept(value, field)
    assert converted == kept
    assert type(converted) is type(kept)
    assert pa.array([converted], field.column.type).null_count == (kept is None), "the column takes it"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", {"a": 1}),
        ("string", ["a"]),
        ("string", b"bytes"),
        ("int64", "17.0"),
        ("int64", "seventeen"),
        ("int64", 17.0),
        ("int64", True),
        ("int64", 2**63),
        ("int64", str(2**63)),
        ("int64", [1]),
        ("float64", "a lot"),
        ("float64", True),
        ("float64", 10**400),
        ("bool", 1),
        ("bool", "yes"),
        ("bool", "0"),
        ("timestamp", "soon"),
        ("date", "21.3.2024"),
        ("date", 20240321),
        ("date", "2024-03-21T08:58:32Z"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_kept_values_of_another_type_are_refused(kind: str, value: Any) -> None:
    with pytest.raises(FieldError, match=f"kept field 'k' is .*, not of type {kind}"):
        convert_kept(value, KeptField("k", kind))


def test_messages_are_short_however_long_the_value() -> None:
    with pytest.raises(FieldError) as caught:
        convert_kept("x" * 100_000, KeptField("k", "int64"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "string"),
        ([None, None], "string"),
        (["a", None], "string"),
        ([True, False, None], "bool"),
        ([1, None, 2], "int64"),
        ([1.5], "float64"),
        ([1, 2.5], "float64"),
        ([True, 1], "json"),
        (["a", 1], "json"),
        ([{"a": 1}], "json"),
        ([[1], None], "json"),
        ([MOMENT], "timestamp"),
        ([date(2024, 3, 21)], "date"),
        ([date(2024, 3, 21), MOMENT], "json"),
        ([Decimal(1)], "json"),
        ([b"bytes"], "json"),
    ],
    ids=str,
)
def test_inferred_kinds(values: list[Any], kind: str) -> None:
    assert infer_kind(values) == kind
    for value in values:
        convert_kept(value, KeptField("k", kind))  # holds all of them


def test_nanoseconds_are_timestamps() -> None:
    """Where pandas is installed, pyarrow gives its kind of datetime for them."""
    (value,) = pa.array([MICROSECONDS * 1000], pa.timestamp("ns", tz="UTC")).to_pylist()
    assert infer_kind([value, None]) == "timestamp"
    assert convert_kept(value, KeptField("k", "timestamp")) == MICROSECONDS
