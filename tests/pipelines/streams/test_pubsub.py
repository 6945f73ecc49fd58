"""Pub/Sub as a source, with Google's client and a server of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from pipelines.streams import pubsub
from pipelines.streams.pubsub import PubSubSource, PubSubTopic
from pipelines.streams.sources import SourceUnavailableError
from tests.fake_pubsub import FakePubSub, FakeSubscription
from tests.pipelines.streams.parts import Clock, until
from tests.streams import SUBSCRIPTION, server, subscription
from torchmoji_core.errors import InputError, RunError, is_outage
from transforms.records import Message

__all__ = ["server", "subscription"]  # fixtures


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "FIRST_PULL_SECONDS", 60.0)  # of tests that have an answer, however slow


@pytest.fixture
def read(server: FakePubSub) -> Iterator[Callable[[], PubSubSource]]:
    """Begins to read. What is to be read has been sent before, or the first look waits."""
    made: list[PubSubSource] = []

    def read_it() -> PubSubSource:
        made.append(PubSubSource(SUBSCRIPTION))
        return made[-1]

    yield read_it
    for source in made:
        source.stop()


def pull(source: PubSubSource, count: int) -> dict[str, str]:
    """Receipts of so many messages, by their ids."""
    receipts: dict[str, str] = {}

    def have_come() -> bool:
        receipts.update({item.message.position: item.receipt for item in source.pull(1000)})
        return len(receipts) >= count

    until(have_come)
    return receipts


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "there is no such subscription"),
        (grpc.StatusCode.PERMISSION_DENIED, "may not be read"),
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
    ],
)
def test_a_subscription_that_cannot_be_read(server: FakePubSub, status: grpc.StatusCode, expected: str) -> None:
    server.refuse["Pull"] = status
    with pytest.raises(InputError, match=expected) as caught:
        PubSubSource(SUBSCRIPTION)
    assert is_outage(caught.value) == (status is grpc.StatusCode.UNAVAILABLE)


def test_a_message_as_it_was_sent(server: FakePubSub, read: Callable[[], PubSubSource]) -> None:
    server.send(SUBSCRIPTION, b"\xff{}", {"lang": "en"}, published=1.5, message_id="m7")
    (item,) = read().pull(10)
    assert item.message == Message("m7", b"\xff{}", 1_500_000, {"lang": "en"})


def test_messages_are_acknowledged_extended_and_given_back(
    server: FakePubSub, subscription: FakeSubscription, read: Callable[[], PubSubSource]
) -> None:
    ids = [server.send(SUBSCRIPTION, b"{}") for _ in range(3)]
    source = read()
    receipts = pull(source, 3)
    source.acknowledge([receipts[ids[0]]])
    assert subscription.acknowledged == ids[:1]
    now = time.monotonic()
    source.extend([receipts[ids[1]]], 600)
    assert subscription.leased[receipts[ids[1]]].until >= now + 600
    source.extend([receipts[ids[2]]], 0)
    subscription.expire(time.monotonic())
    assert [message.message_id for message in subscription.waiting] == ids[2:]


def test_a_pull_that_waits_is_ended(read: Callable[[], PubSubSource], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "PULL_SECONDS", 600.0)
    monkeypatch.setattr(pubsub, "FIRST_PULL_SECONDS", 0.1)
    source = read()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(source.pull(10)), daemon=True)
    thread.start()
    source.stop()
    thread.join(60)
    assert found == [[]]


def test_failures_that_may_pass_are_told_from_others(server: FakePubSub, read: Callable[[], PubSubSource]) -> None:
    server.send(SUBSCRIPTION, b"{}")
    source = read()
    assert len(source.pull(1)) == 1
    server.refuse |= dict.fromkeys(("Pull", "Acknowledge", "ModifyAckDeadline"), grpc.StatusCode.UNAVAILABLE)
    for call in (lambda: source.pull(1), lambda: source.acknowledge(["r"]), lambda: source.extend(["r"], 60)):
        with pytest.raises(SourceUnavailableError, match="is refused"):
            call()
    server.refuse.clear()
    del server.subscriptions[SUBSCRIPTION]
    for call in (lambda: source.pull(1), lambda: source.acknowledge(["r"]), lambda: source.extend(["r"], 60)):
        with pytest.raises(RunError, match=f"{SUBSCRIPTION} failed: 404 Resource not found"):
            call()


def test_large_messages_are_received(server: FakePubSub, read: Callable[[], PubSubSource]) -> None:
    """An emulator's client would refuse responses above 4 MiB, for ever."""
    sent = {server.send(SUBSCRIPTION, b"x" * 2_000_000) for _ in range(5)}
    sent.add(server.send(SUBSCRIPTION, b"x" * 9_000_000))
    assert pull(read(), len(sent)).keys() == sent


def test_messages_that_are_too_large_together_are_asked_for_in_smaller_numbers(
    server: FakePubSub,
    subscription: FakeSubscription,
    read: Callable[[], PubSubSource],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pubsub, "PULLED_BYTES", 100_000)
    subscription.deadline = 0.05
    sent = {server.send(SUBSCRIPTION, b"x" * 30_000) for _ in range(30)}
    sent.add(server.send(SUBSCRIPTION, b"x" * 300_000))
    assert pull(read(), len(sent)).keys() == sent
    assert "fewer are asked for" in caplog.text


def test_a_message_that_cannot_be_received_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in silence, and not as a dead letter: nothing of it is known."""
    monkeypatch.setattr(pubsub, "TRIES_FOR_ONE", 2)
    with FakePubSub(sent_bytes=100_000) as server:
        subscription = server.subscribe(SUBSCRIPTION, deadline=0.05)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        server.send(SUBSCRIPTION, b"x" * 200_000)
        source = PubSubSource(SUBSCRIPTION)
        with pytest.raises(RunError, match=f"{SUBSCRIPTION} has a message that cannot be received"):
            for _ in range(100):
                try:
                    source.pull(10)
                except SourceUnavailableError:
                    subscription.expire(float("inf"))
        assert not subscription.acknowledged
        source.stop()


def test_as_many_are_asked_for_as_before_when_what_was_refused_has_come(
    server: FakePubSub,
    subscription: FakeSubscription,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pubsub, "PULLED_BYTES", 100_000)
    subscription.deadline = 0.05
    for _ in range(8):
        server.send(SUBSCRIPTION, b"x" * 30_000)
    clock = Clock()
    source = PubSubSource(SUBSCRIPTION, clock)
    for seconds, refused in ((0, 1), (pubsub.CALM_SECONDS - 1, 1), (1, 2)):
        clock.seconds += seconds
        pull(source, 8)
        assert caplog.text.count("up to 1000 messages were too large") == refused
    source.stop()


def test_requests_are_no_larger_than_they_may_be(
    server: FakePubSub, subscription: FakeSubscription, read: Callable[[], PubSubSource]
) -> None:
    server.receipt_padding = "x" * 2000
    for _ in range(600):
        server.send(SUBSCRIPTION, b"{}")
    source = read()
    receipts = list(pull(source, 600).values())
    source.extend(receipts[300:], 0)
    source.acknowledge(receipts[:300])
    subscription.expire(time.monotonic())
    assert len(subscription.waiting) == 300 and len(subscription.acknowledged) == 300


def test_without_credentials_nothing_is_read_or_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")
    with pytest.raises(InputError, match="may not be read: File /no/such/file"):
        PubSubSource(SUBSCRIPTION)
    with pytest.raises(InputError, match="may not be written: File /no/such/file"):
        PubSubTopic("projects/my-project/topics/rows")
