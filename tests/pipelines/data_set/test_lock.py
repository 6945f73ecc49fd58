"""The lock: of several runs one does the work, and who has died does not stand in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.data_set.liveness import process_key
from pipelines.data_set.lock import FILE, Lock, read_lock
from tests.pipelines.conftest import Finished, environment, posts, write_lines
from torchmoji_core.errors import LockHeldError, RunError

FOREVER = 1e6
"""Seconds after which a holder is taken for dead, in tests that must not wait for that."""
GUARD = 120
"""Seconds after which a test has hung."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts another process that takes the lock."""
    started = []

    def run(output: Path, seconds: float = FOREVER) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.pipelines.holder", str(output), str(seconds)]
        process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_lock(output: Path, **values: Any) -> Path:
    """What a holder on another machine has there, with a beat of now."""
    content = {
        "id": "other", "host": "another-host", "pid": 1, "process": ["boot", "pid:[1]", "5"], "command": "score",
        "started": "2026-01-31T10:00:00+00:00", "beat": datetime.now(UTC).isoformat(), "beats": 3, "seconds": 1.0,
    }  # fmt: skip
    path = output / FILE
    output.mkdir(exist_ok=True)
    temporary = output / "_lock-other.tmp"
    temporary.write_text(json.dumps(content | values))
    temporary.rename(path)
    return path


def is_held(output: Path) -> bool:
    """By this process."""
    holder = read_lock(str(output))
    return holder is not None and holder["pid"] == os.getpid()


def hours_ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


# --- taking and giving back ----------------------------------------------------------------------------------------


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Lock(str(output)):
        assert is_held(output)
        assert [path.name for path in output.iterdir()] == [FILE]
    assert not output.exists()


def test_of_an_output_that_was_there_only_the_lock_goes(tmp_path: Path) -> None:
    (tmp_path / "date=2026-01-31").mkdir()
    (tmp_path / "part-1.parquet").touch()
    with Lock(str(tmp_path)):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["date=2026-01-31", "part-1.parquet"]


def test_what_a_run_has_written_stays(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Lock(str(output)):
        (output / "part-1.parquet").touch()
        (output / "_tmp" / "run").mkdir(parents=True)
    assert [path.name for path in output.rglob("*")] == ["part-1.parquet"]


def test_a_run_that_fails_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), Lock(str(tmp_path)):
        raise ValueError("on purpose")
    assert list(tmp_path.iterdir()) == []
    with Lock(str(tmp_path)):
        pass


