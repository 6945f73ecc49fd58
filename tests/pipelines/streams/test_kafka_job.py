"""A job that reads Kafka on a cluster: what its source promises, and the whole job on Beam's runner for tests."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.utils.timestamp import Timestamp

from pipelines.cli.options import parse
from pipelines.data_set import pending
from pipelines.data_set.recovery import commit_pending
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.accounting import describe_stream
from pipelines.runs.plan import Plan, check_model
from pipelines.runs.worker_pool import serving
from pipelines.streams import kafka
from pipelines.streams.kafka import KafkaSource
from pipelines.streams.kafka_job import KafkaPartition, PartitionReader, Position, ScoreMessages
from pipelines.streams.sources import Received
from tests.kafka import Broker, free_ports
from tests.pipelines.conftest import Finished
from tests.pipelines.streams.parts import until
from tests.pipelines.streams.test_streaming import run_until
from tests.processes import ScoreProcess
from tests.streams import covered, live_ids
from torchmoji_core.errors import InputError
from transforms.addresses import KafkaTopic
from transforms.output.publish import PublishScores
from transforms.scoring.per_process import PerProcess

Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def brokers() -> Broker:
    return Broker()


@pytest.fixture
def partition(brokers: Broker, request: pytest.FixtureRequest) -> KafkaPartition:
    """With thirty posts, of which those from 3 to 5 are in files already."""
    topic = KafkaTopic(brokers.address, str(request.node.name)[-60:])
    brokers.posts(topic.topic, 30)
    source = KafkaSource(topic, {}, {})
    source.close()
    return KafkaPartition(topic, source.name, 0, ((3, 5),), (("fetch.wait.max.ms", "50"),))


def read(reader: PartitionReader, count: int, begin: Callable[[], bool] | None = None) -> list[str]:
    """Receipts of the next messages."""
    found: list[str] = []
    until(begin or reader.advance)
    while True:
        found.append(reader.get_current().receipt)
        if len(found) == count:
            return found
        until(reader.advance)


def test_a_reader_begins_where_files_or_its_mark_say(partition: KafkaPartition) -> None:
    first = partition.create_reader(None, None)
    assert first.get_checkpoint_mark() == Position(0), "before anything is read"
    assert read(first, 5, first.start) == ["0:0:0", "0:1:1", "0:2:2", "0:6:6", "0:7:7"]
    coder = partition.get_checkpoint_mark_coder()
    mark = coder.decode(coder.encode(first.get_checkpoint_mark()))
    assert read(first, 22)[-1] == "0:29:29"
    assert not first.advance(), "it does not wait"
    second = partition.create_reader(None, mark)
    assert read(second, 2, second.start) == ["0:8:8", "0:9:9"]
    begun = time.time()
    assert begun - 60 < float(second.get_watermark()) < begun
    assert second.get_current_timestamp() <= Timestamp.of(time.time())
    for reader in (first, second):
        reader.close()


def test_a_runner_that_keeps_no_readers_gets_on(partition: KafkaPartition) -> None:
    """A bundle ends as soon as there is nothing, and the next one may have a reader of its own."""
    mark, found = None, []
    for _ in range(3):
        reader = partition.create_reader(None, mark)
        assert reader.start()
        found.append(reader.get_current().receipt)
        mark = reader.get_checkpoint_mark()
        reader.close()
    assert found == ["0:0:0", "0:1:1", "0:2:2"]


def test_a_source_is_always_the_same_bytes(partition: KafkaPartition) -> None:
    """Beam finds by them the reader that it has parked."""
    pickled = pickle.dumps(partition)
    again = pickle.loads(pickled)
    assert again == partition and pickle.dumps(again) == pickled
    assert partition.split(20) == [partition]


def test_a_reader_waits_for_a_broker_that_is_not_there_yet(
    partition: KafkaPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "REQUEST_SECONDS", 0.5)
    (port,) = free_ports(1)
    gone = KafkaTopic(f"127.0.0.1:{port}", "posts")
    reader = KafkaPartition(gone, partition.name, 0, ()).create_reader(None, Position(7))
    assert not reader.start() and not reader.advance()
    assert reader.get_checkpoint_mark() == Position(7)
    reader.close()


def test_a_worker_that_finds_another_topic_reads_nothing(partition: KafkaPartition) -> None:
    reader = KafkaPartition(partition.topic, "kafka:elsewhere:posts", 0, ()).create_reader(None, None)
    with pytest.raises(InputError, match="workers find another topic there"):
        reader.start()


def test_a_checkpoint_that_is_older_than_what_is_recorded(
    partition: KafkaPartition, model: str, tmp_path: Path
) -> None:
    """As a runner has after a kill that keeps checkpoints: it reads again what is recorded since, and beyond."""
    output, whole = str(tmp_path / "out"), replace(partition, covered=())
    config, _ = parse(["--streaming", "--input", partition.topic.uri, "--output", output, "--model", model])
    plan = Plan(config, (), check_model(config)).with_new_run(())
    pending.begin(output, describe_stream(plan))
    step = ScoreMessages(plan.config, partition.name, PerProcess())
    step.setup()

    def bundle(reader: PartitionReader, count: int) -> Position:
        step.start_bundle()
        for _ in range(count):
            until(reader.advance)
            step.process(reader.get_current())
        step.finish_bundle()
        return reader.get_checkpoint_mark()

    killed = whole.create_reader(None, None)
    mark = bundle(killed, 10)
    assert bundle(killed, 10) == Position(20) != mark
    restored = whole.create_reader(None, mark)
    bundle(restored, 5)
    commit_pending(DataSet.read(output))
    assert bundle(restored, 15) == Position(30)
    commit_pending(DataSet.read(output))
    assert live_ids(Path(output)) == sorted(f"0-{number}" for number in range(30))
    assert covered(Path(output)) == {"0": [[0, 29]]}
    for reader in (killed, restored):
        reader.close()


def test_a_job_that_is_killed_is_continued(
    brokers: Broker, model: str, tmp_path: Path, run_score: Run, run_verify: Run
) -> None:
    """By another kind of stream, so that both must mean the same by their records."""
    topic, output = "continued", tmp_path / "out"
    for partition in range(4):
        brokers.posts(topic, 20, partition)
    brokers.send(topic, [b"{", None], partition=1)
    brokers.send(f"{topic}-rows", [])
    uri = f"kafka://{brokers.address}/{topic}"
    publish = ("--publish", f"{uri}-rows")
    options = ("--streaming", "--input", uri, "--output", "out", "--model", model, "--max_latency", "200ms", *publish)
    job = ScoreProcess(tmp_path, *options, "--runner", "FnApiRunner")
    try:
        job.wait_for(lambda: len(list(output.glob("_journal/*/*.json"))) >= 6)
    finally:
        job.close()
    assert run_verify("--clean").status == 0
    assert live_ids(output)  # all, or as many as were recorded by then

    def act() -> None:
        brokers.posts(topic, 5, first=20)
        until(lambda: len(live_ids(output)) == 85)

    finished = run_until(run_score, act, "--commit_every", "200ms", *publish, uri=uri)
    assert finished.status == 0, finished.err
    ids = [f"{partition}-{number}" for partition in range(4) for number in range(20)]
    assert live_ids(output) == sorted([*ids, *(f"0-{number}" for number in range(20, 25))])
    assert covered(output) == {"0": [[0, 24]], "1": [[0, 21]], "2": [[0, 19]], "3": [[0, 19]]}
    published = KafkaSource(KafkaTopic(brokers.address, f"{topic}-rows"), {}, {})
    found: set[str] = set()
    until(
        lambda: found.update(item.message.attributes["kafka.key"] for item in published.pull(1000)) or set(ids) <= found
    )
    published.close()


def test_of_a_job_that_no_runner_has_taken_nothing_is_left(
    brokers: Broker, model: str, tmp_path: Path, run_score: Run
) -> None:
    """Or its stream would count as one that may be going on, for ever."""
    brokers.posts("refused", 1)
    with serving(0) as port:  # it speaks gRPC, and is no job server
        finished = run_score(
            "--streaming", f"--input=kafka://{brokers.address}/refused", "--output=out", f"--model={model}",
            "--runner=PortableRunner", f"--job_endpoint=localhost:{port}", f"--environment_config=localhost:{port}",
            "--environment_type=EXTERNAL",
        )  # fmt: skip
    assert finished.status == 1 and "refuses" in finished.err
    assert not [*tmp_path.rglob("_journal/*")]


def test_rows_of_a_job_that_reads_something_else_are_published(brokers: Broker) -> None:
    brokers.send("published", [])
    topic = KafkaTopic(brokers.address, "published")
    batch = pa.RecordBatch.from_pylist([{"id": "a", "text": "so happy"}, {"id": "b", "text": "so late"}])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        pipeline | beam.Create([batch]) | PublishScores(topic, partial(dict, acks="all"))
    source = KafkaSource(topic, {}, {})
    found: list[Received] = []
    until(lambda: found.extend(source.pull(10)) or len(found) == 2)
    source.close()
    assert {item.message.attributes["kafka.key"] for item in found} == {"a", "b"}
    assert all("text" not in json.loads(item.message.data) for item in found)
