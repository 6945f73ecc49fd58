"""ReadMessages and ParseMessages: what a subscription or a topic delivers -> tweets. Fields are in `fields`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from transforms import metrics
from transforms.addresses import KAFKA, PubSubName
from transforms.input.fields import FieldError, FieldMapping, convert_kept, position_id, to_microseconds
from transforms.input.lines import parse_line
from transforms.input.posts import PostReader
from transforms.input.raw_records import MAX_RECORD_BYTES, RAW_KEPT, Damage
from transforms.records import DeadLetter, Message, Outcome, Tweet

FUTURE_SECONDS = 86_400.0
"""By how much an event may come after its message: clocks differ, but a tweet would wait for ever for a window that
never comes."""
_CALENDAR = range(-62_135_596_800_000_000, 253_402_300_800_000_000)
"""The years 1 to 9999 in microseconds since 1970. Kafka's producers may give any time."""
KAFKA_ATTRIBUTE = "kafka."
"""In front of topic, partition, offset, timestamp (milliseconds since 1970) and key of a record."""
_DEAD = "dead"
_MAGIC = b"\0"
"""What serializers of a schema registry put before a payload, followed by the schema's id in four bytes:
docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop."""


@dataclass(frozen=True)
class MessageFields:
    """Where a message has what a tweet consists of."""

    fields: FieldMapping = field(default_factory=FieldMapping)
    """Of its payload; kept fields that it does not have are attributes."""
    format: str = "jsonl"
    """jsonl: the payload is a JSON object; text: it is the text itself."""
    id_attribute: str | None = None
    """Attribute with the id, where the payload has none."""
    timestamp_attribute: str | None = None
    """Attribute with the time of the event, where the payload has none: RFC 3339, or milliseconds since 1970."""
    allowed_lateness: float | None = None
    """Seconds by which an event may come before its message; None for any."""
    id_scope: str | None = None
    """If a message has no id, its id is a hash of this and the position; None for the source."""


class ReadMessages(beam.PTransform):
    """Read from Pub/Sub, for ever: `PubsubMessage`s."""

    def __init__(
        self, source: PubSubName, id_attribute: str | None = None, timestamp_attribute: str | None = None
    ) -> None:
        """Args:
        source: subscription.
        id_attribute: attribute by which Pub/Sub's readers on Dataflow drop messages that were published twice.
        timestamp_attribute: attribute by which such readers know how far event time is.
        """
        super().__init__()
        self._source = source
        self._attributes = {"id_label": id_attribute, "timestamp_attribute": timestamp_attribute}

    def expand(self, pbegin: beam.Pipeline) -> beam.PCollection[Any]:
        from apache_beam.io.gcp.pubsub import ReadFromPubSub

        return pbegin | "ReadFromPubSub" >> ReadFromPubSub(
            subscription=self._source.path, with_attributes=True, **self._attributes
        )


def to_message(element: Any) -> Message:
    """An element of `ReadMessages` as a message."""
    return element if isinstance(element, Message) else from_pubsub(element)


def from_pubsub(message: Any) -> Message:
    """A `PubsubMessage` of Beam."""
    published = message.publish_time
    if isinstance(published, datetime):
        micros = to_microseconds(published if published.tzinfo else published.replace(tzinfo=UTC), "publish_time")
    else:
        micros = Timestamp.of(published or 0).micros
    return Message(message.message_id or "", message.data or b"", micros, dict(message.attributes or {}))


def kafka_message(
    topic: str,
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
) -> Message:
    """A record of Kafka: its headers are attributes, and what else it has too, with `KAFKA_ATTRIBUTE` in front.

    Args:
        topic: its name.
        partition: its number.
        offset: in the partition.
        timestamp: milliseconds since 1970.
        key: None where there is none.
        value: None of a tombstone.
        headers: of several with one name, the last counts; one without a value is like none.
    """
    attributes = {name: _text(content) for name, content in dict(headers).items() if content is not None}
    for name, own in (("topic", topic), ("partition", partition), ("offset", offset), ("timestamp", timestamp)):
        attributes[KAFKA_ATTRIBUTE + name] = str(own)
    if key is not None:
        attributes[f"{KAFKA_ATTRIBUTE}key"] = _text(key)
    position = f"{partition}:{offset}"
    return Message(position, bytes(value or b""), int(timestamp) * 1000, attributes, value is None)


def _text(content: bytes) -> str:
    return bytes(content).decode("utf-8", "replace")


class ParseMessages(beam.PTransform):
    """What `ReadMessages` gives, or `Message`s -> an `Outcome` of Tweets, with the event's time as their timestamp,
    and DeadLetters.

    The id is the payload's, or else the attribute's, or else a hash of source and position: a message that is delivered
    again gives the same. The time is the payload's, or else the attribute's, or else the one of publishing.
    """

    def __init__(self, source: str, rules: MessageFields = MessageFields()) -> None:
        """Args:
        source: what the tweets are to have as their source.
        rules: where a message has its fields.
        """
        super().__init__()
        self._do_fn = _Parse(source, rules)

    def expand(self, messages: beam.PCollection[Any]) -> Outcome:
        parsed = messages | "Parse" >> beam.ParDo(self._do_fn).with_output_types(Tweet, dead=DeadLetter).with_outputs(
            _DEAD, main="tweets"
        )
        return Outcome(parsed["tweets"], (parsed[_DEAD],))


