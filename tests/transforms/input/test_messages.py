"""What messages of Pub/Sub and Kafka become: tweets with deterministic ids and event times, or dead letters."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp

from torchmoji_core.errors import InputError
from transforms.addresses import KafkaTopic, PubSubName, parse_sink, parse_source
from transforms.input.fields import FieldMapping, KeptField, position_id
from transforms.input.messages import MessageFields, MessageParser, ParseMessages, kafka_message, to_message
from transforms.input.raw_records import MAX_RECORD_BYTES, RAW_KEPT
from transforms.metrics import Tally
from transforms.output.messages import to_messages
from transforms.records import DeadLetter, Message, Tweet

SOURCE = "pubsub://projects/my-project/subscriptions/posts"
PUBLISHED = 1_790_000_000_000_000
WITH_TIME = MessageFields(FieldMapping(timestamp="at"))


def message(content: object, position: str = "17", **attributes: str) -> Message:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Message(position, data, PUBLISHED, attributes)


def parsed(content: object, rules: MessageFields = MessageFields(), **attributes: str) -> Tweet | DeadLetter:  # noqa: B008
    (found,) = MessageParser(SOURCE, rules).parse(message(content, **attributes))
    return found


def tweet(content: object, rules: MessageFields = MessageFields(), **attributes: str) -> Tweet:  # noqa: B008
    found = parsed(content, rules, **attributes)
    assert isinstance(found, Tweet), found
    return found


def letter(content: object, rules: MessageFields = MessageFields(), **attributes: str) -> DeadLetter:  # noqa: B008
    found = parsed(content, rules, **attributes)
    assert isinstance(found, DeadLetter), found
    assert (found.source, found.position) == (SOURCE, "17")
    return found


def test_a_json_object_is_a_tweet_of_the_time_of_publishing() -> None:
    rules = MessageFields(FieldMapping(keep=(KeptField("lang"), KeptField("likes", "int64"))))
    assert tweet({"id": "t1", "text": "so late", "lang": "en", "likes": 3}, rules) == Tweet(
        "t1", "so late", PUBLISHED, ("en", 3), SOURCE, message="17"
    )


def test_a_text_is_a_tweet() -> None:
    text = tweet("tea ☕\n".encode(), MessageFields(format="text"))
    assert (text.text, text.id, text.timestamp) == ("tea ☕", position_id(SOURCE, "17"), PUBLISHED)


@pytest.mark.parametrize(
    ("content", "attributes", "expected"),
    [
        ({"text": "a", "id": "mine"}, {"key": "other"}, "mine"),
        ({"text": "a", "id": 12}, {}, "12"),
        ({"text": "a"}, {"key": "other"}, "other"),
        ({"text": "a"}, {"key": ""}, position_id(SOURCE, "17")),
        ({"text": "a"}, {}, position_id(SOURCE, "17")),
    ],
)
def test_ids_come_from_the_payload_then_the_attribute_then_the_position(
    content: object, attributes: dict[str, str], expected: str
) -> None:
    assert tweet(content, MessageFields(id_attribute="key"), **attributes).id == expected


def test_a_redelivered_message_has_the_same_id_and_others_have_others() -> None:
    here, elsewhere = MessageParser(SOURCE, MessageFields()), MessageParser(f"{SOURCE}2", MessageFields())
    ids = [here.parse(message({"text": "a"}, position)) for position in ("1", "1", "2")]
    found = [each.id for (each,) in (*ids, elsewhere.parse(message({"text": "a"}, "1"))) if isinstance(each, Tweet)]
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize(
    ("content", "attributes", "seconds"),
    [
        ({"text": "a", "at": 1_789_999_000}, {}, 1_789_999_000),
        ({"text": "a", "at": "2026-09-21T13:00:00Z"}, {"when": "1789999000000"}, 1_789_995_600),
        ({"text": "a"}, {"when": "1789999000123"}, 1_789_999_000.123),
        ({"text": "a"}, {"when": "2026-09-21T13:00:00Z"}, 1_789_995_600),
        ({"text": "a", "at": None}, {}, PUBLISHED / 1e6),
    ],
)
def test_times_come_from_the_payload_then_the_attribute_then_publishing(
    content: object, attributes: dict[str, str], seconds: float
) -> None:
    rules = replace(WITH_TIME, timestamp_attribute="when")
    assert tweet(content, rules, **attributes).timestamp == round(seconds * 1e6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"{text: 1}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object but an array"),
        (b"", "empty message"),
        (b" \n", "empty message"),
        ({"words": "a"}, "no text"),
        ({"body": "a", "comment": "b"}, "the text may be in body or comment"),
        ({"text": 5}, "text field 'text' is int"),
        ({"text": "a", "id": 1.5}, "id field 'id' is float"),
        ({"text": "a", "at": "yesterday"}, "no time"),
        (b'{"text": "' + b"a" * MAX_RECORD_BYTES + b'"}', "longer than 16 MiB"),
    ],
)
def test_what_is_no_tweet_is_a_dead_letter_with_its_bytes(content: object, reason: str) -> None:
    dead = letter(content, WITH_TIME)
    assert reason in dead.reason
    assert dead.raw == message(content).data[:RAW_KEPT]


@pytest.mark.parametrize("value", ["soon", "9" * 400, "2026-13-01T00:00:00Z"])
def test_an_attribute_that_is_no_time_is_a_dead_letter(value: str) -> None:
    assert "attribute when" in letter({"text": "a"}, replace(WITH_TIME, timestamp_attribute="when"), when=value).reason


def test_a_page_is_several_tweets_and_a_notice_none() -> None:
    parser = MessageParser(SOURCE, MessageFields(id_attribute="key"))
    page = {"data": [{"id": "1", "text": "a"}, {"text": "b", "edit_history_tweet_ids": []}, 5], "meta": {}}
    tally = Tally()
    with tally.counting():
        first, second, third = parser.parse(message(page, key="of the page"))
        assert isinstance(first, Tweet) and isinstance(second, Tweet) and isinstance(third, DeadLetter)
        assert (first.id, second.id) == ("1", position_id(SOURCE, "17.1"))
        assert (third.position, third.raw) == ("17.2", b"5")
        assert parser.parse(message({"delete": {"status": {"id": 1}}})) == []
    assert tally.counts() == {
        "read": 4, "notices": 1, "without_id": 1,
        "bytes_read": len(message(page).data) + len(message({"delete": {"status": {"id": 1}}}).data),
    }  # fmt: skip


def test_lateness_is_measured_against_the_time_of_publishing() -> None:
    rules = replace(WITH_TIME, allowed_lateness=60)
    seconds = PUBLISHED / 1e6
    assert tweet({"text": "a", "at": seconds - 60}, rules)
    assert "later than --allowed_lateness 60s" in letter({"text": "a", "at": seconds - 61}, rules).reason
    assert tweet({"text": "a", "at": 0}, WITH_TIME).timestamp == 0, "nothing is too late unless that is asked for"


@pytest.mark.parametrize("published", [(1 << 62) * 1000, 253_402_300_800_000_000, -62_135_596_800_000_001])
def test_a_time_of_publishing_that_no_calendar_has(
    published: int,
) -> None:
    parser = MessageParser(SOURCE, WITH_TIME)
    (letter,) = parser.parse(Message("0:7", b'{"text": "a"}', published))
    assert isinstance(letter, DeadLetter) and letter.position == "0:7"
    assert letter.reason.startswith("the time of publishing is of no calendar: ")
    (found,) = parser.parse(Message("0:7", b'{"text": "a", "at": 0}', abs(published)))
    assert isinstance(found, Tweet) and found.timestamp == 0


def test_an_event_of_the_far_future_is_a_dead_letter() -> None:
    """Its window would never close."""
    seconds = PUBLISHED / 1e6
    assert tweet({"text": "a", "at": seconds + 3600}, WITH_TIME)
    assert "in the future" in letter({"text": "a", "at": seconds + 90_000}, WITH_TIME).reason


def test_messages_of_pubsub() -> None:
    time = datetime(2026, 9, 21, 13, tzinfo=UTC)
    micros = round(time.timestamp() * 1e6)
    for published in (time, time.replace(tzinfo=None), Timestamp(micros=micros)):
        found = to_message(PubsubMessage(b"x", {"a": "b"}, "m1", published))
        assert found == to_message(found) == Message("m1", b"x", micros, {"a": "b"})


def test_records_of_kafka() -> None:
    own = {"kafka.topic": "t", "kafka.partition": "3", "kafka.offset": "99", "kafka.key": "k"}
    attributes = {"a": "b", **own, "kafka.timestamp": "1790000000000"}
    record = kafka_message("t", 3, 99, PUBLISHED // 1000, b"k", b"x", [("a", b"a"), ("a", b"b"), ("c", None)])
    assert record == Message("3:99", b"x", PUBLISHED, attributes)
    tombstone = kafka_message("t", 3, 99, 1, b"k", None, [])
    assert tombstone == Message("3:99", b"", 1000, {**own, "kafka.timestamp": "1"}, is_tombstone=True)
    tally = Tally()
    with tally.counting():
        assert MessageParser("kafka://b:1/t", MessageFields()).parse(tombstone) == []
    assert (tally.counts()["read"], tally.counts()["notices"]) == (1, 1)


@pytest.mark.parametrize("format_", ["jsonl", "text"])
def test_attributes_can_be_kept(format_: str) -> None:
    """Where the payload has no such field."""
    keep = (KeptField("lang"), KeptField("offset", "int64", "kafka.offset"), KeptField("sent", "timestamp", "at"))
    rules = MessageFields(FieldMapping(keep=keep), format=format_)
    content = b'{"text": "so happy", "lang": "en"}'
    record = kafka_message("t", 3, 99, 1, None, content, [("lang", b"pt"), ("at", b"2026-01-31T12:00:00Z")])
    (found,) = MessageParser("kafka://b:1/t", rules).parse(record)
    assert isinstance(found, Tweet)
    assert found.extra == ("en" if format_ == "jsonl" else "pt", 99, 1_769_860_800_000_000)
    assert found.message == "3:99"
    (found,) = MessageParser("kafka://b:1/t", rules).parse(kafka_message("t", 3, 9, 1, None, content, [("at", b"?")]))
    assert isinstance(found, DeadLetter) and "kept field 'sent'" in found.reason


@pytest.mark.parametrize("format_", ["jsonl", "text"])
def test_what_a_schema_registry_writes_is_told_from_broken_text(format_: str) -> None:
    parser = MessageParser("kafka://b:1/t", MessageFields(format=format_))
    (letter,) = parser.parse(Message("0:0", b"\0\0\0\1\0\x02{}", PUBLISHED))
    assert isinstance(letter, DeadLetter) and "schema registry (magic byte 0, schema 256)" in letter.reason


def test_tweets_have_their_event_time_as_timestamp_in_the_pipeline() -> None:
    messages = [message({"text": "a", "id": "late", "at": 1_789_999_000}, "1"), message(b"nonsense", "2")]
    with test_pipeline.TestPipeline() as pipeline:
        outcome = pipeline | beam.Create(messages) | ParseMessages(SOURCE, WITH_TIME)
        times = outcome.results | beam.Map(lambda tweet, time=beam.DoFn.TimestampParam: (tweet.id, float(time)))
        assert_that(times, equal_to([("late", 1_789_999_000.0)]), "times")
        dead = outcome.dead_letters[0] | beam.Map(lambda letter: letter.position)
        assert_that(dead, equal_to(["2"]), "dead")
    counters = pipeline.result.metrics().query(beam.metrics.MetricsFilter().with_name("read"))["counters"]
    assert [counter.committed for counter in counters] == [2]


# --- addresses ---


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (SOURCE, PubSubName("projects/my-project/subscriptions/posts")),
        ("kafka://b1:9092,b2:9092/posts", KafkaTopic("b1:9092,b2:9092", "posts")),
        ("kafka://[::1]:9092/a.b_c-d", KafkaTopic("[::1]:9092", "a.b_c-d")),
    ],
)
def test_sources(uri: str, expected: object) -> None:
    source = parse_source("--input", uri)
    assert source == expected and source.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "pubsub://",
        "pubsub://projects/p/subscriptions/x",
        "pubsub://projects/my-project/topics/posts",
        "pubsub://projects/my-project/subscriptions/",
        "pubsub://projects/my-project/subscriptions/a b",
        "kafka://broker/posts",
        "kafka://broker:9092",
        "kafka://broker:9092/",
        "kafka://broker:9092/a/b",
        "kafka://broker:9092/..",
        "kafka://broker:9092,broker:65536/posts",
        "kafka://broker:0/posts",
        "kafka:///posts",
        "gs://bucket/posts",
    ],
)
def test_malformed_sources(uri: str) -> None:
    with pytest.raises(InputError, match=r"--input .*it must be (pubsub|kafka)://"):
        parse_source("--input", uri)


def test_a_subscription_is_no_sink() -> None:
    assert parse_sink("--publish", "pubsub://projects/my-project/topics/rows").uri.endswith("/topics/rows")
    with pytest.raises(InputError, match="topics/TOPIC"):
        parse_sink("--publish", SOURCE)


# --- publishing ---


def test_rows_are_published_as_compact_json_without_text_and_vectors() -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": "t1",
            "text": "so late",
            "timestamp": datetime(2026, 9, 21, 13, tzinfo=UTC),
            "score": float("nan"),
            "top_emojis": [{"emoji": "😴", "p": 0.1234567891}],
            "probabilities": [0.5],
            "embedding": [0.5],
            "status": "scored",
        }
    ]
    schema = pa.Table.from_pylist(rows).schema.with_metadata({"torchmoji.fingerprint": "abc"})
    ((key, content),) = to_messages(pa.RecordBatch.from_pylist(rows, schema=schema))
    assert key == b"t1" and b" " not in content
    assert json.loads(content) == {
        "id": "t1",
        "timestamp": "2026-09-21T13:00:00+00:00",
        "score": None,
        "top_emojis": [{"emoji": "😴", "p": 0.123457}],
        "status": "scored",
        "fingerprint": "abc",
    }


def test_what_is_too_long_to_be_published_is_left_out_and_named() -> None:
    """Pub/Sub refuses more than ten megabytes, and would for ever; the file has it all, under the same id."""
    row = {"id": "t1", "note": "é" * 4_000_000, "body": "x" * 4_000_000, "status": "scored"}
    ((key, content),) = to_messages(pa.RecordBatch.from_pylist([row]))
    assert len(content) < 10_000_000 and key == b"t1"
    published = json.loads(content)
    assert published == {
        "id": "t1", "body": row["body"], "status": "scored", "fingerprint": "", "left_out": ["note"]
    }  # fmt: skip
    ((_, content),) = to_messages(pa.RecordBatch.from_pylist([{"id": "i" * 12_000_000, "status": "scored"}]))
    assert json.loads(content) == {"status": "scored", "fingerprint": "", "left_out": ["id"]}
