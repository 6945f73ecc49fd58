"""Streams in real time: what is acknowledged is in place, whatever happens to the process that reads."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from pipelines.data_set import live_files
from tests.fake_pubsub import FakePubSub, FakeSubscription
from tests.pipelines.conftest import Finished
from tests.streams import SUBSCRIPTION, Sender, result_files, rows_in_place, running

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


def test_a_second_signal_ends_it_at_once(server: FakePubSub, model: str, tmp_path: Path) -> None:
    server.refuse["Acknowledge"] = grpc.StatusCode.UNAVAILABLE  # so that stopping takes its time
    sender = Sender(server)
    with running(tmp_path, model, server) as stream:
        sender.send(1)
        stream.wait_for(lambda: result_files(tmp_path / "out"))
        stream.process.send_signal(signal.SIGINT)
        stream.wait_for(lambda: "stopping" in stream.log)
        assert stream.stop(signal.SIGINT, seconds=5) == 130, stream.log
