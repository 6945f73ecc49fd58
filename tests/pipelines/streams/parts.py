"""What tests of local streams are made of: a source that is a list, and a clock that a test moves."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from pipelines.data_set.coverage import Covers
from pipelines.streams.sources import Received
from transforms.records import Message

HOPELESS_SECONDS = 60.0


def until(condition: Callable[[], object], seconds: float = HOPELESS_SECONDS) -> None:
    """Wait until something holds that has to come, however slow the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.005)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class ListSource:
    """A subscription whose messages a test sends, and that notes what is done with them."""

    uri = "pubsub://projects/my-project/subscriptions/posts"
    passed_over: Covers = {}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._messages: dict[str, Message] = {}
        self._in_flight: set[str] = set()
        self.sent: list[str] = []
        self.delivered: Counter[str] = Counter()
        self.acknowledged: list[str] = []
        """Receipts: position and number of the delivery."""
        self.extended: dict[str, int] = {}
        self.given_back: list[str] = []
        self.asked: list[tuple[int, int]] = []
        """Of each pull, how many were asked for, and how many were in flight."""
        self.most_at_once = 1000
        self.stopped = threading.Event()
        self.fails: dict[str, list[Exception]] = {}
        """By method, errors that its next calls end with."""

    @property
    def in_flight_at_pulls(self) -> list[int]:
        return [in_flight for _, in_flight in self.asked]

    def send(self, count: int) -> None:
        first = len(self.sent)
        self.send_messages(Message(f"m{number}", b"x" * 10, 0) for number in range(first, first + count))

    def send_messages(self, messages: Iterable[Message]) -> None:
        with self._changed:
            for message in messages:
                self.sent.append(message.position)
                self._messages[message.position] = message
                self._waiting.append(message)
            self._changed.notify_all()

    def deliver_again(self, position: str) -> None:
        with self._changed:
            self._waiting.append(self._messages[position])
            self._changed.notify_all()

    def pull(self, count: int) -> list[Received]:
        self._fail("pull")
        with self._changed:
            self.asked.append((count, len(self._in_flight)))
            while not self._waiting and not self.stopped.is_set():
                self._changed.wait()
            received = []
            while self._waiting and not self.stopped.is_set() and len(received) < min(count, self.most_at_once):
                message = self._waiting.popleft()
                self._in_flight.add(message.position)
                self.delivered[message.position] += 1
                received.append(Received(message, f"{message.position}#{self.delivered[message.position]}"))
            return received

    def covers(self, receipts: Sequence[str]) -> Covers:
        return {}

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        self._fail("extend")
        with self._changed:
            if seconds:
                self.extended.update(dict.fromkeys(receipts, seconds))
            else:
                self.given_back += receipts

    def acknowledge(self, receipts: Sequence[str]) -> None:
        self._fail("acknowledge")
        with self._changed:
            self.acknowledged += receipts
            self._in_flight -= {receipt.partition("#")[0] for receipt in receipts}

    def stop(self) -> None:
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()

    def _fail(self, method: str) -> None:
        if self.fails.get(method):
            raise self.fails[method].pop()
