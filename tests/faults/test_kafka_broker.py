"""Apache Kafka itself, which `make test-kafka` fetches and these tests start and kill."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    NewPartitions,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from pipelines.data_set.coverage import Covers
from pipelines.streams.kafka import PARTITIONS_SECONDS, KafkaSource
from pipelines.streams.kafka_job import KafkaPartition
from pipelines.streams.sources import Received
from tests.faults.kafka_kills import (
    assert_all_is_published,
    assert_all_is_there,
    catch_up,
    kill_at_places,
    kill_at_random,
    options_of,
)
from tests.kafka import Broker, RealBroker, Traffic, need_apache_kafka
from tests.pipelines.streams.parts import Clock, until
from tests.processes import ScoreProcess
from tests.streams import live_ids
from torchmoji_core.errors import InputError, RunError, UnavailableError
from transforms import metrics
from transforms.addresses import KafkaTopic

pytestmark = pytest.mark.kafka
KILLS, BROKER_KILLS = 30, 2
PARTITIONS = 3
PASSWORD = "b0tticelli"
SCRAM = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}


def sasl_settings() -> dict[str, object]:
    """A password is asked for, in each of three ways."""
    modules, listener = "org.apache.kafka.common.security", "listener.name.sasl_ssl"
    return {
        "sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM)),
        f"{listener}.plain.sasl.jaas.config": f'{modules}.plain.PlainLoginModule required user_scores="{PASSWORD}";',
    } | {f"{listener}.{way.lower()}.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;" for way in SCRAM}


def tls_settings(directory: Path) -> dict[str, object]:
    """A key of our own, whose certificate is in `ca.pem`."""
    store = (
        "-keystore",
        str(directory / "keys.p12"),
        "-storetype",
        "PKCS12",
        "-storepass",
        PASSWORD,
        "-alias",
        "broker",
    )
    name = ("-dname", "CN=broker", "-ext", "SAN=IP:127.0.0.1", "-keyalg", "EC", "-validity", "2")
    subprocess.run(["keytool", "-genkeypair", *store, *name], check=True, capture_output=True)
    certificate = ("keytool", "-exportcert", "-rfc", "-file", str(directory / "ca.pem"))
    subprocess.run([*certificate, *store], check=True, capture_output=True)
    return {
        "ssl.keystore.location": directory / "keys.p12",
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.password": PASSWORD,
    }


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    need_apache_kafka()
    directory = tmp_path_factory.mktemp("kafka")
    broker = RealBroker(directory, sasl_settings() | tls_settings(directory))
    broker.start()
    yield broker
    broker.kill()


def pull(source: KafkaSource, count: int) -> list[str]:
    """Receipts of so many messages."""
    found: list[Received] = []
    until(lambda: found.extend(source.pull(100)) or len(found) >= count)
    return [item.receipt for item in found]


def test_transactions_retention_and_new_partitions(broker: RealBroker) -> None:
    admin = broker.create("small", 1)
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
    broker.create("guarded", 1)
    Broker(broker.address).posts("guarded", 5)
    settings, output = tmp_path / "consumer.properties", tmp_path / "out"
    tls = f"security.protocol=SASL_SSL\nssl.ca.location={broker.directory}/ca.pem\n"
    sasl = f"{tls}sasl.mechanism=PLAIN\nsasl.username=scores\nsasl.password="
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


@pytest.mark.parametrize("way", SCRAM)
def test_a_password_that_is_not_sent(broker: RealBroker, way: str) -> None:
    """Each side proves to the other that it knows it; the broker has learnt it before."""
    topic = KafkaTopic(broker.guarded, way.lower())
    admin = broker.create(topic.topic, 1)
    Broker(broker.address).posts(topic.topic, 5)
    known = UserScramCredentialUpsertion("scores", ScramCredentialInfo(SCRAM[way], 4096), PASSWORD.encode())
    for learnt in admin.alter_user_scram_credentials([known]).values():
        learnt.result(60)
    settings = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": f"{broker.directory}/ca.pem",
        "sasl.mechanism": way,
        "sasl.username": "scores",
    }
    with pytest.raises(InputError, match=r"may not be read: .*Authentication failed") as refused:
        KafkaSource(topic, settings | {"sasl.password": f"{PASSWORD}1"}, {})
    assert PASSWORD not in str(refused.value)
    source = KafkaSource(topic, settings | {"sasl.password": PASSWORD}, {})
    assert len(pull(source, 5)) == 5
    source.close()


def test_tls(broker: RealBroker, tiny_model: str, tmp_path: Path) -> None:
    """With a certificate that nobody else knows."""
    broker.create("secret", 1)
    Broker(broker.address).posts("secret", 5)
    settings, output = tmp_path / "consumer.properties", tmp_path / "out"
    source = ("--streaming", "--input", f"kafka://{broker.encrypted}/secret", "--output", "out", "--model", tiny_model)
    options = ("--consumer_config", str(settings), "--commit_every", "300ms")
    settings.write_text("security.protocol=SSL\n")
    stream = ScoreProcess(tmp_path, *source, *options)
    assert stream.process.wait(60) == 2 and "certificate" in stream.log, stream.log

    settings.write_text(f"security.protocol=SSL\nssl.ca.location={broker.directory}/ca.pem\n")
    stream = ScoreProcess(tmp_path, *source, *options)
    stream.wait_for(lambda: output.exists() and len(live_ids(output)) == 5)
    assert stream.stop() == 0


def test_what_messages_may_be(broker: RealBroker) -> None:
    """Four compressions, a megabyte, headers, a key, and none."""
    broker.create("kinds", 1)
    large = json.dumps({"text": "so happy"}).encode().ljust(1 << 20)
    for kind in ("gzip", "snappy", "lz4", "zstd"):
        sender = Broker(broker.address, **{"compression.type": kind, "message.max.bytes": 2 << 20})
        sender.send("kinds", [large] * 2, headers=[("of", kind.encode())])
    Broker(broker.address).send("kinds", [None], key=b"k")
    source = KafkaSource(KafkaTopic(broker.address, "kinds"), {}, {})
    found: list[Received] = []
    until(lambda: found.extend(source.pull(100)) or len(found) == 9)
    source.close()
    assert [item.message.data == large for item in found] == [True] * 8 + [False]
    assert [item.message.attributes.get("of") for item in found][:8:2] == ["gzip", "snappy", "lz4", "zstd"]
    assert found[8].message.is_tombstone and found[8].message.attributes["kafka.key"] == "k"


def test_a_topic_that_was_made_anew_is_told_from_the_old_one(broker: RealBroker) -> None:
    """It is longer already, so offsets tell nothing."""
    admin, topic, clock = broker.create("again", 1), KafkaTopic(broker.address, "again"), Clock()
    Broker(broker.address).posts("again", 3)
    source = KafkaSource(topic, {}, {}, clock)
    covers = source.covers(pull(source, 3))
    nameless = source.name.rpartition(":")[0]
    reader = KafkaPartition(topic, nameless, 0, ((0, 1),)).create_reader(None, None)
    until(reader.start)
    assert reader.get_current().receipt == "0:2:2", "of a job whose launcher was not told the id"
    reader.close()
    for deleted in admin.delete_topics(["again"]).values():
        deleted.result(60)
    until(lambda: _creates(broker, "again"))
    Broker(broker.address).posts("again", 10)
    with pytest.raises(InputError, match=r"the topic was made anew: its id is .*; give another --output"):
        KafkaSource(topic, {}, covers)
    with pytest.raises(RunError, match=r"made anew under the stream|no such topic any more"):

        def read_on() -> bool:
            clock.seconds += PARTITIONS_SECONDS
            source.pull(100)
            return False

        until(read_on)
    source.close()


def _creates(broker: RealBroker, topic: str) -> bool:
    """A topic that was deleted is gone a little later."""
    try:
        broker.create(topic, 1)
    except Exception:
        return False
    return True


def test_a_leader_that_goes_away(broker: RealBroker, tiny_model: str, tmp_path: Path) -> None:
    """Two brokers have each partition; the one that leads some of them is killed, and later the other leads again. What
    only the killed one has cannot be read meanwhile."""
    (tmp_path / "second").mkdir()
    second = RealBroker(tmp_path / "second", first=broker)
    second.start()
    admin = AdminClient({"bootstrap.servers": broker.address})
    until(lambda: _brokers(admin) == 2)
    broker.create("two", PARTITIONS, copies=2)
    options = ("--input", f"kafka://{broker.address},{second.address}/two", "--model", tiny_model)
    with Traffic(Broker(f"{broker.address},{second.address}"), "two", PARTITIONS) as traffic:
        stream = ScoreProcess(tmp_path, "--streaming", "--output", "out", "--commit_every", "300ms", *options)
        for change in (second.kill, second.start):
            stream.wait_for(lambda: len(live_ids(tmp_path / "out")) > 10)
            change()
            wanted = len(traffic) + 100
            stream.wait_for(lambda wanted=wanted: len(live_ids(tmp_path / "out")) >= wanted, 120)
        assert stream.stop() == 0, stream.log
        traffic.stop()
        catch_up(tmp_path, traffic, *options)
    traffic.assert_once(tmp_path / "out")
    for created in admin.create_topics([NewTopic("apart", 2, replica_assignment=[[broker.id], [second.id]])]).values():
        created.result(60)
    second.kill()
    until(lambda: _brokers(admin) == 1)
    with pytest.raises(InputError, match="cannot be reached: partition 1 has no leader at the moment") as refused:
        KafkaSource(KafkaTopic(broker.address, "apart"), {}, {})
    assert isinstance(refused.value.__cause__, UnavailableError)


def _brokers(admin: AdminClient) -> int:
    """How many the cluster has; 0 if one was asked that has just been killed."""
    try:
        return len(admin.list_topics(timeout=10).brokers)
    except KafkaException:
        return 0


def test_every_offset_once_whoever_is_killed(broker: RealBroker, tiny_model: str, tmp_path: Path) -> None:
    """The reader at random and at each place, and the broker under it."""
    broker.create("posts", PARTITIONS)
    broker.create("rows", PARTITIONS)
    dice, options = random.Random(11), options_of(broker.address, tiny_model)

    def disturb(number: int) -> bool:
        if number % (KILLS // BROKER_KILLS) != 1:
            return False
        broker.kill()
        time.sleep(dice.uniform(0.1, 2))
        broker.start()
        return True

    with Traffic(Broker(broker.address), "posts", PARTITIONS) as traffic:
        kill_at_random(tmp_path, traffic, dice, KILLS, *options, disturb=disturb)
        kill_at_places(tmp_path, traffic, 2, *options)
        assert_all_is_there(tmp_path, traffic, broker.address, tiny_model)
        assert_all_is_published(traffic, broker.address)
