"""A stream of Kafka that is killed, at random and at each place between a row and the data set."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.streams.kafka import KafkaSource
from tests.faults.dying import PLACES
from tests.kafka import Traffic
from tests.pipelines.streams.parts import until
from tests.processes import ScoreProcess
from tests.streams import live_ids
from transforms.addresses import KafkaTopic

_OFTEN = ("--streaming", "--output", "out", "--commit_every", "300ms", "--max_latency", "50ms")
PATIENCE = 600.0


def catch_up(directory: Path, traffic: Traffic, *options: str) -> None:
    """Let a stream read all that is sent until now, stop it, and look at what is there."""
    wanted = len(traffic)
    stream = ScoreProcess(directory, *_OFTEN, *options)
    stream.wait_for(lambda: len(live_ids(directory / "out")) >= wanted, PATIENCE)
    assert stream.stop() == 0, stream.log


def kill_at_random(
    directory: Path,
    traffic: Traffic,
    dice: random.Random,
    kills: int,
    *options: str,
    disturb: Callable[[int], bool] = lambda number: False,
) -> None:
    """Kill the stream so often while it reads.

    Args:
        directory: where it runs.
        traffic: what is sent.
        dice: decides when.
        kills: how many.
        *options: of the stream.
        disturb: does something to the broker at a kill; whether it has, so that the stream must get over it before.
    """
    for number in range(kills):
        stream = ScoreProcess(directory, *_OFTEN, *options)
        stream.wait_for(lambda stream=stream: "reading" in stream.log)
        time.sleep(dice.uniform(0.1, 2))
        if disturb(number):
            wanted = len(traffic)
            stream.wait_for(lambda wanted=wanted: len(live_ids(directory / "out")) >= wanted, PATIENCE)
        assert stream.stop(signal.SIGKILL) == -signal.SIGKILL, stream.log


def kill_at_places(directory: Path, traffic: Traffic, rounds: int, *options: str) -> None:
    """Kill the stream at each place, so many times."""
    for number in range(rounds):
        for place in PLACES:
            program = ("-m", "tests.faults.dying", place, str(2 + number))
            stream = ScoreProcess(directory, *_OFTEN, *options, program=program)
            assert stream.process.wait(PATIENCE) == -signal.SIGKILL, (place, stream.log)


def options_of(address: str, model: str) -> tuple[str, ...]:
    """Of a stream from the topic `posts` that publishes to `rows`, and tells a group how far it is."""
    group = ("--consumer_option", "group.id=scores")
    return ("--input", f"kafka://{address}/posts", "--publish", f"kafka://{address}/rows", "--model", model, *group)


def assert_all_is_there(directory: Path, traffic: Traffic, address: str, model: str) -> None:
    """Send no more, and let the stream catch up: each post is in the data set once."""
    traffic.stop()
    catch_up(directory, traffic, *options_of(address, model))
    traffic.assert_once(directory / "out")


def assert_all_is_published(traffic: Traffic, address: str) -> None:
    """Rows may be published again after a kill, but none is missing."""
    published = KafkaSource(KafkaTopic(address, "rows"), {}, {})
    keys: list[str] = []
    until(
        lambda: (
            keys.extend(item.message.attributes["kafka.key"] for item in published.pull(10_000))
            or set(traffic.ids) <= set(keys)
        )
    )
    published.close()
    assert set(keys) == set(traffic.ids)
    print(f"{len(keys):,} rows were published of {len(traffic):,}")
