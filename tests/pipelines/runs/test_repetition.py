"""Annotation again and again: what is done at each look at inputs that come, grow, change, or cannot be read."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.cli.annotate_options import parse
from pipelines.data_set.snapshot import DataSet, live_files
from pipelines.runs import repetition
from tests.pipelines.conftest import Finished, corpus, posts, read_live, write_lines
from torchmoji_core.errors import InputError

Run = Callable[..., Finished]
Step = Callable[[], object]


@pytest.fixture
def repeat(model: str, run_main: Run) -> Run:
    """`annotate --every` from `in` to `out`: a look, a step of the test, the next look; after the last step it ends."""

    def run(*steps: Step, options: tuple[str, ...] = ()) -> Finished:
        waiting = iter(steps)

        def wait(seconds: float) -> bool:
            assert seconds == 3600
            step = next(waiting, None)
            if step is not None:
                step()
            return step is None

        def main(arguments: list[str]) -> int:
            config, rest = parse(arguments)
            assert config.every is not None
            return repetition.run(config, rest, wait)

        arguments = ("--model", model, "--input", "in", "--output", "out", "--every", "1h", "--settle", "0s")
        return run_main(main, *arguments, *options)

    return run


@pytest.fixture(autouse=True)
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


def ids() -> list[str]:
    return read_live(Path("out")).column("id").to_pylist() if live_files("out") else []


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("report.json").read_text())
    return content


def is_sound(run_verify: Run) -> bool:
    finished = run_verify()
    assert finished.status == 0, finished.out
    return True


def test_files_that_come_grow_and_change(
    source: Path, repeat: Run, run_annotate: Run, run_verify: Run, model: str
) -> None:
    weights, moved = Path(model) / "model.safetensors", Path("weights").absolute()

    def one_comes() -> None:
        assert ids() == []
        write_lines(source / "a.jsonl", [{"id": "1", "text": "so happy"}, {"id": "2", "text": "late"}])

    def another_comes() -> None:
        assert ids() == ["1", "2"]
        weights.rename(moved)  # from here on nobody can load the model
        weights.touch()
        write_lines(source / "b.jsonl", [{"id": "3", "text": "rain"}, b'{"id": "4", "te'])

    def it_grows() -> None:
        assert ids() == ["1", "2", "3"]
        assert report()["exit_status"] == 3
        write_lines(source / "b.jsonl", [{"id": "3", "text": "rain"}, {"id": "4", "text": "sun"}])

    def one_changes() -> None:
        assert ids() == ["1", "2", "3", "4"]
        assert (report()["exit_status"], report()["inputs_committed"], report()["dead"]) == (0, 3, 1)
        write_lines(source / "a.jsonl", [{"id": "1", "text": "so sad"}])

    def nothing_happens() -> None:
        assert ids() == ["1", "3", "4"]

    steps = (one_comes, another_comes, it_grows, one_changes, nothing_happens)
    try:
        finished = repeat(*steps, options=("--report", "report.json", "--max_dead_fraction", "0.4"))
    finally:
        moved.rename(weights)
    assert finished.status == 0, finished.err
    assert "inputs      0 file(s)" in finished.out and "again       every 3600 s" in finished.out
    assert finished.out.count("model  ") == 2, "the plan and the summary"
    assert finished.out.count("committed   1 file(s)") == 4
    assert finished.err.count("too many dead letters: 50.0%") == 1
    assert is_sound(run_verify)
    for path in live_files("out"):
        run_id = pq.read_schema(path).metadata[b"torchmoji.run_id"].decode()
        assert Path(path).name.startswith(f"part-{run_id}-"), "a model that is kept names each run's files"
    assert "nothing is new" in run_annotate().out, "annotate goes on where it was left"


def test_the_lock_is_wanted_only_where_something_is_new(source: Path, repeat: Run, run_verify: Run) -> None:
    lock = Path("out", "_lock.json")

    def is_taken_by_another() -> None:
        assert len(ids()) == 5
        content = {"host": "other", "beat": datetime.now(UTC).isoformat(), "seconds": 300.0}
        lock.write_text(json.dumps(content))

    def is_missed() -> None:
        corpus(source, 1, 5, first=1)

    def is_given_back() -> None:
        assert len(ids()) == 5
        lock.unlink()

    corpus(source, 1, 5)
    nothing = (lambda: None,)
    finished = repeat(is_taken_by_another, *nothing, is_missed, *nothing, is_given_back)
    assert finished.status == 0
    assert finished.err.count("waiting: out is being written by") == 1, finished.err
    assert len(ids()) == 10
    assert is_sound(run_verify)


def test_what_cannot_be_read_is_said_once_and_keeps_nothing_else(source: Path, repeat: Run, run_verify: Run) -> None:
    unreadable = source / "socket.csv"

    def another_comes() -> None:
        assert len(ids()) == 5
        assert (report()["exit_status"], report()["inputs_unreadable"]) == (1, 1)
        corpus(source, 1, 5, first=1)

    def it_is_mended() -> None:
        assert len(ids()) == 10
        unreadable.unlink()
        unreadable.write_text("id,text\nmended,so happy\n")

    corpus(source, 1, 5)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(unreadable))
        finished = repeat(another_comes, it_is_mended, options=("--report", "report.json"))
    assert finished.status == 0, finished.err
    assert finished.err.count("socket.csv cannot be opened") == 1
    assert len(ids()) == 11
    assert report()["exit_status"] == 0
    assert is_sound(run_verify)


def test_a_failure_that_may_pass_is_said_once_and_tried_again(source: Path, repeat: Run, run_verify: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    threads: list[int] = []

    def files_may_be_small_only() -> None:
        write_lines(source / "large.jsonl", posts(600))
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))

    def it_has_failed() -> None:
        threads.append(threading.active_count())
        assert len(ids()) == 5
        assert (report()["exit_status"], report()["inputs_committed"]) == (1, 1)

    def any_size_may_be() -> None:
        it_has_failed()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    corpus(source, 1, 5)
    steps = (files_may_be_small_only, it_has_failed, any_size_may_be)
    try:
        finished = repeat(*steps, options=("--report", "report.json"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert finished.status == 0, finished.err
    assert finished.err.count("failed, and tried again: a file has reached the size limit") == 1
    assert threads[-1] <= threads[0], "what has failed has ended"
    assert len(ids()) == 605
    assert "error" not in report()
    assert is_sound(run_verify)


def test_a_mistake_ends_it_and_what_was_committed_stays(source: Path, repeat: Run) -> None:
    (path,) = corpus(source, 1, 5)
    finished = repeat(lambda: write_lines(path, posts(7)), pytest.fail, options=("--on_changed", "fail"))
    assert finished.status == 2
    assert finished.err.splitlines()[-1].startswith(f"error: input {path} has changed since it was scored")
    assert len(ids()) == 5


def test_what_is_being_written_is_left_alone(source: Path, repeat: Run) -> None:
    def some_are_put_beside() -> None:
        for name in ("half.jsonl.tmp", "other.tmp", ".hidden.jsonl", "_hidden.jsonl"):
            (source / name).write_text("{")
        corpus(source, 1, 5, first=1)

    corpus(source, 1, 5)
    os.utime(source / "0000.jsonl", (1.0, 1.0))
    finished = repeat(some_are_put_beside, lambda: None, options=("--settle", "1h"))
    assert finished.status == 0
    assert finished.err.count("passed over") == finished.err.count(".tmp, and others") == 1
    assert ids() == [f"0-{row}" for row in range(5)]


def test_a_file_is_waited_for_unless_the_user_says_otherwise() -> None:
    inputs = ["--input", "in", "--output", "out"]
    assert parse(inputs)[0].settle == 0
    assert parse([*inputs, "--every", "1m"])[0].settle == 2
    assert parse([*inputs, "--every", "1m", "--settle", "0s"])[0].settle == 0
    with pytest.raises(InputError, match="--every must be more than 0"):
        parse([*inputs, "--every", "0"])
    with pytest.raises(InputError, match="--every: must be a time like"):
        parse([*inputs, "--every", "often"])


@pytest.mark.parametrize("wrong", ["missing", "in/file.jsonl", "missing/*.jsonl"])
def test_what_is_not_there_is_said_before_anything_is_done(wrong: str, repeat: Run) -> None:
    finished = repeat(pytest.fail, options=("--input", wrong))
    assert (finished.status, finished.out) == (2, "")
    assert "no file matches; check the path" in finished.err
    assert not Path("out").exists()


def test_a_dry_run_says_what_it_would_do(source: Path, repeat: Run) -> None:
    corpus(source, 2, 3)
    finished = repeat(pytest.fail, options=("--dry_run",))
    assert finished.status == 0
    assert "inputs      2 file(s)" in finished.out and "dry run" in finished.out
    assert not Path("out").exists()


@pytest.fixture
def signalled() -> Iterator[threading.Thread]:
    """A signal to this process, once something is committed."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not list(Path("out").glob("_manifests/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    yield thread
    thread.join()


@pytest.mark.parametrize("n_files", [1, 30], ids=["while it waits", "while it works"])
def test_a_signal_ends_it_after_the_group_that_it_is_at(
    n_files: int, source: Path, run_annotate: Run, run_verify: Run, signalled: threading.Thread
) -> None:
    corpus(source, n_files, 3)
    signalled.start()
    finished = run_annotate("--every", "1d", "--settle", "0s", "--commit_every", "1ms")
    assert finished.status == 0, finished.err
    committed = len(DataSet.read("out").live.inputs)
    assert committed == n_files or 0 < committed < 30
    assert "dead letters" in finished.out, "the summary"
    assert not Path("out", "_tmp").exists()
    assert is_sound(run_verify)
    assert run_annotate().status == 0
    assert len(ids()) == 3 * n_files
