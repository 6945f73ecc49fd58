"""Addresses of messages: subscriptions and topics of Pub/Sub, topics of Kafka. Imports no Beam."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmoji_core.errors import InputError

PUBSUB, KAFKA = "pubsub://", "kafka://"
SCHEMES = (PUBSUB, KAFKA)
_PROJECT = r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]"
_NAME = r"[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}"
_BROKER = r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}"
_KAFKA_TOPIC = r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}"


@dataclass(frozen=True)
class PubSubName:
    """A subscription or a topic of Pub/Sub."""

    path: str
    """As Google writes it: projects/P/subscriptions/S or projects/P/topics/T."""

    @property
    def uri(self) -> str:
        return PUBSUB + self.path


@dataclass(frozen=True)
class KafkaTopic:
    """A topic of Kafka."""

    brokers: str
    """Addresses to begin with, host:port,host:port."""
    topic: str

    @property
    def uri(self) -> str:
        return f"{KAFKA}{self.brokers}/{self.topic}"


Source = PubSubName | KafkaTopic


def is_topic(uri: str) -> bool:
    """Whether an address is one of messages, and not of files."""
    return uri.startswith(SCHEMES)


def parse_source(option: str, uri: str) -> Source:
    """What to read messages from.

    >>> parse_source("--input", "kafka://b1:9092,b2:9092/tweets").topic
    'tweets'

    Raises:
        InputError: if it is no such address; it names the option.
    """
    return _parse(option, uri, "subscriptions", "pubsub://projects/PROJECT/subscriptions/SUBSCRIPTION")


def parse_sink(option: str, uri: str) -> Source:
    """What to publish messages to.

    Raises:
        InputError: if it is no such address; it names the option.
    """
    return _parse(option, uri, "topics", "pubsub://projects/PROJECT/topics/TOPIC")


def _parse(option: str, uri: str, collection: str, expected: str) -> Source:
    if uri.startswith(PUBSUB):
        path = uri.removeprefix(PUBSUB)
        if re.fullmatch(rf"projects/{_PROJECT}/{collection}/{_NAME}", path):
            return PubSubName(path)
        expected += " (an id has at least 6 characters, a name at least 3)"
    elif uri.startswith(KAFKA):
        brokers, _, topic = uri.removeprefix(KAFKA).partition("/")
        # librdkafka takes larger numbers too, and connects to another port.
        if (
            re.fullmatch(rf"{_BROKER}(?:,{_BROKER})*", brokers)
            and all(0 < int(broker.rpartition(":")[2]) < 1 << 16 for broker in brokers.split(","))
            and re.fullmatch(_KAFKA_TOPIC, topic)
        ):
            return KafkaTopic(brokers, topic)
        expected = "kafka://HOST:PORT[,HOST:PORT...]/TOPIC"
    else:
        expected += " or kafka://HOST:PORT[,HOST:PORT...]/TOPIC"
    raise InputError(f"{option} {uri}: no address of messages; it must be {expected}")
