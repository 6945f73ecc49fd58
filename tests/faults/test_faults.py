"""Full disks, clocks that step, files that change under the reader: after each, the next run puts it right."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.conftest import Annotator, remount
from tests.pipelines.conftest import corpus

pytestmark = pytest.mark.faults


def test_a_disk_that_is_full_for_a_while(annotator: Annotator, undisturbed: pa.Table, small_disk: Path) -> None:
    said = annotator.run("--commit_every", "0.1s", status=1)
    assert "disk full" in said
    assert "Traceback" not in said
    annotator.verify()
    committed = annotator.rows().num_rows
    assert 0 < committed < undisturbed.num_rows
    remount(small_disk, "size=100m")
    annotator.run()
    annotator.verify()
    assert annotator.rows().equals(undisturbed)


def test_a_disk_that_is_read_only_for_a_while(annotator: Annotator, undisturbed: pa.Table, small_disk: Path) -> None:
    remount(small_disk, "size=100m,ro")
    said = annotator.run(status=2)
    assert "cannot be written (Read-only file system); check path and permissions" in said
    assert "Traceback" not in said
    remount(small_disk, "rw")
    annotator.run()
    remount(small_disk, "ro")
    annotator.verify()
    assert annotator.rows().equals(undisturbed)
    assert annotator.run(status=2)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_input_that_is_truncated_while_it_is_read(annotator: Annotator, suffix: str, tmp_path: Path) -> None:
    big = tmp_path / "in" / "big.jsonl"
    line = '{{"id": "big-{}", "text": "so late again, the bus"}}\n'
    big.write_text("".join(line.format(number) for number in range(60_000)))
    if suffix:
        subprocess.run(["gzip", "-1", str(big)], check=True)
        big = big.with_name("big.jsonl.gz")
    whole = big.stat().st_size

    def truncate() -> None:
        deadline = time.monotonic() + 60
        while not list(annotator.output.glob("_tmp/*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.truncate(big, whole // 2)

    thread = threading.Thread(target=truncate)
    thread.start()
    said = annotator.run("--commit_every", "0")
    thread.join()
    assert "left to the next run" in said
    annotator.verify()
    assert annotator.rows().num_rows == 8 * 250
    annotator.run("--max_dead_fraction", "1")
    annotator.verify()
    assert annotator.rows().num_rows > 8 * 250 + 1000


def test_a_clock_that_steps_backwards(annotator: Annotator, undisturbed: pa.Table, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "in").iterdir())[4:]:
        path.rename(tmp_path / path.name)
    annotator.run(clock=timedelta(days=2))
    for path in sorted(tmp_path.glob("*.jsonl")):
        path.rename(tmp_path / "in" / path.name)
    annotator.run(clock=timedelta(days=-2))
    annotator.verify("--clean")
    assert annotator.rows().equals(undisturbed)
    assert "nothing is new" in annotator.run()


def test_a_lock_from_the_future_of_a_run_that_died_does_not_keep_others_out(
    annotator: Annotator, undisturbed: pa.Table
) -> None:
    process = annotator.start("--commit_every", "0.1s", clock=timedelta(days=2))
    deadline = time.monotonic() + 60
    while not list((annotator.output / "_manifests").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert (annotator.output / "_lock.json").exists()
    annotator.run()
    annotator.verify()
    assert annotator.rows().equals(undisturbed)


def test_a_manifest_that_is_damaged(annotator: Annotator, undisturbed: pa.Table, tmp_path: Path) -> None:
    annotator.run("--commit_every", "0.1s")
    manifests = sorted((annotator.output / "_manifests").glob("*.json"))
    assert len(manifests) > 2
    manifests[1].write_bytes(manifests[1].read_bytes()[:100])
    said = annotator.run(status=2)
    assert str(manifests[1].name) in said
    assert "move it away" in said
    annotator.verify(status=1)
    manifests[1].rename(tmp_path / "damaged.json")
    annotator.run()
    assert annotator.rows().equals(undisturbed)
    assert "no manifest lists it" in annotator.verify(status=1)
    annotator.verify("--clean", "--older_than", "0s")
    assert annotator.rows().equals(undisturbed)


@pytest.mark.parametrize("attempt", range(5))
def test_two_runs_started_together(annotator: Annotator, undisturbed: pa.Table, attempt: int) -> None:
    processes = [annotator.start("--commit_every", "0.1s") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 4], said
    (loser,) = [index for index, process in enumerate(processes) if process.returncode == 4]
    assert f"process {processes[1 - loser].pid} on " in said[loser][1] or "several runs at once" in said[loser][1]
    annotator.verify()
    assert annotator.rows().equals(undisturbed)


def test_200_mb_of_dead_input_among_good(tmp_path: Path, tiny_model: str) -> None:
    corpus(tmp_path / "in", 4, 250)
    annotator = Annotator(tmp_path, tiny_model)
    annotator.run()
    expected = annotator.rows()
    peaks = []
    for megabytes in (20, 200):
        other = tmp_path / str(megabytes)
        other.mkdir()
        corpus(other / "in", 4, 250)
        with (other / "in" / "dead.jsonl").open("wb") as file:
            for _ in range(megabytes * 10):
                file.write(b'{"id": "dead", "text": \n' * 4_000 + b"\xff" * 4_000 + b"\n")
        bad = Annotator(other, tiny_model)
        code = (
            "import resource, runpy, sys, atexit\n"
            "atexit.register(lambda: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
            "runpy.run_module('pipelines.annotate', run_name='__main__', alter_sys=True)"
        )
        said = bad.run("--commit_every", "0", status=3, command=("-c", code))
        peaks.append(int(said.rpartition("peak ")[2].split()[0]) // 1024)
        assert bad.rows().equals(expected)
        bad.verify()
    assert peaks[1] < peaks[0] + 150, f"megabytes at 20 and 200 MB of input: {peaks}"
