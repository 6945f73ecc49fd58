"""The whole command on a stream: what is acknowledged is in place, whatever happens to the process that reads."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from pipelines.data_set.snapshot import live_files
from pipelines.streams import pubsub
from tests.fake_pubsub import FakePubSub, FakeSubscription
from tests.pipelines.conftest import Finished
from tests.pipelines.streams.parts import until
from tests.sockets import listeners
from tests.streams import SUBSCRIPTION, URI, Sender, result_files, rows_in_place, running, server, subscription

__all__ = ["server", "subscription"]  # fixtures

TOPIC = "projects/my-project/topics/rows"
Score = Callable[..., Finished]


def run_until(run_score: Score, act: Callable[[], None], *options: str, uri: str = URI) -> Finished:
    """Run a stream in this process, while another thread acts and then tells it to stop."""
    failures: list[BaseException] = []

    def act_and_stop() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    # Where the command ends by itself, nobody else has to end.
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=act_and_stop)
    thread.start()
    try:
        finished = run_score("--streaming", "--input", uri, "--output", "out", *options)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, previous)
    for failure in failures:
        raise failure
    return finished


def test_nothing_is_lost_when_the_process_is_killed(
    server: FakePubSub, subscription: FakeSubscription, model: str, tmp_path: Path, run_score: Score, run_verify: Score
) -> None:
    sender, output = Sender(server), tmp_path / "out"
    patient = ("--max_batch_rows", "100", "--max_latency", "1h")
    with running(tmp_path, model, server, "--window", "2s", *patient) as stream:
        sender.send(100)
        stream.wait_for(lambda: len(subscription.acknowledged) == 100)
        sender.send(50)
        stream.wait_for(lambda: not subscription.waiting)
        assert not listeners(stream.process.pid)[0], "it asks others, and nobody asks it"
        stream.stop(signal.SIGKILL)
    in_place = rows_in_place(output, window=2)
    assert set(subscription.acknowledged) == {sender.sent[id_] for id_ in in_place}
    subscription.expire(math.inf)  # nobody keeps its messages any more, and their time is over

    def act() -> None:
        sender.send(100)
        until(lambda: len(subscription.acknowledged) == 250)

    finished = run_until(run_score, act, "--window", "2s")
    assert finished.status == 0, finished.err
    rows = rows_in_place(output, window=2)
    assert rows.keys() == sender.sent.keys() and set(rows.values()) == {1}
    assert live_files("out") == [str(path.relative_to(tmp_path)) for path in result_files(output)]
    assert run_verify().status == 0


def test_every_message_becomes_a_row_or_a_dead_letter(
    server: FakePubSub, subscription: FakeSubscription, tmp_path: Path, run_score: Score, run_verify: Score
) -> None:
    sender, output = Sender(server), tmp_path / "out"
    too_long = b'{"text": "' + b"x" * (17 << 20) + b'"}'
    contents = (b"{", b"\xff\xfe", b"[1]", b'{"body": 1}', too_long)
    poison = {server.send(SUBSCRIPTION, content) for content in contents}
    sender.send(300)

    def act() -> None:
        until(lambda: {*sender.sent.values(), *poison} <= set(subscription.acknowledged))
        sender.send(200)
        until(lambda: not subscription.waiting)

    publish = ("--publish", f"pubsub://{TOPIC}", "--report", "report.json", "--max_dead_fraction", "1")
    finished = run_until(run_score, act, "--window", "2s", *publish)
    assert finished.status == 0, finished.err
    rows = rows_in_place(output, window=2)
    assert rows.keys() == sender.sent.keys() and set(rows.values()) == {1}
    assert set(subscription.acknowledged) == set(sender.sent.values()) | poison
    assert not subscription.waiting and not subscription.leased

    files = output.glob("_dead_letters/**/*.jsonl")
    letters = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {letter["position"] for letter in letters} == poison
    assert {letter["source"] for letter in letters} == {URI}
    published = [json.loads(message.data) for message in server.published[TOPIC]]
    assert {row["id"] for row in published} == rows.keys()
    assert {message.attributes["id"] for message in server.published[TOPIC]} == rows.keys()
    assert "embedding" not in published[0] and published[0]["fingerprint"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["read"] == report["scored"] + report["empty"] + report["dead"] and report["dead"] == len(poison)
    assert report["latency_ms_count"] == report["rows_written"] == report["rows_published"] == 500
    gauges = dict(line.split(" ") for line in (tmp_path / "report.prom").read_text().splitlines() if line[0] != "#")
    latency = float(gauges['torchmoji_stream_latency_mean_seconds{output="out"}'])
    assert latency == pytest.approx(report["latency_ms_mean"] / 1000) and latency > 0
    assert float(gauges['torchmoji_stream_in_flight_messages{output="out"}']) == 0
    assert run_verify().status == 0


def test_a_subscription_that_is_not_there(
    server: FakePubSub, run_score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "FIRST_PULL_SECONDS", 60.0)
    del server.subscriptions[SUBSCRIPTION]
    finished = run_score("--streaming", "--input", URI, "--output", "out")
    assert finished.status == 2 and "there is no such subscription; create it first" in finished.err


def test_rows_do_not_go_to_the_topic_that_is_read(server: FakePubSub, run_score: Score) -> None:
    topic = f"pubsub://{server.subscriptions[SUBSCRIPTION].topic}"
    finished = run_score("--streaming", "--input", URI, "--output", "out", "--publish", topic)
    assert finished.status == 2 and f"error: --publish {topic} is what --input reads" in finished.err, finished.err
    assert not Path("out").exists()


def test_a_topic_that_takes_no_rows(server: FakePubSub, subscription: FakeSubscription, run_score: Score) -> None:
    """Nothing is acknowledged that was not published."""
    server.refuse |= {"Publish": grpc.StatusCode.NOT_FOUND, "GetSubscription": grpc.StatusCode.PERMISSION_DENIED}
    Sender(server).send(3)
    finished = run_score("--streaming", "--input", URI, "--output", "out", "--publish", f"pubsub://{TOPIC}")
    assert finished.status == 1 and f"--publish pubsub://{TOPIC}: rows cannot be published" in finished.err
    assert not subscription.acknowledged


def test_a_second_signal_ends_it_at_once(server: FakePubSub, model: str, tmp_path: Path) -> None:
    server.refuse["Acknowledge"] = grpc.StatusCode.UNAVAILABLE  # so that stopping takes its time
    sender = Sender(server)
    with running(tmp_path, model, server) as stream:
        sender.send(1)
        stream.wait_for(lambda: result_files(tmp_path / "out"))
        stream.process.send_signal(signal.SIGINT)
        stream.wait_for(lambda: "stopping" in stream.log)
        assert stream.stop(signal.SIGINT) == 130, stream.log
