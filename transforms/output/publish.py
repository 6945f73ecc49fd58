"""PublishScores: rows as compact JSON to a topic of Pub/Sub or Kafka, without the vectors, keyed by id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import apache_beam as beam
import pyarrow as pa

from transforms import metrics
from transforms.addresses import KafkaTopic, Source
from transforms.columns import LONG_COLUMNS

PUBLISHED_BYTES = 9_000_000
"""Pub/Sub takes no message above ten megabytes, with its attributes."""
_ATTRIBUTE_BYTES = 1024
"""The most that an attribute of Pub/Sub may have."""


class PublishScores(beam.PTransform):
    """Record batches -> messages: JSON objects with id, timestamp, top classes, kept fields and fingerprint.

    In Kafka the id is the key, in Pub/Sub the attribute `id`. A row may be published more than once, under the same id.
    Fields that would make a message larger than `PUBLISHED_BYTES` are left out, and named in its field `left_out`.
    """

    def __init__(
        self, sink: Source, producer_options: Mapping[str, str] | None = None, expansion_service: Any = None
    ) -> None:
        """Args:
        sink: a topic.
        producer_options: for Kafka's producer.
        expansion_service: what expands Kafka's transform, as `WriteToKafka` takes it; None for Beam's jar.
        """
        super().__init__()
        self._expansion_service = expansion_service
        self._sink, self._producer_options = sink, dict(producer_options or {})

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Any:
        rows = batches | "Rows" >> beam.FlatMap(to_messages).with_output_types(tuple[bytes, bytes])
        if isinstance(self._sink, KafkaTopic):
            from apache_beam.io.kafka import WriteToKafka

            producer = {"bootstrap.servers": self._sink.brokers} | self._producer_options
            return rows | "WriteToKafka" >> WriteToKafka(
                producer, self._sink.topic, expansion_service=self._expansion_service
            )
        from apache_beam.io.gcp.pubsub import PubsubMessage, WriteToPubSub

        return (
            rows
            | "Messages" >> beam.Map(_pubsub_message).with_output_types(PubsubMessage)
            | "WriteToPubSub" >> WriteToPubSub(self._sink.path, with_attributes=True)
        )


def to_messages(batch: pa.RecordBatch) -> Iterator[tuple[bytes, bytes]]:
    """Key and content of each row."""
    fingerprint = (batch.schema.metadata or {}).get(b"torchmoji.fingerprint", b"").decode()
    rows = batch.drop_columns([name for name in LONG_COLUMNS if name in batch.schema.names]).to_pylist()
    metrics.counter(metrics.ROWS_PUBLISHED).inc(len(rows))
    for row in rows:
        content = {name: _plain(value) for name, value in row.items()} | {"fingerprint": fingerprint}
        yield row["id"].encode(), _bounded(content)


def _bounded(content: Mapping[str, Any]) -> bytes:
    """JSON that can be published: without the largest fields where it would be too long, and with their names."""
    encoded = _json(content)
    if len(encoded) <= PUBLISHED_BYTES:
        return encoded
    left_out: list[str] = []
    for name in sorted(content, key=lambda name: len(_json(content[name])), reverse=True):
        left_out.append(name)
        rest = {other: value for other, value in content.items() if other not in left_out}
        encoded = _json(rest | {"left_out": left_out})
        if len(encoded) <= PUBLISHED_BYTES:
            break
    return encoded


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, probabilities to six digits, null for NaN and infinity."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, date):  # datetime too
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def to_attributes(key: bytes) -> dict[str, str]:
    """Attributes of a row's message in Pub/Sub: its id, or the id's digest where that is too long for one."""
    return {"id": (key if len(key) <= _ATTRIBUTE_BYTES else hashlib.sha256(key).hexdigest().encode()).decode()}


def _pubsub_message(row: tuple[bytes, bytes]) -> Any:
    from apache_beam.io.gcp.pubsub import PubsubMessage

    return PubsubMessage(row[1], to_attributes(row[0]))