def test_a_second_run_is_refused_and_told_by_whom(start: Start, tmp_path: Path) -> None:
    holder = start(tmp_path)
    assert first_line(holder) == "held"
    with (
        pytest.raises(LockHeldError, match=f"is being written by process {holder.pid} on .* since "),
        Lock(str(tmp_path)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "who was refused takes nothing away"
    holder.communicate("")
    assert list(tmp_path.iterdir()) == []
    with Lock(str(tmp_path)):
        pass


def test_the_command_says_so_with_a_status_of_its_own(run_score: Callable[..., Finished], tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    with Lock(str(tmp_path / "out")):
        finished = run_score("--input", "in.jsonl", "--output", "out")
        assert finished.status == 4
        assert "is being written by process" in finished.err
        assert "Traceback" not in finished.err
        assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE]
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0


def test_of_two_processes_that_start_together_exactly_one_goes_on(start: Start, tmp_path: Path) -> None:
    processes = [start(tmp_path / "out"), start(tmp_path / "out")]
    with ThreadPoolExecutor(2) as threads:
        lines = sorted(threads.map(first_line, processes))
    assert lines[0] == "held"
    assert lines[1].startswith("refused: ")


def test_of_several_threads_that_start_together_exactly_one_goes_on(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def take(_: int) -> bool:
        lock = Lock(str(tmp_path), FOREVER)
        together.wait(GUARD)
        try:
            with lock:
                together.wait(GUARD)  # the others were refused
                return True
        except LockHeldError:
            together.wait(GUARD)
            return False

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(take, range(4))) == [False, False, False, True]
    assert list(tmp_path.iterdir()) == []


# --- who has died --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reaped", [True, False])
def test_a_holder_that_was_killed_here_is_replaced_at_once(start: Start, tmp_path: Path, reaped: bool) -> None:
    """Its silence would be heard after days."""
    holder = start(tmp_path)
    assert first_line(holder) == "held"
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    next_one = start(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(first_line, next_one).result(GUARD) == "held"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_process_that_has_the_number_of_a_dead_holder_is_not_taken_for_it(start: Start, tmp_path: Path) -> None:
    holder = start(tmp_path / "other")
    assert first_line(holder) == "held"
    content = read_lock(str(tmp_path / "other"))
    assert content is not None
    boot, namespace, started = content["process"]
    write_lock(tmp_path / "out", **content | {"process": [boot, namespace, str(int(started) - 1)]})
    with Lock(str(tmp_path / "out"), FOREVER):
        assert is_held(tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_may_have_any_name() -> None:
    program = "open('/proc/self/comm', 'wb').write(b'\\xff) Z (\\n'); print('named', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"named\n"
        key = process_key(process.pid)
        assert key is not None and key[:2] == process_key(os.getpid())[:2]
        process.communicate(b"\n")


def test_a_holder_elsewhere_with_a_recent_beat_lives(tmp_path: Path) -> None:
    path = write_lock(tmp_path, seconds=FOREVER)
    with pytest.raises(LockHeldError, match="process 1 on another-host"), Lock(str(tmp_path)):
        pass
    assert path.exists()


@pytest.mark.parametrize("hours", [5, -5])
def test_a_holder_elsewhere_that_is_silent_is_replaced(tmp_path: Path, hours: float) -> None:
    """Whether its clock was right or ahead."""
    write_lock(tmp_path, beat=hours_ago(hours))
    with Lock(str(tmp_path)):
        assert is_held(tmp_path)


@pytest.mark.parametrize("hours", [5, -5])
def test_a_holder_elsewhere_that_beats_lives_though_its_clock_is_hours_off(tmp_path: Path, hours: float) -> None:
    stop = threading.Event()

    def beat() -> None:
        beats = 4
        while not stop.wait(0.05):
            write_lock(tmp_path, beat=hours_ago(hours), beats=beats, seconds=10.0)
            beats += 1

    path = write_lock(tmp_path, beat=hours_ago(hours), seconds=10.0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockHeldError, match="another-host"), Lock(str(tmp_path)):
            pass
    finally:
        stop.set()
        thread.join()
    assert path.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{", "\0", "[" * 100_000, '{"seconds": 0.1}', '{"beat": 5, "seconds": 0.1}'],
    ids=lambda content: ascii(content)[:20],
)  # fmt: skip
def test_a_lock_that_cannot_be_read_is_watched_and_then_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr("pipelines.data_set.lock.DEFAULT_SECONDS", 0.1)
    (tmp_path / FILE).write_text(content)
    with Lock(str(tmp_path), FOREVER):
        assert is_held(tmp_path)


def test_a_holder_beats(tmp_path: Path) -> None:
    def beats() -> float:
        holder = read_lock(str(tmp_path))
        assert holder is not None
        return float(holder["beats"])

    with Lock(str(tmp_path), 1.0):
        for _ in range(3):
            before, deadline = beats(), time.monotonic() + GUARD
            while beats() == before:
                assert time.monotonic() < deadline
                time.sleep(0.05)


# --- losing it -----------------------------------------------------------------------------------------------------


def test_it_is_told_apart_whether_it_is_gone_or_another_has_it(tmp_path: Path) -> None:
    with Lock(str(tmp_path)) as lock:
        lock.check()
        write_lock(tmp_path)
        with pytest.raises(RunError, match="another run has taken this one for dead"):
            lock.check()
        (tmp_path / FILE).unlink()
        with pytest.raises(RunError, match="is gone; was the output removed"):
            lock.check()


def test_a_lock_that_another_has_taken_is_left_to_it(tmp_path: Path) -> None:
    """Who was suspended for so long neither renews nor removes what is another's."""
    with Lock(str(tmp_path), 0.1):
        path = write_lock(tmp_path)
        content = path.read_text()
        time.sleep(0.3)  # several beats; a slow machine sees fewer
        assert path.read_text() == content
    assert path.read_text() == content
