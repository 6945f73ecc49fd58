"""The loop of a local stream, with work and a clock that a test steps through: no test waits for time to pass."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from pipelines.data_set.coverage import Covers
from pipelines.streams.buffer import CHUNK_ROWS, Buffer, LoopOptions
from pipelines.streams.loop import DEADLINE_SECONDS, EXTEND_SECONDS, Loop
from pipelines.streams.sources import SourceUnavailableError
from pipelines.streams.stages import Prepared
from tests.pipelines.streams.parts import Clock, ListSource, until
from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.records import DeadLetter, Message, TokenizedTweet, Tweet
from transforms.scoring.score import ScoredBatch


def options(max_messages: int = 1000, max_bytes: int = 1 << 20, rows: int = 512) -> LoopOptions:
    return LoopOptions(max_messages, max_bytes, max_latency=1.0, limits=BatchLimits(max_rows=rows))


def tokenized(position: str, length: int = 1) -> TokenizedTweet:
    return TokenizedTweet(Tweet(position, "love"), [1] * length, length, False)


class ScriptedWork:
    """Notes what is done, and waits where it is told to."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.scored: list[list[str]] = []
        self.written: list[list[str]] = []
        self.may_score, self.may_write = threading.Event(), threading.Event()
        self.may_score.set()
        self.may_write.set()
        self.scores, self.writes = threading.Event(), threading.Event()
        """Whether it has come so far."""
        self.fails: dict[str, Exception] = {}

    def prepare(self, message: Message) -> list[Prepared]:
        self._fail("prepare")
        metrics.counter(metrics.READ).inc()
        self.prepared.append(message.position)
        return [tokenized(message.position)]

    def score(self, prepared: Sequence[Prepared]) -> ScoredBatch:
        self.scores.set()
        assert self.may_score.wait(60)
        self._fail("score")
        metrics.counter(metrics.SCORED).inc(len(prepared))
        ids = [item.tweet.id for item in prepared if isinstance(item, TokenizedTweet)]
        self.scored.append(ids)
        return ScoredBatch((), tuple(DeadLetter("", id_, "", b"") for id_ in ids))

    def write(self, scored: ScoredBatch, covers: Covers) -> None:
        self.writes.set()
        assert self.may_write.wait(60)
        self._fail("write")
        self.written.append([letter.position for letter in scored.dead_letters])

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


# --- the buffer ------------------------------------------------------------------------------------------------------


def test_messages_wait_for_each_other_and_no_longer_than_the_latency() -> None:
    buffer = Buffer(options())
    assert not buffer.is_due(1e9), "nothing waits"
    buffer.add("a", [tokenized("a")], 10, now=5.0)
    buffer.add("b", [tokenized("b")], 10, now=5.9)
    assert not buffer.is_due(5.99) and buffer.is_due(6.0)
    assert buffer.take(6.0).positions == ["a", "b"]
    buffer.add("c", [tokenized("c")], 10, now=6.5)
    assert not buffer.is_due(7.4) and buffer.is_due(7.5), "counted from the first of those that wait"


@pytest.mark.parametrize(
    ("length", "size", "due_at"),
    [(1, 10, 512), (0, 10, 512), (100, 10, 82), (1, 100_000, 3)],
    ids=["rows", "dead letters", "tokens", "bytes"],
)
def test_a_full_batch_does_not_wait(length: int, size: int, due_at: int) -> None:
    buffer = Buffer(options(max_messages=5000))
    for number in range(due_at):
        assert not buffer.is_due(0.0)
        letter = DeadLetter("", "", "", b"")
        buffer.add(str(number), [tokenized(str(number), length) if length else letter], size, now=0.0)
    assert buffer.is_due(0.0)
    buffer.take(0.0)
    assert not buffer.is_due(0.0), "what has gone does not count"


def test_a_batch_is_full_when_no_more_may_come() -> None:
    buffer = Buffer(options(max_messages=6))
    for number in range(3):
        assert not buffer.is_due(0.0)
        buffer.add(str(number), [tokenized(str(number))], 1, now=0.0)
    assert buffer.is_due(0.0)


def test_a_backlog_goes_in_parts_oldest_first() -> None:
    buffer = Buffer(options())
    for number in range(CHUNK_ROWS + 1):
        buffer.add(str(number), [tokenized(str(number))], 1, now=float(number))
    assert buffer.take(0.0).positions == [str(number) for number in range(CHUNK_ROWS)]
    assert buffer.take(0.0).positions == [str(CHUNK_ROWS)]


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> ListSource:
    return ListSource()


@pytest.fixture
def work() -> ScriptedWork:
    return ScriptedWork()


def begin(source: ListSource, work: ScriptedWork, clock: Callable[[], float], **settings: int) -> Loop:
    loop = Loop(source, work, options(**settings), clock)
    loop.start()
    return loop


def test_what_is_acknowledged_is_written(source: ListSource, work: ScriptedWork, clock: Clock) -> None:
    work.may_write.clear()
    loop = begin(source, work, clock, rows=3)
    source.send(3)
    until(work.writes.is_set)
    assert not source.acknowledged and len(loop) == 3
    work.may_write.set()
    until(lambda: len(loop) == 0)
    assert source.acknowledged == ["m0#1", "m1#1", "m2#1"] and loop.written == 3
    loop.stop()
    assert loop.ended.wait(60) and loop.error is None
    assert loop.abandon() == 0 and not source.given_back


