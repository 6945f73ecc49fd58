"""The real command on a topic of librdkafka's broker for tests, killed again and again: every offset is there once."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.conftest import FAULTS
from tests.faults.kafka_kills import assert_all_is_there, kill_at_places, kill_at_random, options_of
from tests.kafka import PARTITIONS, Traffic, broker_process

pytestmark = FAULTS
KILLS = 10


def test_every_offset_once_after_kills(tiny_model: str, tmp_path: Path) -> None:
    with broker_process() as broker:
        for topic in ("posts", "rows"):
            for partition in range(PARTITIONS):
                broker.send(topic, [], partition)
        options = options_of(broker.address, tiny_model)
        with Traffic(broker, "posts", PARTITIONS) as traffic:
            kill_at_random(tmp_path, traffic, random.Random(7), KILLS, *options)
            kill_at_places(tmp_path, traffic, 1, *options)
            assert_all_is_there(tmp_path, traffic, broker.address, tiny_model)
