"""A run that makes no progress ends with status 1 and says where it stood."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from pipelines.runs.watchdog import Watchdog, stacks
from tests.fake_pubsub import FakePubSub
from tests.pipelines.conftest import environment, posts, write_lines
from tests.streams import SUBSCRIPTION, URI, Sender
from torchmoji_core.errors import InputError
from transforms import metrics


def test_what_counts_is_the_time_since_something_changed() -> None:
    now, state = [0.0], [0]
    watchdog = Watchdog(lambda: state[0], 60.0, clock=lambda: now[0])
    for now[0] in (1.0, 30.0, 59.0):
        assert not watchdog.is_stalled()
    state[0] = 1
    assert not watchdog.is_stalled()
    now[0] = 118.0
    assert not watchdog.is_stalled()
    now[0] = 119.0
    assert watchdog.is_stalled()


def test_every_kind_of_work_counts(tmp_path: Path) -> None:
    progress = metrics.Progress(str(tmp_path))
    seen = {metrics.Progress.state(str(tmp_path))}
    for show in (lambda: progress.add(rows=1), lambda: progress.add(bytes_read=1), progress.add, metrics.get_on):
        show()
        seen.add(metrics.Progress.state(str(tmp_path)))
    assert len(seen) == 5
    assert metrics.Progress.total(str(tmp_path)) == (1, 1)


def test_the_stacks_of_all_threads() -> None:
    assert "test_the_stacks_of_all_threads" in stacks()


HANGING = """
import importlib, sys, time
from pipelines.cli import interrupts
from pipelines.cli.exits import end, run_command
from torchmoji_core.inference.engine import Engine

def hang(self, rows):
    while True:
        time.sleep(0.05)  # between two of these, a thread can be interrupted

Engine.run = hang
interrupts.END_SECONDS = 1.0
end(run_command(importlib.import_module("pipelines." + sys.argv.pop(1)).main))
"""


@pytest.mark.parametrize("command", ["score --threads 1", "score --threads 2", "annotate --every 1ms --settle 0s"])
def test_a_model_that_hangs_ends_the_run(model: str, command: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(20))
    name, *options = command.split()
    options += ["--model", model, "--input", "in.jsonl", "--output", "out", "--stall_timeout", "1s"]
    finished = subprocess.run(
        [sys.executable, "-c", HANGING, name, *options], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 1, finished
    lines = finished.stderr.splitlines()
    stack = lines[lines.index("no progress for 1 seconds; all threads:") + 1 :]
    assert re.fullmatch(r"  \| (Current thread|Thread) .* \(most recent call first\):", stack[0]), finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert "give --stall_timeout more" in last or "ended at once" in last, finished.stderr
    assert not list(tmp_path.glob("out/**/part-*"))


def test_a_stream_that_hangs_gives_its_messages_back(model: str, tmp_path: Path) -> None:
    with FakePubSub() as server:
        server.subscribe(SUBSCRIPTION)
        Sender(server).send(20)
        options = ["--model", model, "--streaming", "--input", URI, "--output", "out", "--stall_timeout", "1s"]
        finished = subprocess.run(
            [sys.executable, "-c", HANGING, "score", *options, "--drain", "1s"], cwd=tmp_path, capture_output=True,
            text=True, env=environment() | {"PUBSUB_EMULATOR_HOST": server.address}, timeout=300,
        )  # fmt: skip
        assert finished.returncode == 1, finished
        assert "no progress for 3 seconds" in finished.stderr, finished.stderr
        subscription = server.subscriptions[SUBSCRIPTION]
        assert not subscription.acknowledged
        subscription.expire(time.monotonic())
        assert len(subscription.waiting) == 20, "and not only when their time is over"


def test_a_wrong_timeout() -> None:
    with pytest.raises(InputError, match="--stall_timeout: must be a time"):
        parse(["--stall_timeout", "soon"])
    assert parse(["--stall_timeout", "0"])[0].stall_timeout == 0
