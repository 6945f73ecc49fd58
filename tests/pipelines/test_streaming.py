"""Streams in real time: what is acknowledged is in place, whatever happens to the process that reads."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from pipelines import pubsub_reader
from pipelines.data_set import live_files
from pipelines.pubsub_reader import PubSubReader, PullSize
from tests.fake_pubsub import FakePubSub, FakeSubscription
from tests.pipelines.conftest import WORDS, Finished
from tests.sockets import listeners
from tests.streams import SUBSCRIPTION, Sender, read_rows, result_files, rows_in_place, running
from tests.tiny import tiny_bundle
from torchmoji_core.errors import InputError, is_outage
from transforms.commit import WrittenFile
from transforms.deliveries import Deliveries

TOPIC = "projects/my-project/topics/rows"


@pytest.fixture
def server() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        fake.subscribe(SUBSCRIPTION)
        yield fake


@pytest.fixture
def subscription(server: FakePubSub) -> FakeSubscription:
    return server.subscriptions[SUBSCRIPTION]


def test_nothing_is_lost_when_the_process_is_killed_or_stopped(
    server: FakePubSub,
    subscription: FakeSubscription,
    model: str,
    tmp_path: Path,
    run_verify: Callable[..., Finished],
) -> None:
    sender, output = Sender(server), tmp_path / "out"
    with running(tmp_path, model, server, "--window", "2s") as stream:
        stream.wait_for(lambda: "reading" in stream.log)
        sender.send_at(rate=100, seconds=3)
        stream.wait_for(lambda: len(subscription.acknowledged) > 50)
        stream.stop(signal.SIGKILL)
    acknowledged = set(subscription.acknowledged)
    in_place = rows_in_place(output, window=2)
    assert acknowledged <= {sender.sent[id_] for id_ in in_place}
    assert len(acknowledged) < len(sender.sent), "the kill came too late to prove anything"
    subscription.expire(math.inf)  # nobody keeps its messages any more, and their time is over

    too_long = b'{"text": "' + b"x" * (17 << 20) + b'"}'
    contents = (b"{", b"\xff\xfe", b"[1]", b'{"body": 1}', too_long)
    poison = {server.send(SUBSCRIPTION, content) for content in contents}
    options = ("--publish", f"pubsub://{TOPIC}", "--report", "report.json", "--max_dead_fraction", "1")
    with running(tmp_path, model, server, "--window", "2s", *options) as stream:
        stream.wait_for(lambda: "reading" in stream.log)
        for _ in range(3):  # bursts, and nothing between them
            sender.send(300)
            time.sleep(0.7)
        everything = set(sender.sent.values()) | poison
        stream.wait_for(lambda: everything <= set(subscription.acknowledged))
        stream.wait_for(lambda: "tweets written" in stream.log)
        sender.send(200)
        assert stream.stop() == 0, stream.log
    rows = rows_in_place(output, window=2)
    acknowledged = set(subscription.acknowledged)
    assert acknowledged == {sender.sent[id_] for id_ in rows} | poison
    left = {message.message_id for message in subscription.waiting}
    left |= {leased.message.message_id for leased in subscription.leased.values()}
    assert acknowledged | left == set(sender.sent.values()) | poison and not acknowledged & left
    repeated = {id_ for id_, count in rows.items() if count > 1}
    assert repeated <= set(in_place), "only what the one that was killed had written may be there twice"

    files = output.glob("_dead_letters/**/*.jsonl")
    letters = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {letter["position"] for letter in letters} == poison
    assert {letter["source"] for letter in letters} == {f"pubsub://{SUBSCRIPTION}"}
    published = [json.loads(message.data) for message in server.published[TOPIC]]
    assert {row["id"] for row in published} >= rows.keys() - in_place.keys()
    assert "embedding" not in published[0] and published[0]["fingerprint"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["read"] == report["scored"] + report["empty"] + report["dead"] and report["dead"] == len(poison)
    assert report["latency_ms_count"] == report["rows_written"]
    gauges = dict(line.split(" ") for line in (tmp_path / "report.prom").read_text().splitlines() if line[0] != "#")
    latency = float(gauges['torchmoji_stream_latency_mean_seconds{output="out"}'])
    assert latency == pytest.approx(report["latency_ms_mean"] / 1000) and latency > 0
    assert float(gauges['torchmoji_stream_in_flight_messages{output="out"}']) == 0
    assert live_files("out") == [str(path.relative_to(tmp_path)) for path in result_files(output)]
    assert run_verify("--duplicate_ids", "allow").status == 0


def test_a_source_faster_than_the_model_waits(
    server: FakePubSub, subscription: FakeSubscription, model: str, tmp_path: Path
) -> None:
    sender = Sender(server)
    sender.send(1)
    with running(tmp_path, model, server, "--max_in_flight", "400", "--commit_every", "100ms") as stream:
        stream.wait_for(lambda: subscription.acknowledged)
        before = stream.memory
        sender.send(8_000, padding="x" * 5000)
        stream.wait_for(lambda: len(subscription.acknowledged) > 1000)
        assert len(subscription.waiting) > 4000, "the source was too slow to prove anything"
        assert not listeners(stream.process.pid)[0], "it asks others, and nobody asks it"
        assert subscription.most_leased <= 800, "as many again may be read while the last are being acknowledged"
        assert stream.memory < before + 60, "40 MB of messages must stay where they are"
        assert stream.stop() == 0, stream.log
    rows = rows_in_place(tmp_path / "out", window=3600)
    assert {sender.sent[id_] for id_ in rows} == set(subscription.acknowledged)
    assert set(rows.values()) == {1}


def test_a_window_that_is_held_is_written_when_the_stream_is_stopped(
    server: FakePubSub, subscription: FakeSubscription, model: str, tmp_path: Path
) -> None:
    sender = Sender(server)
    now = time.time()
    options = (
        "--hold",
        "pane",
        "--window",
        "1d",
        "--timestamp_field",
        "at",
        "--shards",
        "1",
        "--keep_fields",
        "n:int64",
    )
    with running(tmp_path, model, server, *options) as stream:
        for n in range(5):
            sender.send(20, at=now, n=n)
            time.sleep(0.1)
        stream.wait_for(lambda: not subscription.waiting)
        time.sleep(1.5)
        assert not subscription.acknowledged and not result_files(tmp_path / "out")
        assert stream.stop() == 0, stream.log
    (path,) = result_files(tmp_path / "out")
    assert sorted(read_rows([path])["id"].to_pylist()) == sorted(sender.sent)
    assert len(subscription.acknowledged) == 100


def test_a_new_model_takes_over_while_the_stream_goes_on(
    server: FakePubSub, subscription: FakeSubscription, model: str, tmp_path: Path
) -> None:
    sender, output = Sender(server), tmp_path / "out"

    def fingerprints() -> set[str]:
        return {
            pq.ParquetFile(path).schema_arrow.metadata[b"torchmoji.fingerprint"].decode()
            for path in result_files(output)
        }

    def send_until_there_are(count: int) -> None:
        sender.send(1)
        stream.wait_for(lambda: len(subscription.acknowledged) == len(sender.sent))
        while len(fingerprints()) < count:
            sender.send(1)
            stream.wait_for(lambda: len(subscription.acknowledged) == len(sender.sent))

    watch = ("--model_watch", "models/*", "--model_poll", "100ms", "--max_latency", "50ms")
    with running(tmp_path, model, server, *watch) as stream:
        send_until_there_are(1)
        tiny_bundle(WORDS, seed=8).save(tmp_path / "models" / "new")
        send_until_there_are(2)
        assert stream.stop() == 0, stream.log
    for path in result_files(output):
        file = pq.ParquetFile(path)
        metadata = file.schema_arrow.metadata[b"torchmoji.fingerprint"].decode()
        assert set(file.read()["fingerprint"].to_pylist()) == {metadata}
    assert sum(rows_in_place(output, window=3600).values()) == len(sender.sent)


def test_what_is_not_written_in_time_is_given_back(
    server: FakePubSub, subscription: FakeSubscription, tmp_path: Path
) -> None:
    sender, slow = Sender(server), str(tmp_path / "slow")
    tiny_bundle(WORDS, seed=7, embedding=256, hidden=512).save(slow)  # takes half a minute for what is in flight
    options = ("--drain", "0s", "--max_latency", "100ms", "--cache_mb", "0", "--precision", "fp32")
    with running(tmp_path, slow, server, *options) as stream:
        stream.wait_for(lambda: "reading" in stream.log)
        sender.send(10_000)
        stream.wait_for(lambda: result_files(tmp_path / "out"))
        assert stream.stop() == 1, stream.log
        assert "messages were not written within --drain 0s; they are given back" in stream.log.splitlines()[-1]
    rows = rows_in_place(tmp_path / "out", window=3600)
    assert {sender.sent[id_] for id_ in rows} >= set(subscription.acknowledged)
    subscription.expire(time.monotonic())
    assert len(subscription.waiting) == 10_000 - len(subscription.acknowledged)


def test_a_second_signal_ends_it_at_once(server: FakePubSub, model: str, tmp_path: Path) -> None:
    server.refuse["Acknowledge"] = grpc.StatusCode.UNAVAILABLE  # so that stopping takes its time
    sender = Sender(server)
    with running(tmp_path, model, server) as stream:
        sender.send(1)
        stream.wait_for(lambda: result_files(tmp_path / "out"))
        stream.process.send_signal(signal.SIGINT)
        stream.wait_for(lambda: "stopping" in stream.log)
        assert stream.stop(signal.SIGINT, seconds=5) == 130, stream.log


# --- the reader alone ---


@pytest.fixture
def deliveries(server: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    return Deliveries("test", max_messages=100, max_bytes=1 << 20)


def reader_of(deliveries: Deliveries) -> PubSubReader:
    return PubSubReader(SUBSCRIPTION, deliveries, linger=0.0)


def take(reader: PubSubReader, count: int) -> list[str]:
    """Ids of so many messages."""
    ids: list[str] = []
    end = time.monotonic() + 20
    while len(ids) < count:
        assert time.monotonic() < end
        ids += [message.message_id for message in reader.take(0.1)]
    return ids


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "there is no such subscription"),
        (grpc.StatusCode.PERMISSION_DENIED, "may not be read"),
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
    ],
)
def test_a_subscription_that_cannot_be_read(
    server: FakePubSub, deliveries: Deliveries, status: grpc.StatusCode, expected: str
) -> None:
    server.refuse["Pull"] = status
    with pytest.raises(InputError, match=expected) as caught, reader_of(deliveries):
        pass
    assert is_outage(caught.value) == (status is grpc.StatusCode.UNAVAILABLE)


def test_a_subscription_that_is_deleted_ends_the_reading(server: FakePubSub, deliveries: Deliveries) -> None:
    with reader_of(deliveries) as reader:
        del server.subscriptions[SUBSCRIPTION]
        end = time.monotonic() + 20
        while reader.error is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert "Resource not found" in str(reader.error)


def test_failures_that_pass_are_waited_out(
    server: FakePubSub, subscription: FakeSubscription, deliveries: Deliveries, tmp_path: Path
) -> None:
    with reader_of(deliveries) as reader:
        server.refuse["Pull"] = server.refuse["Acknowledge"] = grpc.StatusCode.UNAVAILABLE
        message_id = server.send(SUBSCRIPTION, b"{}")
        time.sleep(0.3)
        del server.refuse["Pull"]
        assert take(reader, 1) == [message_id]
        deliveries.became(message_id, "a")
        letters = tmp_path / "letters.jsonl"
        letters.write_text('{"position": "a"}\n')
        deliveries.written.put(WrittenFile("", str(letters), "", 1, 0, "", {}))
        time.sleep(0.3)
        assert not subscription.acknowledged
        del server.refuse["Acknowledge"]
    assert subscription.acknowledged == [message_id] and reader.error is None


def test_what_is_in_flight_is_not_delivered_again(
    server: FakePubSub, subscription: FakeSubscription, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_reader, "EXTEND_SECONDS", 0.1)
    subscription.deadline = 20.0
    with reader_of(deliveries) as reader:
        message_id = server.send(SUBSCRIPTION, b"{}")
        assert take(reader, 1) == [message_id]
        (leased,) = subscription.leased.values()
        end = time.monotonic() + 20
        while leased.until < end + 5:  # each time that it is asked for, it is ours for a minute
            assert time.monotonic() < end
            time.sleep(0.01)
        assert subscription.delivered == 1
    assert reader.is_exhausted and len(deliveries) == 0
    subscription.expire(time.monotonic())
    assert [message.message_id for message in subscription.waiting] == [message_id], "it was not given back"


def test_what_was_pulled_and_not_taken_is_given_back_at_once(
    server: FakePubSub, subscription: FakeSubscription, deliveries: Deliveries
) -> None:
    with reader_of(deliveries) as reader:
        for _ in range(5):
            server.send(SUBSCRIPTION, b"{}")
        end = time.monotonic() + 20
        while len(deliveries) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        reader.stop()
        assert reader.is_exhausted and reader.take(0.1) == [] and len(deliveries) == 0
    subscription.expire(time.monotonic())
    assert len(subscription.waiting) == 5


def test_large_messages_are_received(server: FakePubSub, deliveries: Deliveries) -> None:
    """An emulator's client would refuse responses above 4 MiB, for ever."""
    sent = {server.send(SUBSCRIPTION, b"x" * 2_000_000) for _ in range(5)}
    sent.add(server.send(SUBSCRIPTION, b"x" * 9_000_000))
    deliveries_of_all = Deliveries("large", max_messages=100, max_bytes=1 << 30)
    with reader_of(deliveries_of_all) as reader:
        assert set(take(reader, len(sent))) == sent and reader.error is None


