"""A minute of a stream that is stopped, killed and started again, at a steady rate and with bursts."""

from __future__ import annotations

import itertools
import math
import random
import signal
import threading
import time
from pathlib import Path

from pipelines.data_set.snapshot import live_files
from tests.fake_pubsub import FakePubSub
from tests.faults.conftest import FAULTS
from tests.streams import SUBSCRIPTION, Sender, result_files, rows_in_place, running

pytestmark = FAULTS
SECONDS = 60.0


def test_nothing_is_lost_in_a_minute_of_kills_and_restarts(tiny_model: str, tmp_path: Path) -> None:
    output, dice = tmp_path / "out", random.Random(5)
    with FakePubSub() as server:
        subscription = server.subscribe(SUBSCRIPTION)
        sender, done = Sender(server), threading.Event()

        def publish() -> None:
            while not done.is_set():
                sender.send_at(rate=150, seconds=2)
                sender.send(dice.randrange(800))

        publisher = threading.Thread(target=publish)
        publisher.start()
        killed = 0
        try:
            end = time.monotonic() + SECONDS
            for number in itertools.cycle((signal.SIGTERM, signal.SIGKILL)):
                if time.monotonic() > end:
                    break
                with running(tmp_path, tiny_model, server, "--window", "10s") as stream:
                    stream.wait_for(lambda: "reading" in stream.log)
                    time.sleep(dice.uniform(2, 9))
                    status = stream.stop(number)
                    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL), stream.log
                    killed += number == signal.SIGKILL
                subscription.expire(math.inf)
                in_place = {sender.sent[id_] for id_ in rows_in_place(output, window=10)}
                assert set(subscription.acknowledged) <= in_place
        finally:
            done.set()
            publisher.join()
        with running(tmp_path, tiny_model, server, "--window", "10s") as stream:
            stream.wait_for(lambda: set(subscription.acknowledged) == set(sender.sent.values()))
            assert stream.stop() == 0, stream.log
    rows = rows_in_place(output, window=10)
    assert killed >= 2 and rows.keys() == sender.sent.keys()
    assert len(subscription.acknowledged) == len(sender.sent), "nothing is acknowledged twice"
    assert sum(rows.values()) - len(rows) <= 20_000 * killed, "only what was in flight at a kill may be there twice"
    assert sorted(map(str, result_files(output))) == sorted(live_files(str(output)))
