"""The real command on a topic, killed at random again and again: every offset is in the results once."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from tests.faults.conftest import FAULTS
from tests.kafka import PARTITIONS, broker_process
from tests.processes import ScoreProcess
from tests.streams import live_ids

pytestmark = FAULTS
KILLS = 10


def test_every_offset_once_after_kills_at_random(tiny_model: str, tmp_path: Path) -> None:
    output, dice = tmp_path / "out", random.Random(7)
    with broker_process() as broker:
        sent = Counter[int]()
        done = threading.Event()

        def send(count: int) -> None:
            partition = dice.randrange(PARTITIONS)
            broker.posts("posts", count, partition, first=sent[partition])
            sent[partition] += count

        def publish() -> None:
            while not done.wait(0.02):
                send(dice.choice([1, 3, 10, 200]))

        def start() -> ScoreProcess:
            source = (
                "--streaming",
                "--input",
                f"kafka://{broker.address}/posts",
                "--output",
                "out",
                "--model",
                tiny_model,
            )
            return ScoreProcess(tmp_path, *source, "--commit_every", "300ms", "--max_latency", "50ms")

        for partition in range(PARTITIONS):
            broker.send("posts", [], partition)
        send(1)
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            for _ in range(KILLS):
                stream = start()
                stream.wait_for(lambda stream=stream: "reading" in stream.log)
                time.sleep(dice.uniform(0.1, 3))
                assert stream.stop(signal.SIGKILL) == -signal.SIGKILL
        finally:
            done.set()
            publisher.join()
        stream = start()
        stream.wait_for(lambda: len(live_ids(output)) >= sum(sent.values()))
        assert stream.stop() == 0, stream.log
    ids = live_ids(output)
    expected = sorted(f"{partition}-{number}" for partition, count in sent.items() for number in range(count))
    assert len(ids) == len(set(ids)), "doubled"
    assert ids == expected, "lost"
    print(f"{len(ids):,} offsets, {KILLS} kills")
