"""Brokers of Kafka, what is sent to them, and the proof that all of it is in a data set once.

    python -m tests.kafka       librdkafka's broker for tests, in a process of its own, which prints its address and
                                ends with its standard input

That one speaks the real protocol, and has topics in memory, with four partitions each. It keeps 5 MB of a partition, as
retention would. Apache Kafka itself is fetched by `make test-kafka`.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.streams import live_ids

ROOT = Path(__file__).parents[1]
JARS = ROOT / ".venv" / "kafka"
PARTITIONS = 4
Offsets = list[tuple[int, int]]
START_SECONDS = 120.0


class Broker:
    """A broker in this process, or the address of one elsewhere, and what was sent to it."""

    def __init__(self, address: str | None = None, **settings: Any) -> None:
        """Args:
        address: of one that runs; None to run one.
        settings: of the producer.
        """
        settings |= {"test.mock.num.brokers": 1} if address is None else {}
        self._producer = Producer({"bootstrap.servers": address or "none", "linger.ms": 5, "log_level": 0, **settings})
        broker = next(iter(self._producer.list_topics(timeout=30).brokers.values()))
        self.address = address or f"{broker.host}:{broker.port}"

    def send(self, topic: str, values: Sequence[bytes | None], partition: int = 0, **options: Any) -> Offsets:
        """Send messages, and wait until they are there. Returns partition and offset of each."""
        sent: Offsets = []

        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            sent.append((message.partition(), message.offset()))

        for value in values:
            self._producer.produce(topic, value, partition=partition, on_delivery=delivered, **options)
        assert self._producer.flush(120) == 0
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
    """librdkafka's broker in a process of its own, which outlives readers that are killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kafka"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield Broker(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


class Traffic:
    """Posts that are sent to a topic in the background, as a context manager, in bursts to one partition and another.

    Each has an id of its own, so that it can be told whether all of them are there once.
    """

    def __init__(self, broker: Broker, topic: str, partitions: int, pause: float = 0.3, seed: int = 11) -> None:
        """Args:
        broker: where to send.
        topic: which has so many partitions.
        partitions: their number.
        pause: seconds between bursts.
        seed: of chance.
        """
        self._broker, self._topic, self._pause = broker, topic, pause
        self._dice, self._done = random.Random(seed), threading.Event()
        self.partitions = partitions
        self._sent = Counter[int]()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Traffic:
        self._burst(1)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more."""
        self._done.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._done.wait(self._pause):
            self._burst(self._dice.choice([1, 3, 10, 100]))

    def _burst(self, count: int) -> None:
        partition = self._dice.randrange(self.partitions)
        self._broker.posts(self._topic, count, partition, first=self._sent[partition])
        self._sent[partition] += count

    def __len__(self) -> int:
        return sum(self._sent.values())

    @property
    def ids(self) -> list[str]:
        """Of all posts that were sent, sorted."""
        return sorted(f"{partition}-{number}" for partition, sent in self._sent.items() for number in range(sent))

    def assert_once(self, output: Path) -> None:
        """All that was sent is in the live data set once, and nothing else."""
        ids = live_ids(output)
        doubled = sorted(id_ for id_, count in Counter(ids).items() if count > 1)
        lost = sorted(set(self.ids) - set(ids))
        print(f"{len(self):,} offsets, {len(lost)} lost, {len(doubled)} doubled")
        assert not doubled, f"doubled: {len(doubled)}, {doubled[:5]}"
        assert not lost, f"lost: {len(lost)}, {lost[:5]}"
        assert ids == self.ids


class RealBroker:
    """A broker of Apache Kafka that can be killed, and started again with what it had. It is the first of its cluster,
    or joins another one."""

    def __init__(
        self, directory: Path, settings: Mapping[str, object] | None = None, first: RealBroker | None = None
    ) -> None:
        """Args:
        directory: for its files.
        settings: further ones.
        first: the first broker of the cluster, whose controller it takes; None to be that.
        """
        self.directory = directory
        self._port, own_controller, guarded, encrypted = free_ports(4)
        self.controller: int = own_controller if first is None else first.controller
        self.address, self.guarded = f"127.0.0.1:{self._port}", f"127.0.0.1:{guarded}"
        """Where anybody may connect; where TLS is spoken and a password is asked for, if settings say so."""
        self.encrypted = f"127.0.0.1:{encrypted}"
        """Where TLS is spoken, if settings say so."""
        self.id = 1 if first is None else 2
        listeners = f"PLAINTEXT://{self.address}"
        for kind, address, named in (("SASL_SSL", self.guarded, "sasl."), ("SSL", self.encrypted, "ssl.")):
            if any(name.startswith(named) for name in settings or ()):
                listeners += f",{kind}://{address}"
        controller = f"CONTROLLER://127.0.0.1:{own_controller}"
        content = {
            "process.roles": "broker,controller" if first is None else "broker",
            "node.id": self.id,
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller}",
            "listeners": f"{listeners},{controller}" if first is None else listeners,
            "advertised.listeners": listeners,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL"),
            "log.dirs": directory / "data",
            **dict.fromkeys(("offsets.topic.replication.factor", "offsets.topic.num.partitions"), 1),
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "broker.session.timeout.ms": 3000,
            **(settings or {}),
        }
        (directory / "data").mkdir(parents=True)
        # What `StorageTool format` writes, in seconds.
        (directory / "data" / "meta.properties").write_text(
            f"version=1\ncluster.id=4L6g3nShT-eMCtK--X86sw\nnode.id={self.id}\n"
        )
        (directory / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in content.items()))

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        log = (self.directory / "log").open("ab")
        options = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*")
        self._process = subprocess.Popen(
            ["java", *options, "kafka.Kafka", str(self.directory / "server.properties")], stdout=log, stderr=log
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            said = (self.directory / "log").read_text()[-2000:]
            assert self._process.poll() is None and time.monotonic() < end, said
            time.sleep(0.2)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def create(self, topic: str, partitions: int, copies: int = 1) -> AdminClient:
        """Create a topic. Returns the client that has done it."""
        admin = AdminClient({"bootstrap.servers": self.address})
        for created in admin.create_topics([NewTopic(topic, partitions, copies)]).values():
            created.result(60)
        return admin

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def need_apache_kafka() -> None:
    """Skip the test where it was not fetched."""
    if not JARS.exists() or shutil.which("java") is None:
        pytest.skip(f"no broker in {JARS}, or no java; make test-kafka fetches one")


if __name__ == "__main__":
    broker = Broker()
    print(broker.address, flush=True)
    sys.stdin.read()
