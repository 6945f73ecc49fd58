"""What the consumer and the producer of Kafka share: which settings may be given, and what tells topics apart.

Imports no Beam.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torchmoji_core.errors import InputError, first_line

_ADDRESSES = {"bootstrap.servers", "metadata.broker.list"}
"""Two names of one setting, which the address of the topic gives."""


def check_settings(kind: str, settings: Mapping[str, str], ours: Collection[str]) -> None:
    """Refuse settings that are not the user's, and those by which librdkafka or its binding ends the process.

    Args:
        kind: consumer or producer.
        settings: as they were given.
        ours: names of those that the stream sets.
    """
    for name, value in settings.items():
        if name in ours or name in _ADDRESSES:
            raise InputError(f"--{kind}_option {name} cannot be given: it is set by the stream; leave it out")
        try:
            (name + value).encode()
        except UnicodeEncodeError:  # as arguments may be that are no UTF-8
            raise InputError(f"--{kind}_option {name!a}: its name or value is not UTF-8") from None
    if settings.get("group.id") == "":
        raise InputError("--consumer_option group.id is empty; name a group, or leave it out")


def wrong_setting(kind: str, error: Exception) -> InputError:
    """Args:
    kind: consumer or producer.
    error: what librdkafka says.
    """
    said = getattr(error.args[0], "str", lambda: first_line(error))()
    return InputError(f"--{kind}_option or --{kind}_config: {said}; names and values are those of librdkafka")


def place_of(cluster: Any, topic: str) -> str:
    """What tells a topic from those of other names and clusters, whichever brokers were asked.

    Args:
        cluster: its description by librdkafka.
        topic: its name.
    """
    return f"kafka:{cluster.cluster_id or ''}:{topic}"