def test_what_is_held_is_written_when_the_stream_is_stopped(
    source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    """At once: the clock stands still."""
    loop = begin(source, work, clock)
    source.send(7)
    until(lambda: len(work.prepared) == 7)
    assert not work.scored
    loop.stop()
    assert loop.ended.wait(60)
    assert sorted(itertools.chain(*work.written)) == sorted(source.sent) and len(source.acknowledged) == 7
    assert loop.tally.counts() == {metrics.READ: 7, metrics.SCORED: 7}
    assert not loop.is_running


def test_while_one_chunk_is_scored_the_next_is_read(source: ListSource, work: ScriptedWork, clock: Clock) -> None:
    work.may_score.clear()
    loop = begin(source, work, clock, rows=2)
    source.send(2)
    until(work.scores.is_set)
    source.send(5)
    until(lambda: len(work.prepared) == 7)
    work.may_score.set()
    until(lambda: len(source.acknowledged) == 7)
    assert [len(chunk) for chunk in work.scored] == [2, 5]
    loop.abandon()


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(10, 1 << 20), (1000, 35), (1, 1)])
def test_what_is_in_flight_is_bounded(
    max_messages: int, max_bytes: int, source: ListSource, work: ScriptedWork
) -> None:
    """In number and in bytes of ten for each message: the source is asked for no more than there is room for."""
    source.send(200)
    source.most_at_once = 1
    loop = begin(source, work, itertools.count().__next__, max_messages=max_messages, max_bytes=max_bytes)
    until(lambda: len(source.acknowledged) == 200)
    most = min(max_messages, -(-max_bytes // 10))
    assert max(source.in_flight_at_pulls) < most
    assert all(count + in_flight <= max_messages for count, in_flight in source.asked)
    loop.abandon()


def test_a_message_that_is_delivered_again_while_in_flight_is_written_once(
    source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    work.may_write.clear()
    loop = begin(source, work, clock, rows=1)
    source.send(1)
    until(work.writes.is_set)
    source.deliver_again("m0")
    until(lambda: source.delivered["m0"] == 2)
    source.send(1)  # when that is read, the one before has been
    until(lambda: "m1" in work.prepared)
    work.may_write.set()
    until(lambda: len(source.acknowledged) == 2)
    assert source.acknowledged == ["m0#2", "m1#1"], "with the newest receipt"
    assert work.prepared == ["m0", "m1"]
    loop.abandon()


def test_failures_that_pass_are_waited_out(source: ListSource, work: ScriptedWork) -> None:
    for method in ("pull", "acknowledge", "extend"):
        source.fails[method] = [SourceUnavailableError("down")] * 3
    loop = begin(source, work, itertools.count().__next__)
    source.send(5)
    until(lambda: len(source.acknowledged) == 5 and not any(source.fails.values()))
    assert Counter(source.acknowledged).most_common(1)[0][1] == 1 and work.prepared == source.sent
    loop.stop()
    assert loop.ended.wait(60) and loop.error is None and loop.abandon() == 0


def test_what_is_in_flight_is_not_delivered_again(source: ListSource, work: ScriptedWork, clock: Clock) -> None:
    work.may_score.clear()
    loop = begin(source, work, clock, rows=2)
    source.send(2)
    until(work.scores.is_set)
    assert not source.extended
    for _ in range(2):
        source.extended.clear()
        clock.seconds += EXTEND_SECONDS
        until(lambda: len(source.extended) == 2)
        assert source.extended == {"m0#1": DEADLINE_SECONDS, "m1#1": DEADLINE_SECONDS}
    work.may_score.set()
    until(lambda: len(loop) == 0)
    loop.abandon()


@pytest.mark.parametrize("what", ["prepare", "score", "write"])
def test_a_failure_ends_the_stream_and_its_messages_are_given_back(
    what: str, source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    work.fails[what] = RunError("on purpose")
    loop = begin(source, work, clock, rows=3)
    source.send(3)
    assert loop.ended.wait(60)
    assert loop.error is work.fails[what]
    assert loop.abandon() == 3
    assert sorted(source.given_back) == ["m0#1", "m1#1", "m2#1"] and not source.acknowledged
    assert source.stopped.is_set()


@pytest.mark.parametrize("method", ["pull", "acknowledge"])
def test_a_source_that_cannot_be_read_any_more_ends_the_stream(
    method: str, source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    source.fails[method] = [RunError("no such subscription")]
    loop = begin(source, work, clock, rows=1)
    source.send(1)
    assert loop.ended.wait(60) and str(loop.error) == "no such subscription"
    loop.abandon()


def test_what_is_not_written_when_the_time_is_over_is_given_back(
    source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    """And nothing of it is written after that."""
    loop = begin(source, work, clock, rows=2)
    source.send(2)
    until(lambda: len(source.acknowledged) == 2)
    work.may_score.clear()
    work.scores.clear()
    source.send(6)
    until(work.scores.is_set)
    until(lambda: len(work.prepared) == 8)
    loop.stop()
    assert loop.abandon() == 6
    assert sorted(source.given_back) == [f"m{number}#1" for number in range(2, 8)]
    until(lambda: not loop.is_running)
    work.may_score.set()
    assert len(work.written) == 1 and len(source.acknowledged) == 2


def test_what_is_written_and_could_not_be_acknowledged_is_not_given_back(
    source: ListSource, work: ScriptedWork, clock: Clock
) -> None:
    source.fails["acknowledge"] = [SourceUnavailableError("down")]
    loop = begin(source, work, clock, rows=2)
    source.send(2)
    until(lambda: not source.fails["acknowledge"])
    loop.stop()
    assert not source.acknowledged, "it is tried again in a second, and the clock stands still"
    assert loop.abandon() == 0 and not source.given_back
    assert source.acknowledged == ["m0#1", "m1#1"]


def test_an_end_while_nothing_comes_is_not_waited_for(source: ListSource, work: ScriptedWork, clock: Clock) -> None:
    loop = begin(source, work, clock)
    until(lambda: source.asked)
    loop.stop()
    assert loop.ended.wait(60) and loop.abandon() == 0 and not work.scored
