"""Kafka read by this process: files in place decide where to begin, so each offset is there once, whatever ends it."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from pipelines.cli.options import parse
from pipelines.data_set import coverage, pending
from pipelines.data_set.coverage import Covers
from pipelines.data_set.lock import Lock
from pipelines.data_set.recovery import commit_pending
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.accounting import describe_stream
from pipelines.runs.plan import Plan, check_model
from pipelines.streams import kafka
from pipelines.streams.buffer import LoopOptions
from pipelines.streams.kafka import PARTITIONS_SECONDS, KafkaSource
from pipelines.streams.loop import Loop
from pipelines.streams.sources import Received, SourceUnavailableError
from pipelines.streams.stages import Stages
from tests.kafka import PARTITIONS, Broker, broker_process
from tests.pipelines.conftest import Finished
from tests.pipelines.streams.parts import Clock, until
from tests.pipelines.streams.test_streaming import run_until
from tests.streams import covered, live_ids
from torchmoji_core.errors import InputError, LockHeldError, RunError
from transforms import metrics
from transforms.addresses import KafkaTopic
from transforms.output.kafka import KafkaSink

Score = Callable[..., Finished]
TOPIC = "posts"


@pytest.fixture(scope="module")
def brokers() -> Broker:
    """One for all tests, since it takes a while to start; each test has a topic of its own."""
    return Broker()


@pytest.fixture
def topic(brokers: Broker, request: pytest.FixtureRequest) -> str:
    name = str(request.node.name).partition("[")[0][-60:]
    for partition in range(PARTITIONS):
        brokers.send(name, [], partition)
    return name


def letters_of(output: Path) -> dict[str, str]:
    """Reasons by position."""
    files = output.glob("_dead_letters/**/*.jsonl")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {letter["position"]: letter["reason"] for letter in found}


# --- the whole command -----------------------------------------------------------------------------------------------


def run(run_score: Score, brokers: Broker, topic: str, act: Callable[[], None], *options: str) -> Finished:
    return run_until(run_score, act, "--commit_every", "200ms", *options, uri=f"kafka://{brokers.address}/{topic}")


def test_each_message_once_over_two_starts(
    brokers: Broker, topic: str, tmp_path: Path, run_score: Score, run_verify: Score
) -> None:
    """Rows, dead letters, tombstones; the second start goes on where the files of the first end."""
    output = tmp_path / "out"
    for partition in range(PARTITIONS):
        brokers.posts(topic, 20, partition)
    poison = [b"{", b"\0\0\0\0\x11{}", b'{"text": "' + b"x" * (600 << 10)]
    brokers.send(topic, [*poison, None, b""], partition=1)
    group = ("--consumer_option", "group.id=watched", "--max_dead_fraction", "1", "--report", "report.json")

    def first() -> None:
        until(lambda: output.exists() and len(live_ids(output)) == 80 and len(letters_of(output)) == 4)

    finished = run(run_score, brokers, topic, first, *group)
    assert finished.status == 0, finished.err
    reasons = letters_of(output)
    assert sorted(reasons) == ["1:20", "1:21", "1:22", "1:24"]
    assert "schema registry (magic byte 0, schema 17)" in reasons["1:21"] and reasons["1:24"] == "empty message"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["read"], report["scored"], report["dead"], report["notices"]) == (85, 80, 4, 1)
    assert covered(output) == {"0": [[0, 19]], "1": [[0, 24]], "2": [[0, 19]], "3": [[0, 19]]}

    def second() -> None:
        brokers.posts(topic, 5, partition=2, first=20)
        until(lambda: len(live_ids(output)) == 85)

    finished = run(run_score, brokers, topic, second, *group)
    assert finished.status == 0, finished.err
    ids = [f"{partition}-{number}" for partition in range(PARTITIONS) for number in range(25 if partition == 2 else 20)]
    assert live_ids(output) == sorted(ids) and len(letters_of(output)) == 4
    assert run_verify().status == 0
    watched = Consumer({"bootstrap.servers": brokers.address, "group.id": "watched"})
    (at,) = watched.committed([TopicPartition(topic, 2)], timeout=10)
    watched.close()
    assert at.offset == 25, "for those who watch how far it is"


def test_from_the_end_of_a_topic(brokers: Broker, topic: str, tmp_path: Path, run_score: Score) -> None:
    """Where it began is recorded before anything is read."""
    output = tmp_path / "out"
    brokers.posts(topic, 5)

    def act() -> None:
        until(lambda: output.exists() and _recorded(output) == {"0": 5, "1": 0, "2": 0, "3": 0})
        brokers.posts(topic, 2, first=5)
        brokers.posts(topic, 1, partition=3)
        until(lambda: len(live_ids(output)) == 3)

    finished = run(run_score, brokers, topic, act, "--consumer_option", "auto.offset.reset=latest")
    assert finished.status == 0, finished.err
    assert live_ids(output) == ["0-5", "0-6", "3-0"]
    assert covered(output) == {"0": [[0, 6]], "1": [], "2": [], "3": [[0, 0]]}


def test_what_is_wrong_is_said_before_the_stream_begins(
    brokers: Broker, topic: str, run_score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "REQUEST_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    brokers.posts(topic, 1)
    for address, options, expected, status in (
        (f"{brokers.address}/{topic}x", (), "there is no such topic; create it first", 2),
        (f"{nobody}/{topic}", (), "cannot be reached", 1),
        (f"{brokers.address}/{topic}", ("fetch.max=5",), 'No such configuration property: "fetch.max"', 2),
        (f"{brokers.address}/{topic}", ("enable.auto.commit=true",), "enable.auto.commit cannot be given", 2),
        (f"{brokers.address}/{topic}", ("metadata.broker.list=b:1",), "metadata.broker.list cannot be given", 2),
        (f"{brokers.address}/{topic}", ("auto.offset.reset=now",), "must be earliest or latest, not 'now'", 2),
    ):
        given = [part for option in options for part in ("--consumer_option", option)]
        finished = run_score("--streaming", "--input", f"kafka://{address}", "--output", "out", *given)
        assert finished.status == status and expected in finished.err, finished.err
        assert not Path("out").exists()
    addresses = (f"kafka://{brokers.address}/{topic}", f"kafka://localhost:{brokers.address.split(':')[1]}/{topic}")
    finished = run_score("--streaming", "--input", addresses[0], "--output", "out", "--publish", addresses[1])
    assert finished.status == 2 and "rows would come back as messages" in finished.err, finished.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("group.id", "", "group.id is empty"),
        ("default.topic.config", "x", "names and values are those of librdkafka"),
        ("client.id", "a\udcff", "client.id': its name or value is not UTF-8"),
        ("a\udcff", "x", "not UTF-8"),
    ],
)
def test_settings_that_end_the_client_are_refused(
    open_source: Callable[..., KafkaSource], name: str, value: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        open_source(**{name: value})


def test_two_streams_of_one_output(brokers: Broker, topic: str, run_score: Score, tmp_path: Path) -> None:
    """The second would double everything."""
    brokers.posts(topic, 1)

    def act() -> None:
        until(lambda: (tmp_path / "out" / "_journal" / "_lock.json").exists())
        with pytest.raises(LockHeldError), Lock("out/_journal"):
            pass

    assert run(run_score, brokers, topic, act).status == 0
    assert not (tmp_path / "out" / "_journal").exists()


def test_rows_are_published_before_they_count(
    brokers: Broker, topic: str, tmp_path: Path, run_score: Score, open_source: Callable[..., KafkaSource]
) -> None:
    rows = f"{topic}-rows"
    brokers.posts(topic, 30)
    publish = ("--publish", f"kafka://{brokers.address}/{rows}")
    finished = run(run_score, brokers, topic, lambda: until(lambda: len(live_ids(tmp_path / "out")) == 30), *publish)
    assert finished.status == 0, finished.err
    published = pull(KafkaSource(KafkaTopic(brokers.address, rows), {}, {}), 30)
    assert {item.message.attributes["kafka.key"] for item in published} == set(live_ids(tmp_path / "out"))
    assert all(json.loads(item.message.data)["fingerprint"] for item in published)


def test_rows_that_a_topic_does_not_take(brokers: Broker, topic: str) -> None:
    sink = KafkaSink(KafkaTopic(brokers.address, topic), {"message.max.bytes": "1000"})
    sink.publish([pa.record_batch({"id": ["a"], "note": ["short"]})])
    with pytest.raises(
        RunError, match=r"rows cannot be published: .*too large; raise max\.message\.bytes of the topic"
    ):
        sink.publish([pa.record_batch({"id": ["a"], "note": ["x" * 2000]})])
    with pytest.raises(InputError, match=r"--producer_option enable\.idempotence cannot be given"):
        KafkaSink(KafkaTopic(brokers.address, topic), {"enable.idempotence": "false"})
    with pytest.raises(InputError, match=r"--publish kafka://\S+x: there is no such topic; create it first"):
        KafkaSink(KafkaTopic(brokers.address, f"{topic}x"), {"allow.auto.create.topics": "false"})
    with pytest.raises(InputError, match="--producer_option or --producer_config: No such configuration property"):
        KafkaSink(KafkaTopic(brokers.address, topic), {"acknowledge": "all"})


# --- the loop, ended at each place ----------------------------------------------------------------------------------


class DiedError(Exception):
    """The process ends here."""


class Dying:
    """A topic for rows that ends the process when all files are in place, and none has a record."""

    def __init__(self) -> None:
        self.dies = False

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        if self.dies:
            raise DiedError


class Process:
    """What a process does from its start until it ends, at a place that a test chooses; nothing is tidied up."""

    def __init__(self, output: Path, model: str, uri: str, *options: str) -> None:
        config, _ = parse(
            [
                "--streaming",
                "--input",
                uri,
                "--output",
                str(output),
                "--model",
                model,
                "--max_batch_rows",
                "10",
                *options,
            ]
        )
        assert config.stream is not None and isinstance(config.stream.source, KafkaTopic)
        plan = Plan(config, (), check_model(config)).with_new_run(())
        pending.begin(str(output), describe_stream(plan))
        records = [record.covers for record in pending.read(str(output)).records]
        covers = coverage.union(DataSet.read(str(output)).covers, *records)
        self.source = KafkaSource(config.stream.source, config.stream.consumer_settings(), covers)
        self.topic = Dying()
        stages = Stages(plan.config, config.stream, self.topic)
        self.loop = Loop(self.source, stages, LoopOptions(50, 1 << 20, 0.01, config.limits))

    def end(self) -> None:
        self.loop.abandon()
        until(lambda: not self.loop.is_running)
        self.source.close()


def test_nothing_is_lost_or_doubled_wherever_it_ends(brokers: Broker, topic: str, model: str, tmp_path: Path) -> None:
    output, uri = tmp_path / "out", f"kafka://{brokers.address}/{topic}"
    sent = 0
    for place in ("recorded", "in place", "recorded", "committed", "in place", "end"):
        brokers.posts(topic, 30, partition=sent % 2, first=sent)
        sent += 30
        process = Process(output, model, uri)
        process.topic.dies = place == "in place"
        process.loop.start()
        if process.topic.dies:
            assert process.loop.ended.wait(60) and isinstance(process.loop.error, DiedError)
        else:
            until(lambda process=process: process.loop.written and len(process.loop) == 0)
            if place == "end":
                until(lambda sent=sent: sum(_recorded(output).values()) == sent)
        process.end()
        if place in ("committed", "end"):
            commit_pending(DataSet.read(str(output)))
    assert len(live_ids(output)) == sent == len(set(live_ids(output)))


def _recorded(output: Path) -> dict[str, int]:
    """By partition, how many offsets are covered."""
    records = [record.covers for record in pending.read(str(output)).records]
    covers = coverage.union(DataSet.read(str(output)).covers, *records)
    return {
        partition: sum(last - first + 1 for first, last in intervals)
        for partitions in covers.values()
        for partition, intervals in partitions.items()
    }


# --- the source ------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_source(brokers: Broker, topic: str) -> Iterator[Callable[..., KafkaSource]]:
    sources: list[KafkaSource] = []

    def open_(covers: Covers | None = None, kind: type[KafkaSource] = KafkaSource, **settings: str) -> KafkaSource:
        named = {"fetch.wait.max.ms": "50"} | {name.replace("_", "."): value for name, value in settings.items()}
        sources.append(kind(KafkaTopic(brokers.address, topic), named, covers or {}, clock))
        return sources[-1]

    clock = Clock()
    open_.clock = clock  # type: ignore[attr-defined]
    yield open_
    for source in sources:
        source.close()


def pull(source: KafkaSource, count: int) -> list[Received]:
    """So many messages, and no more."""
    found: list[Received] = []
    until(lambda: found.extend(source.pull(count - len(found))) or len(found) >= count)
    return found


def positions(received: Sequence[Received]) -> list[str]:
    return [item.message.position for item in received]


def test_attributes(brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]) -> None:
    headers = {"lang": b"en", "broken": b"\xff", "none": None}
    brokers.send(topic, [b"{}"], partition=3, key=b"k", headers=headers, timestamp=1_700_000_000_123)
    (received,) = pull(open_source(), 1)
    assert received.message.attributes == {
        "lang": "en", "broken": "\ufffd", "kafka.key": "k", "kafka.topic": topic, "kafka.partition": "3",
        "kafka.offset": "0", "kafka.timestamp": "1700000000123",
    }  # fmt: skip
    assert received.message.published == 1_700_000_000_123_000 and received.message.position == "3:0"


def test_what_is_covered_is_not_read_again(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]
) -> None:
    brokers.posts(topic, 12)
    source = open_source()
    received = pull(source, 12)
    receipts = [item.receipt for item in received]
    covers = source.covers([*receipts[:3], *receipts[5:8]])
    assert positions(pull(open_source(covers), 6)) == ["0:3", "0:4", "0:8", "0:9", "0:10", "0:11"]
    assert source.covers(receipts[2:5]) == {name: {"0": [[2, 4]]} for name in covers}


def test_a_first_start_at_the_end_and_the_next_one(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]
) -> None:
    """What comes between the two is read, even if the first has written nothing but where it began."""
    brokers.posts(topic, 5)
    source = open_source(auto_offset_reset="latest")
    brokers.posts(topic, 1)
    brokers.posts(topic, 1, partition=1)
    assert sorted(positions(pull(open_source(source.passed_over, auto_offset_reset="latest"), 2))) == ["0:5", "1:0"]
    assert [*open_source().passed_over.values()] == [{str(partition): [] for partition in range(PARTITIONS)}]


def test_new_partitions_are_read_from_their_beginning(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]
) -> None:
    class Growing(KafkaSource):
        """Of a topic that had two partitions when it was looked at first."""

        has_grown = False

        def assign(self, partitions: dict[int, object]) -> None:  # type: ignore[override]
            super().assign({number: partitions[number] for number in sorted(partitions)[: 4 if self.has_grown else 2]})

    for partition in range(PARTITIONS):
        brokers.posts(topic, 2, partition)
    source = open_source(kind=Growing)
    assert sorted(positions(pull(source, 4))) == ["0:0", "0:1", "1:0", "1:1"]
    source.has_grown = True  # type: ignore[attr-defined]
    open_source.clock.seconds += PARTITIONS_SECONDS  # type: ignore[attr-defined]
    assert sorted(positions(pull(source, 4))) == ["2:0", "2:1", "3:0", "3:1"]


def test_what_retention_has_deleted_is_said_and_counted(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    """Before a start, and under a stream that reads too slowly."""
    source = open_source_at(brokers, topic, open_source, 3)
    large = [b"x" * (900 << 10)] * 8
    brokers.send(topic, large)  # of which five megabytes are kept
    tally = metrics.Tally()
    with caplog.at_level(logging.WARNING), tally.counting():
        (first,) = pull(open_source(source.covers(["0:0:2"])), 1)
    assert int(first.message.position[2:]) == tally.counts()["lost"] + 3 > 3
    assert f"partition 0: offsets 3 to {int(first.message.position[2:]) - 1} were deleted" in caplog.text
    assert first.receipt.startswith("0:3:"), "it is said once"


def test_what_is_deleted_of_a_partition_that_was_never_read(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    """The first start has recorded that it would begin at 0; what is gone before the first start is not lost."""
    brokers.posts(topic, 1, partition=1)
    begun = open_source().passed_over
    brokers.send(topic, [b"x" * (900 << 10)] * 8)  # of which five megabytes are kept
    first = open_source()
    assert not caplog.text and first.partitions[0][0][0] == 0
    kept = first.partitions[0][0][1] + 1
    with caplog.at_level(logging.WARNING):
        later = open_source(begun)
    assert f"partition 0: offsets 0 to {kept - 1} were deleted" in caplog.text
    for source in (first, later):
        assert f"0:{kept}" in positions(pull(source, 8 - kept + 1))


def open_source_at(brokers: Broker, topic: str, open_source: Callable[..., KafkaSource], count: int) -> KafkaSource:
    """A source that has read so many messages."""
    brokers.posts(topic, count)
    source = open_source()
    pull(source, count)
    return source


def test_a_stream_that_retention_overtakes(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]
) -> None:
    brokers.send(topic, [b"x" * 1000] * 20)
    source = open_source(fetch_message_max_bytes="1500", queued_min_messages="1", fetch_queue_backoff_ms="10")
    received = pull(source, 1)
    last = brokers.send(topic, [b"x" * (900 << 10)] * 8)[-1]
    tally = metrics.Tally()
    with tally.counting():
        until(lambda: received.extend(source.pull(1)) or received[-1].message.position == f"0:{last[1]}")
    assert tally.counts()["lost"] == last[1] + 1 - len(received) > 0
    assert source.covers([item.receipt for item in received]) == source.covers([f"0:0:{last[1]}"])


def test_a_broker_that_goes_away_is_waited_for(open_source: Callable[..., KafkaSource]) -> None:
    with broker_process() as broker:
        broker.posts(TOPIC, 1)
        source = KafkaSource(KafkaTopic(broker.address, TOPIC), {}, {})
        pull(source, 1)
    with pytest.raises(SourceUnavailableError):
        until(lambda: source.pull(1))
    source.close()


def test_a_topic_that_was_made_anew(brokers: Broker, topic: str, open_source: Callable[..., KafkaSource]) -> None:
    source = open_source_at(brokers, topic, open_source, 3)
    with pytest.raises(InputError, match="partition 0 ends at offset 3, and what is written goes up to 10"):
        open_source(source.covers(["0:0:9"]))


def test_a_pull_is_bounded_and_heeds_a_stop(
    brokers: Broker, topic: str, open_source: Callable[..., KafkaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "PULLED_BYTES", 2500)
    monkeypatch.setattr(kafka, "TAKEN_AT_ONCE", 2)
    brokers.send(topic, [b"x" * 1000] * 20)
    source = open_source()
    until(lambda: pull(source, 1))
    until(lambda: len(source.pull(2)) == 2)
    assert all(len(source.pull(100)) <= 3 for _ in range(3))
    waiting = threading.Thread(target=lambda: [source.pull(1) for _ in range(50)])
    waiting.start()
    source.stop()
    waiting.join(60)
    assert not waiting.is_alive() and source.pull(5) == []