class _Parse(beam.DoFn):
    def __init__(self, source: str, rules: MessageFields) -> None:
        self._source, self._rules = source, rules

    def setup(self) -> None:
        self._parser = MessageParser(self._source, self._rules)

    def process(self, element: Any) -> Iterator[TimestampedValue | beam.pvalue.TaggedOutput]:
        for parsed in self._parser.parse(to_message(element)):
            if isinstance(parsed, Tweet):
                yield TimestampedValue(parsed, Timestamp(micros=parsed.timestamp))
            else:
                yield beam.pvalue.TaggedOutput(_DEAD, parsed)


class MessageParser:
    """Makes tweets of the messages of a source. The layout of each is recognized by itself."""

    def __init__(self, source: str, rules: MessageFields) -> None:
        self._source, self._rules = source, rules
        # The time decides the window.
        self._reader = PostReader(rules.fields, needs_times=True)

    def parse(self, message: Message) -> list[Tweet | DeadLetter]:
        """The tweets of a message, with timestamps, and dead letters for the rest: several for a page of posts, none
        for a notice. Counts what was read."""
        metrics.counter(metrics.BYTES_READ).inc(len(message.data))
        if message.is_tombstone:
            for name in (metrics.READ, metrics.NOTICES):
                metrics.counter(name).inc()
            return []
        try:
            found = self._tweets(message)
        except FieldError as error:
            self._reader.counts[metrics.READ] += 1
            found = [DeadLetter(self._source, message.position, str(error), message.data[:RAW_KEPT])]
        metrics.count(self._reader.counts)
        return found

    def _tweets(self, message: Message) -> list[Tweet | DeadLetter]:
        if len(message.data) > MAX_RECORD_BYTES:
            raise FieldError(f"message is longer than {MAX_RECORD_BYTES >> 20} MiB")
        if self._source.startswith(KAFKA) and message.data[:1] == _MAGIC and len(message.data) > 4:
            schema = int.from_bytes(message.data[1:5], "big")
            raise FieldError(
                f"written for a schema registry (magic byte 0, schema {schema}), which is not read; write plain JSON "
                "or text to the topic"
            )
        rules = self._rules
        record = parse_line(message.position, message.data, rules.format)
        if record is None:
            raise FieldError("empty message")
        if isinstance(record, Damage):
            raise FieldError(record.reason)
        attribute_id = (message.attributes.get(rules.id_attribute) if rules.id_attribute else None) or None
        scope = rules.id_scope or self._source
        if isinstance(record.value, str):
            self._reader.counts[metrics.READ] += 1
            tweet = Tweet(attribute_id or position_id(scope, message.position), record.value, source=self._source)
            return [self._timed(tweet, message)]
        parsed = self._reader.read(record, scope, self._source, default_id=attribute_id)
        return [self._timed(item, message) if isinstance(item, Tweet) else item for item in parsed if item is not None]

    def _timed(self, tweet: Tweet, message: Message) -> Tweet | DeadLetter:
        try:
            tweet = self._with_attributes(tweet, message)
            if tweet.timestamp is None:
                tweet = tweet._replace(timestamp=_attribute_time(message, self._rules))
            _check_time(tweet.timestamp or 0, message, self._rules)
        except FieldError as error:
            return DeadLetter(self._source, message.position, str(error), message.data[:RAW_KEPT])
        return tweet._replace(message=message.position)

    def _with_attributes(self, tweet: Tweet, message: Message) -> Tweet:
        """Kept fields that the payload does not have are taken from the attributes."""
        keep = self._rules.fields.keep
        if not keep:
            return tweet
        kept = tweet.extra or (None,) * len(keep)
        found = zip(keep, kept, strict=True)
        extra = (
            convert_kept(message.attributes.get(field.path), field) if value is None else value
            for field, value in found
        )
        return tweet._replace(extra=tuple(extra))


def _attribute_time(message: Message, rules: MessageFields) -> int:
    value = message.attributes.get(rules.timestamp_attribute) if rules.timestamp_attribute else None
    if value is None:
        if message.published not in _CALENDAR:
            raise FieldError(f"the time of publishing is of no calendar: {message.published / 1e6:.3g} s since 1970")
        return message.published
    name = f"attribute {rules.timestamp_attribute}"
    return to_microseconds(float(value) / 1000 if value.isdecimal() else value, name)


def _check_time(timestamp: int, message: Message, rules: MessageFields) -> None:
    lateness = (message.published - timestamp) / 1e6
    if rules.allowed_lateness is not None and lateness > rules.allowed_lateness:
        raise FieldError(
            f"later than --allowed_lateness {rules.allowed_lateness:g}s: the event was {lateness:,.1f}s before its "
            "message"
        )
    if -lateness > FUTURE_SECONDS:
        raise FieldError(f"the event is {-lateness:,.0f}s after its message: more than a day in the future")
