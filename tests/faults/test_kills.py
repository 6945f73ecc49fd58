"""kill -9 at random moments: what was committed is never scored again, and nothing is lost or there twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Annotator, undisturbed_rows
from tests.pipelines.conftest import corpus

pytestmark = pytest.mark.faults

KILLS = 50
FILES, ROWS = 80, 250


def committed_inputs(output: Path) -> Counter[str]:
    """How often each input is in a manifest."""
    found: Counter[str] = Counter()
    for path in (output / "_manifests").glob("*.json"):
        found.update(entry["path"] for entry in json.loads(path.read_text())["inputs"])
    return found


def lock(output: Path) -> str:
    try:
        return (output / "_lock.json").read_text()
    except FileNotFoundError:
        return ""


def kill_at_random(process: subprocess.Popen[str], output: Path, old: str, chance: random.Random) -> bool:
    """kill -9 while it starts, or when it has changed the output a number of times. Returns whether it was running.

    By changes and not by time, so that the kills come at the same stages on a machine that is busy with other work.

    Args:
        process: of the run.
        output: where it writes.
        old: the lock of the run before it, which died.
        chance: when.
    """
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 3))
    else:
        deadline = time.monotonic() + 60
        while lock(output) in ("", old) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        changes, before = chance.randrange(20), None
        while changes and process.poll() is None and time.monotonic() < deadline:
            now = {name for _, _, names in os.walk(output) for name in names if not name.endswith(".tmp")}
            changes -= now != before
            before = now
            time.sleep(0.003)
    process.kill()
    process.wait()  # and not for what its worker processes may still say
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return process.returncode == -signal.SIGKILL


def test_fifty_kills_over_one_annotation(
    tmp_path: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus(tmp_path / "in", FILES, ROWS)
    annotator = Annotator(tmp_path, tiny_model)
    chance = random.Random(20261124)
    kills, while_work_was_left, progress = 0, 0, set()
    while kills < KILLS:
        before = len(committed_inputs(annotator.output))
        # Some with worker processes, which outlive their launcher for a moment.
        workers = ("--direct_num_workers", "2") if kills % 10 == 9 else ()
        old = lock(annotator.output)
        process = annotator.start("--commit_every", "0.1s", *workers)
        if kill_at_random(process, annotator.output, old, chance):
            kills += 1
            while_work_was_left += before < FILES
            progress.add(len(committed_inputs(annotator.output)))
    assert while_work_was_left >= KILLS // 2, progress
    assert len(progress) > 5, "the kills should have come at different stages"
    annotator.run()
    assert committed_inputs(annotator.output) == {str(path): 1 for path in (tmp_path / "in").iterdir()}
    assert f"{FILES * ROWS:,} rows" in annotator.verify()
    rows = annotator.rows()
    assert rows.num_rows == FILES * ROWS
    assert rows.equals(undisturbed_rows(annotator, tmp_path_factory.mktemp("undisturbed")))
    assert "nothing is new" in annotator.run()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_gives_back_its_lock(annotator: Annotator, how: signal.Signals) -> None:
    process = annotator.start("--commit_every", "0.1s")
    deadline = time.monotonic() + 60
    while not list((annotator.output / "_manifests").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert not (annotator.output / "_lock.json").exists()
    annotator.verify()
    annotator.run()
    assert annotator.rows().num_rows == 8 * 250


def test_a_worker_process_of_several_is_killed(annotator: Annotator, undisturbed: object) -> None:
    process = annotator.start("--direct_num_workers", "2", "--commit_every", "0")
    deadline = time.monotonic() + 60
    workers: list[str] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-9", workers[0]], check=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker process died" in err
    annotator.run()
    annotator.verify()
    assert annotator.rows().equals(undisturbed)
