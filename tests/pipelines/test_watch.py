"""A watched directory, as a user runs it: in a process of its own, over files that come, grow and change."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import dataset

from pipelines.data_set import DataSet, live_files
from tests.pipelines.conftest import Finished, corpus, posts, write_lines
from tests.processes import START_SECONDS, ScoreProcess

Run = Callable[..., Finished]
PARTITIONS = dataset.partitioning(pa.schema([("date", pa.string()), ("hour", pa.string())]), flavor="hive")


class Watcher(ScoreProcess):
    """A running `pipelines.score --watch in --output out`."""

    def __init__(self, directory: Path, model: str, *options: str, preparation: Callable[[], None] | None) -> None:
        self._directory = directory
        arguments = ["--watch", "in", "--output", "out", "--model", model, "--poll", "300ms", *options]
        super().__init__(directory, *arguments, preparation=preparation)

    def wait_for_rows(self, number: int) -> None:
        self.wait_for(lambda: len(ids(self._directory / "out")) == number)

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Watch = Callable[..., contextlib.AbstractContextManager[Watcher]]


@pytest.fixture
def watch(tmp_path: Path, model: str) -> Watch:
    """A watcher for a block; a process that is left is killed."""

    @contextlib.contextmanager
    def run(*options: str, preparation: Callable[[], None] | None = None) -> Iterator[Watcher]:
        (tmp_path / "in").mkdir(exist_ok=True)
        watcher = Watcher(tmp_path, model, *options, preparation=preparation)
        try:
            yield watcher
        finally:
            watcher.close()

    return run


def read(output: Path) -> pa.Table:
    return dataset.dataset(live_files(str(output)), partitioning=PARTITIONS).to_table()


def ids(output: Path) -> list[str]:
    paths = live_files(str(output))
    return sorted(read(output).column("id").to_pylist()) if paths else []


def lines(*numbers: int) -> list[object]:
    """Posts of different hours."""
    return [
        {"id": f"post-{number}", "text": "so happy", "at": f"2026-01-31T{number % 24:02}:59:59Z"} for number in numbers
    ]


def is_sound(run_verify: Run) -> bool:
    finished = run_verify()
    assert finished.status == 0, finished.out
    return True


def test_files_that_come_grow_and_change(tmp_path: Path, model: str, watch: Watch, run_verify: Run) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    options = ("--timestamp_field", "at", "--report", "report.json", "--max_dead_fraction", "0.4")
    with watch(*options) as watcher:
        watcher.wait_for(lambda: "watching" in watcher.log)
        write_lines(source / "a.jsonl", lines(0, 1, 25))
        watcher.wait_for_rows(3)
        # From here on the weights cannot be read once more.
        weights = Path(model) / "model.safetensors"
        weights.rename(tmp_path / "weights")
        weights.touch()
        try:
            found = sorted(read(output).select(["date", "hour", "id"]).to_pydict().items())
            assert dict(found)["date"] == ["2026-01-31"] * 3
            assert sorted(zip(dict(found)["hour"], dict(found)["id"], strict=True)) == [
                ("00", "post-0"), ("01", "post-1"), ("01", "post-25"),
            ]  # fmt: skip

            # Half of it is there, and for longer than a file is waited for; then all of it.
            half = write_lines(source / "b.jsonl", [*lines(2), b'{"id": "post-3", "te'])
            watcher.wait_for(lambda: "too many dead letters" in watcher.log)
            write_lines(half, lines(2, 3))
            watcher.wait_for(lambda: "post-3" in ids(output))
            assert ids(output) == ["post-0", "post-1", "post-2", "post-25", "post-3"]

            write_lines(source / "a.jsonl", lines(0, 4))
            watcher.wait_for(lambda: "post-4" in ids(output))
            assert ids(output) == ["post-0", "post-2", "post-3", "post-4"]
        finally:
            (tmp_path / "weights").rename(weights)
        (source / "half.jsonl.tmp").write_text("{")
        (source / "other.tmp").write_text("{")
        (source / ".hidden.jsonl").write_text("{")
        watcher.wait_for(lambda: "left alone" in watcher.log)
        before = watcher.cpu_seconds
        time.sleep(1.5)
        assert watcher.cpu_seconds - before < 0.3, "looks that find nothing cost little"
        assert watcher.log.count("left alone") == 1
        assert watcher.stop() == 0
    for path in live_files(str(output)):
        run_id = pq.read_schema(path).metadata[b"torchmoji.run_id"].decode()
        assert Path(path).name.startswith(f"part-{run_id}-"), "a model that is kept names each run's files"
    assert "half.jsonl.tmp" in watcher.log
    assert "Traceback" not in watcher.log
    assert watcher.log.count("fingerprint") == 2, "the plan and the summary"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["exit_status"], report["inputs_committed"], report["dead"]) == (0, 4, 1)
    assert is_sound(run_verify)


def test_after_kill_and_restart_every_row_is_there_once(
    tmp_path: Path, watch: Watch, run_verify: Run, run_annotate: Run
) -> None:
    output = tmp_path / "out"
    (tmp_path / "in").mkdir()
    with watch() as watcher:
        watcher.wait_for(lambda: "watching" in watcher.log)
        corpus(tmp_path / "in", 20, 30)
        watcher.wait_for(lambda: list(output.glob("_tmp/*/*.parquet")) or live_files(str(output)))
        watcher.stop(signal.SIGKILL)
    corpus(tmp_path / "in", 1, 5, first=50)
    with watch() as watcher:
        watcher.wait_for_rows(605)
        assert watcher.stop() == 0
    expected = sorted([f"{number}-{row}" for number in range(20) for row in range(30)] + [f"50-{i}" for i in range(5)])
    assert ids(output) == expected
    assert is_sound(run_verify)
    assert not (output / "_tmp").exists()
    finished = run_annotate("--partition_by", "date,hour")
    assert finished.status == 0
    assert "nothing is new" in finished.out, "annotate goes on where it was left"


def test_what_others_do_and_what_cannot_be_read_is_waited_for(tmp_path: Path, watch: Watch, run_verify: Run) -> None:
    lease = tmp_path / "out" / "_lease" / "other.json"
    lease.parent.mkdir(parents=True)
    beat = datetime.now(UTC).isoformat()
    lease.write_text(json.dumps({"state": "holder", "host": "other", "beat": beat, "seconds": 300.0}))
    corpus(tmp_path / "in", 1, 5)
    with watch() as watcher, socket.socket(socket.AF_UNIX) as unreadable:
        watcher.wait_for(lambda: "tried again every 0.3 s" in watcher.log)
        time.sleep(1)
        assert watcher.log.count("tried again") == 1
        lease.unlink()
        watcher.wait_for_rows(5)
        unreadable.bind(str(tmp_path / "in" / "socket.csv"))
        watcher.wait_for(lambda: "socket.csv cannot be opened" in watcher.log)
        corpus(tmp_path / "in", 1, 5, first=1)
        watcher.wait_for_rows(10)
        assert watcher.log.count("cannot be opened") == 1
        assert watcher.stop(signal.SIGINT) == 0
    assert is_sound(run_verify)


def test_a_run_that_fails_ends_it_and_what_was_committed_stays(tmp_path: Path, watch: Watch, run_verify: Run) -> None:
    with watch(preparation=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))) as watcher:
        corpus(tmp_path / "in", 1, 5)
        watcher.wait_for_rows(5)
        write_lines(tmp_path / "in" / "large.jsonl", posts(2000))
        assert watcher.process.wait(START_SECONDS) == 1
    assert "failed: a file in out hit the size limit" in watcher.log
    assert len(ids(tmp_path / "out")) == 5
    assert is_sound(run_verify)


def test_a_signal_ends_it_after_the_group_that_it_is_at(tmp_path: Path, watch: Watch, run_verify: Run) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        rows: list[object] = [{"id": f"{name}-{row}", "text": f"so {row} happy " * 60} for row in range(3000)]
        assert write_lines(tmp_path / "in" / f"{name}.jsonl", rows).stat().st_size > 2_000_000, "a group of its own"
    with watch() as watcher:
        watcher.wait_for(lambda: list((tmp_path / "out").glob("_tmp/*/*.parquet")))
        assert watcher.stop() == 0
    committed = DataSet.read(str(tmp_path / "out")).live.inputs
    assert {Path(path).name for path in committed} == {"a.jsonl"}
    assert len(ids(tmp_path / "out")) == 3000
    assert is_sound(run_verify)


def test_what_cannot_be_watched_is_said_before_anything_is_done(
    tmp_path: Path, run_score: Run, model: str, run_annotate: Run
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file.jsonl").touch()
    for wrong in ("missing", "file.jsonl", "missing/*.jsonl"):
        finished = run_score("--watch", wrong, "--output", "new")
        assert (finished.status, finished.out) == (2, "")
        assert finished.err == f"error: --watch {wrong}: there is no such directory; make it, or check the path\n"
    assert not (tmp_path / "new").exists()
    corpus(tmp_path / "in", 1, 3)
    assert run_annotate().status == 0
    finished = run_score("--watch", "in", "--output", "out")
    assert finished.status == 2
    assert "another command (other partition_by)" in finished.err


def test_a_dry_run_says_what_it_would_do(tmp_path: Path, run_score: Run) -> None:
    corpus(tmp_path / "in", 2, 3)
    past = time.time() - 60
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (past, past))
    finished = run_score("--watch", "in", "--output", "out", "--dry_run")
    assert finished.status == 0
    assert "inputs      2 file(s)" in finished.out
    assert "dry run" in finished.out
    assert not (tmp_path / "out").exists()
