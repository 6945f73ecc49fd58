"""A broker of Kafka, librdkafka's own for tests: the real protocol, with topics in memory and four partitions each.

    python -m tests.kafka       one in a process of its own, whose address is printed; it ends with its standard input

It keeps 5 MB of a partition, as retention would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

PARTITIONS = 4
Offsets = list[tuple[int, int]]


class Broker:
    """A broker in this process, or the address of one elsewhere, and what was sent to it."""

    def __init__(self, address: str | None = None) -> None:
        """Args:
        address: of one that runs; None to run one.
        """
        settings = {"test.mock.num.brokers": 1} if address is None else {}
        self._producer = Producer({"bootstrap.servers": address or "none", "linger.ms": 5, "log_level": 0, **settings})
        (broker,) = self._producer.list_topics(timeout=30).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def send(self, topic: str, values: Sequence[bytes | None], partition: int = 0, **options: Any) -> Offsets:
        """Send messages, and wait until they are there. Returns partition and offset of each."""
        sent: Offsets = []

        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            sent.append((message.partition(), message.offset()))

        for value in values:
            self._producer.produce(topic, value, partition=partition, on_delivery=delivered, **options)
        assert self._producer.flush(60) == 0
        return sent

    def posts(self, topic: str, count: int, partition: int = 0, first: int = 0, **fields: Any) -> Offsets:
        """Send posts whose ids are their partition and number."""
        return self.send(
            topic,
            [
                json.dumps({"id": f"{partition}-{number}", "text": "so happy"} | fields).encode()
                for number in range(first, first + count)
            ],
            partition,
        )


@contextmanager
def broker_process() -> Iterator[Broker]:
    """A broker in a process of its own, which outlives readers that are killed."""
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kafka"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield Broker(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    broker = Broker()
    print(broker.address, flush=True)
    sys.stdin.read()
