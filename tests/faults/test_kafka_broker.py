"""Apache Kafka itself, which `make test-kafka` fetches and these tests start and kill."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from pipelines.data_set.coverage import Covers
from pipelines.streams.kafka import PARTITIONS_SECONDS, KafkaSource
from pipelines.streams.sources import Received
from tests.kafka import Broker
from tests.pipelines.streams.parts import Clock, until
from tests.processes import ScoreProcess
from tests.streams import live_ids
from transforms import metrics
from transforms.addresses import KafkaTopic

pytestmark = pytest.mark.kafka
JARS = Path(__file__).parents[2] / ".venv" / "kafka"
START_SECONDS = 120.0
KILLS, BROKER_KILLS = 30, 2
PARTITIONS = 3
PASSWORD = "b0tticelli"


class RealBroker:
    """A broker that can be killed, and started again with what it had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as one, socket.socket() as other, socket.socket() as third:
            for each in (one, other, third):
                each.bind(("127.0.0.1", 0))
            self._port, controller, secret = (each.getsockname()[1] for each in (one, other, third))
        self.address, self.guarded = f"127.0.0.1:{self._port}", f"127.0.0.1:{secret}"
        """Where anybody may connect, and where a password is asked for."""
        addresses = f"PLAINTEXT://{self.address},SASL_PLAINTEXT://{self.guarded}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{addresses},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": addresses,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT"
            ),
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_scores="{PASSWORD}";'
            ),
            "log.dirs": directory / "data",
            **dict.fromkeys(("offsets.topic.replication.factor", "offsets.topic.num.partitions"), 1),
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
        }
        (directory / "data").mkdir(parents=True)
        # What `StorageTool format` writes, in seconds.
        (directory / "data" / "meta.properties").write_text("version=1\ncluster.id=4L6g3nShT-eMCtK--X86sw\nnode.id=1\n")
        (directory / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def start(self) -> None:
        log = (self._directory / "log").open("ab")
        options = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*")
        self._process = subprocess.Popen(
            ["java", *options, "kafka.Kafka", str(self._directory / "server.properties")], stdout=log, stderr=log
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < end, (self._directory / "log").read_text()[
                -2000:
            ]
            time.sleep(0.2)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    if not JARS.exists() or shutil.which("java") is None:
        pytest.skip(f"no broker in {JARS}, or no java; make test-kafka fetches one")
    broker = RealBroker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.kill()


def create(broker: RealBroker, topic: str, partitions: int) -> AdminClient:
    admin = AdminClient({"bootstrap.servers": broker.address})
    for created in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        created.result(60)
    return admin


def pull(source: KafkaSource, count: int) -> list[str]:
    """Receipts of so many messages."""
    found: list[Received] = []
    until(lambda: found.extend(source.pull(100)) or len(found) >= count)
    return [item.receipt for item in found]


def test_transactions_retention_and_new_partitions(broker: RealBroker) -> None:
    admin = create(broker, "small", 1)
    topic, clock = KafkaTopic(broker.address, "small"), Clock()
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": "one", "log_level": 0})
    producer.init_transactions(60)
    for number in range(4):
        producer.begin_transaction()
        for _ in range(3):
            producer.produce("small", b"{}", partition=0)
        assert producer.flush(60) == 0  # or an aborted one would not have been written at all
        (producer.abort_transaction if number == 1 else producer.commit_transaction)(60)

    source = KafkaSource(topic, {"group.id": "watched"}, {}, clock)
    receipts = pull(source, 9)
    assert receipts[2:4] == ["0:2:2", "0:3:8"], "the marker, and the aborted messages with theirs, are no gap"
    covers: Covers = source.covers(receipts)
    assert [*covers.values()] == [{"0": [[0, 14]]}]
    source.acknowledge(receipts)

    for grown in admin.create_partitions([NewPartitions("small", 2)]).values():
        grown.result(60)
    Broker(broker.address).send("small", [b"{}"], partition=1)
    clock.seconds += PARTITIONS_SECONDS
    assert pull(source, 1) == ["1:0:0"]
    source.close()
    watched = Consumer({"bootstrap.servers": broker.address, "group.id": "watched"})
    until(lambda: watched.committed([TopicPartition("small", 0)], timeout=10)[0].offset == 15)
    watched.close()

    for deleted in admin.delete_records([TopicPartition("small", 0, 9)]).values():
        deleted.result(60)
    tally = metrics.Tally()
    with tally.counting():
        late = KafkaSource(topic, {}, {name: {"0": [[0, 1]], "1": [[0, 0]]} for name in covers})
        assert pull(late, 5)[0] == "0:2:9"
        late.close()
    assert tally.counts()["lost"] == 7


def test_a_password_is_used_and_never_shown(broker: RealBroker, tiny_model: str, tmp_path: Path) -> None:
    create(broker, "guarded", 1)
    Broker(broker.address).posts("guarded", 5)
    settings, output = tmp_path / "consumer.properties", tmp_path / "out"
    sasl = "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=scores\nsasl.password="
    source = ("--streaming", "--input", f"kafka://{broker.guarded}/guarded", "--output", "out", "--model", tiny_model)
    options = ("--consumer_config", str(settings), "--commit_every", "300ms")
    settings.write_text(f"{sasl}{PASSWORD}1\n")
    stream = ScoreProcess(tmp_path, *source, *options)
    assert stream.process.wait(60) == 2
    assert "may not be read" in stream.log and "Authentication failed" in stream.log and PASSWORD not in stream.log

    settings.write_text(f"{sasl}{PASSWORD}\n")
    stream = ScoreProcess(tmp_path, *source, *options)
    stream.wait_for(lambda: output.exists() and len(live_ids(output)) == 5)
    assert stream.stop() == 0 and PASSWORD not in stream.log
    assert not [path for path in output.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


def test_every_offset_once_whoever_is_killed(broker: RealBroker, tiny_model: str, tmp_path: Path) -> None:
    """The reader at random, again and again, and the broker under it."""
    create(broker, "posts", PARTITIONS)
    output, dice, sender = tmp_path / "out", random.Random(11), Broker(broker.address)
    sent, done = Counter[int](), threading.Event()

    def publish() -> None:
        while not done.wait(0.05):
            partition, count = dice.randrange(PARTITIONS), dice.choice([1, 3, 10, 100])
            sender.posts("posts", count, partition, first=sent[partition])
            sent[partition] += count

    def start() -> ScoreProcess:
        source = ("--streaming", "--input", f"kafka://{broker.address}/posts", "--output", "out", "--model", tiny_model)
        often = ("--commit_every", "300ms", "--max_latency", "50ms", "--consumer_option", "group.id=scores")
        return ScoreProcess(tmp_path, *source, *often)

    def seen(stream: ScoreProcess) -> None:
        """Wait until what is sent now is in the results."""
        wanted = sum(sent.values())
        stream.wait_for(lambda: len(live_ids(output)) >= wanted, 120)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for number in range(KILLS):
            stream = start()
            stream.wait_for(lambda stream=stream: "reading" in stream.log)
            time.sleep(dice.uniform(0.1, 2))
            if number % (KILLS // BROKER_KILLS) == 1:
                broker.kill()
                time.sleep(dice.uniform(0.1, 2))
                broker.start()
                seen(stream)
            assert stream.stop(signal.SIGKILL) == -signal.SIGKILL, stream.log
    finally:
        done.set()
        publisher.join()
    stream = start()
    seen(stream)
    assert stream.stop() == 0, stream.log
    ids = live_ids(output)
    expected = sorted(f"{partition}-{number}" for partition, count in sent.items() for number in range(count))
    assert len(ids) == len(set(ids)), "doubled"
    assert ids == expected, "lost"
    print(f"{len(ids):,} offsets, {KILLS} kills of the reader, {BROKER_KILLS} of the broker")