def test_messages_that_are_too_large_together_are_asked_for_in_smaller_numbers(
    server: FakePubSub,
    subscription: FakeSubscription,
    deliveries: Deliveries,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pubsub_reader, "PULLED_BYTES", 100_000)
    subscription.deadline = 0.5
    server.send(SUBSCRIPTION, b"{}")
    deliveries_of_all = Deliveries("large", max_messages=100, max_bytes=1 << 30)
    with reader_of(deliveries_of_all) as reader:
        take(reader, 1)
        sent = {server.send(SUBSCRIPTION, b"x" * 30_000) for _ in range(30)}
        sent.add(server.send(SUBSCRIPTION, b"x" * 300_000))
        assert set(take(reader, len(sent))) == sent and reader.error is None
    assert "fewer are asked for" in caplog.text


def test_a_message_that_cannot_be_received_ends_the_reading(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in silence, and not as a dead letter: nothing of it is known."""
    monkeypatch.setattr(pubsub_reader, "TRIES_FOR_ONE", 2)
    with FakePubSub(sent_bytes=100_000) as server:
        server.subscribe(SUBSCRIPTION, deadline=0.1)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        server.send(SUBSCRIPTION, b"x" * 200_000)
        with reader_of(deliveries) as reader:
            end = time.monotonic() + 60
            while reader.error is None:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert "cannot be received" in str(reader.error) and SUBSCRIPTION in str(reader.error)
        assert len(server.subscriptions[SUBSCRIPTION].acknowledged) == 0


def test_how_many_are_asked_for_grows_again_when_all_that_were_refused_have_come() -> None:
    size = PullSize()
    assert size.get(0) == 1000
    size.refused(1000, now=0)
    size.refused(size.get(1), now=1)
    assert size.get(600) == 62
    assert [size.get(now) for now in (601, 1200, 1201, 1801, 2401)] == [248, 248, 992, 1000, 1000]
    for _ in range(7):
        size.refused(size.get(3000), now=3000)
    assert size.get(3001) == 1 and size.tries_for_one == 2
    size.fitted()
    assert size.tries_for_one == 0


def test_acknowledgements_are_no_larger_than_requests_may_be(
    server: FakePubSub, subscription: FakeSubscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    server.receipt_padding = "x" * 2000
    for _ in range(600):
        server.send(SUBSCRIPTION, b"{}")
    with reader_of(Deliveries("many", max_messages=600, max_bytes=1 << 30)) as reader:
        take(reader, 600)
    subscription.expire(time.monotonic())
    assert len(subscription.waiting) == 600, "they were not given back"
