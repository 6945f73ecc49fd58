"""KafkaSink: rows as messages of a topic of Kafka, with librdkafka.

By an idempotent producer, so that librdkafka's own tries double nothing. Rows are published before it counts that they
were read: where a process dies in between, they are published again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from torchmoji_core.errors import InputError, RunError, UnavailableError
from transforms.addresses import KafkaTopic
from transforms.kafka_settings import check_settings, place_of, wrong_setting
from transforms.output.messages import to_messages

REQUEST_SECONDS = 10.0
"""For what is asked of brokers beside messages."""
PUBLISH_SECONDS = 300.0
_TICK = 0.1
_DEFAULTS = {
    "client.id": "torchmoji",
    "linger.ms": 5,
    "message.max.bytes": 10_000_000,  # the broker may take less
    "log_level": 2,
}
_OURS = {"enable.idempotence": True}
_SAYINGS = 10
"""Callbacks that may wait with a reason."""
_LOGGER = logging.getLogger(__name__)


class KafkaSink:
    """A topic that rows are published to, with the id as their key."""

    def __init__(self, topic: KafkaTopic, settings: Mapping[str, str]) -> None:
        """Args:
            topic: where to publish.
            settings: of librdkafka's producer.

        Raises:
            InputError: if it cannot be reached, or a setting is wrong.
        """
        import confluent_kafka

        self._kafka, self._topic, self.uri = confluent_kafka, topic.topic, topic.uri
        check_settings("producer", settings, _OURS.keys())
        try:
            self._producer = confluent_kafka.Producer(
                {"bootstrap.servers": topic.brokers, **_DEFAULTS, **settings, **_OURS,
                 "error_cb": self._heed, "logger": _LOGGER}
            )  # fmt: skip
        except (confluent_kafka.KafkaException, TypeError, ValueError, AttributeError) as error:
            raise wrong_setting("producer", error) from None
        self._said = ""
        try:
            cluster = self._producer.list_topics(self._topic, timeout=REQUEST_SECONDS)
            self.place = place_of(cluster, self._topic)
            described = cluster.topics[self._topic]
            if described.error is not None:
                raise confluent_kafka.KafkaException(described.error)
        except confluent_kafka.KafkaException as error:
            for _ in range(_SAYINGS):
                self._producer.poll(0)  # calls `_heed`
            if error.args[0].code() == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise InputError(f"--publish {self.uri}: there is no such topic; create it first") from None
            raise InputError(
                f"--publish {self.uri}: cannot be written: {self._said or error.args[0].str()}"
            ) from UnavailableError(self.uri)

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        """See `Publisher.publish`."""
        refused: list[Any] = []

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                refused.append(error)

        try:
            for batch in batches:
                for key, content in to_messages(batch):
                    self._produce(key, content, delivered)
            left = self._producer.flush(PUBLISH_SECONDS)
        except self._kafka.KafkaException as error:
            refused, left = [error.args[0]], 0
        if refused or left:
            said = refused[0].str() if refused else f"no answer for {PUBLISH_SECONDS:g} s ({self._said})"
            if refused and refused[0].code() == self._kafka.KafkaError.MSG_SIZE_TOO_LARGE:
                said += "; raise max.message.bytes of the topic, or give --producer_option batch.size=BYTES below it"
            raise RunError(f"--publish {self.uri}: rows cannot be published: {said}")

    def _produce(self, key: bytes, content: bytes, delivered: Callable[[Any, Any], None]) -> None:
        while True:
            try:
                return self._producer.produce(self._topic, content, key=key, on_delivery=delivered)
            except BufferError:  # as many wait as may
                self._producer.poll(_TICK)

    def _heed(self, error: Any) -> None:
        self._said = error.str()
