"""PublishScores: rows as compact JSON to a topic of Pub/Sub or Kafka, without the vectors, keyed by id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from transforms.addresses import KafkaTopic, Source
from transforms.output.kafka import KafkaSink
from transforms.output.messages import to_messages

_ATTRIBUTE_BYTES = 1024
"""The most that an attribute of Pub/Sub may have."""


class PublishScores(beam.PTransform):
    """Record batches -> messages: JSON objects with id, timestamp, top classes, kept fields and fingerprint.

    In Kafka the id is the key, in Pub/Sub the attribute `id`. A row may be published more than once, under the same id.
    Fields that would make a message larger than `PUBLISHED_BYTES` are left out, and named in its field `left_out`.
    """

    def __init__(self, sink: Source, producer_settings: Callable[[], Mapping[str, str]] = dict) -> None:
        """Args:
        sink: a topic.
        producer_settings: gives those of Kafka's producer, in each worker: they may be secrets.
        """
        super().__init__()
        self._sink, self._producer_settings = sink, producer_settings

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> Any:
        if isinstance(self._sink, KafkaTopic):
            return batches | "WriteToKafka" >> beam.ParDo(_WriteToKafka(self._sink, self._producer_settings))
        rows = batches | "Rows" >> beam.FlatMap(to_messages).with_output_types(tuple[bytes, bytes])
        from apache_beam.io.gcp.pubsub import PubsubMessage, WriteToPubSub

        return (
            rows
            | "Messages" >> beam.Map(_pubsub_message).with_output_types(PubsubMessage)
            | "WriteToPubSub" >> WriteToPubSub(self._sink.path, with_attributes=True)
        )


class _WriteToKafka(beam.DoFn):
    def __init__(self, topic: KafkaTopic, settings: Callable[[], Mapping[str, str]]) -> None:
        self._topic, self._settings = topic, settings

    def setup(self) -> None:
        self._sink = KafkaSink(self._topic, self._settings())

    def process(self, batch: pa.RecordBatch) -> None:
        self._sink.publish([batch])


def to_attributes(key: bytes) -> dict[str, str]:
    """Attributes of a row's message in Pub/Sub: its id, or the id's digest where that is too long for one."""
    return {"id": (key if len(key) <= _ATTRIBUTE_BYTES else hashlib.sha256(key).hexdigest().encode()).decode()}


def _pubsub_message(row: tuple[bytes, bytes]) -> Any:
    from apache_beam.io.gcp.pubsub import PubsubMessage

    return PubsubMessage(row[1], to_attributes(row[0]))
