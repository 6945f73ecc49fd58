"""Runs under ever lower limits of memory, files and threads: each scores every row, or fails and leaves nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.conftest import environment, posts, write_lines

pytestmark = pytest.mark.faults

ROWS = 3000
SECONDS = 120


def score(directory: Path, model: str, preparation: Callable[[], None]) -> tuple[int | None, str]:
    """Status, None for a run that had to be killed, as one whose own threads could not start, and what was printed."""
    command = [sys.executable, "-m", "pipelines.score", "--model", model, "--input", "in.jsonl", "--output", "out"]
    with (directory / "log").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*command, "--cache_mb", "0", "--progress", "off", "--report", "report.json"],
            cwd=directory,
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            preexec_fn=preparation,
        )
        try:
            status: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        log.seek(max(0, log.seek(0, os.SEEK_END) - (1 << 20)))  # who prints without end is not read to it
        return status, log.read()


def assert_all_or_nothing(directory: Path, status: int | None, said: str) -> None:
    """Whatever becomes of the process, what it has committed is whole, and no good row is dead."""
    assert not list(directory.glob("out/_dead_letters/*")), said
    manifests = list(directory.glob("out/_manifests/*.json"))
    assert bool(manifests) == (status == 0), f"status {status}: {said}"
    if status == 0:
        counts = json.loads((directory / "report.json").read_text())
        assert (counts["read"], counts["scored"], counts.get("dead", 0)) == (ROWS, ROWS, 0)


def used(directory: Path, model: str) -> int:
    """Bytes of address space that a run takes when nothing limits it."""
    code = (
        "import runpy, sys, atexit, re\n"
        "atexit.register(lambda: print('peak', re.search(r'VmPeak:\\s+(\\d+)', open('/proc/self/status').read())[1]))\n"
        "import pipelines.cli.exits\n"
        "pipelines.cli.exits.end = sys.exit\n"
        "runpy.run_module('pipelines.score', run_name='__main__', alter_sys=True)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, "--model", model, "--input", "in.jsonl", "--output", "all", "--cache_mb", "0"],
        cwd=directory,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout.rpartition("peak ")[2].split()[0]) << 10


def test_less_and_less_address_space(tmp_path: Path, tiny_model: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(ROWS))
    most = used(tmp_path, tiny_model)
    statuses = []
    for share in (1.2, 0.98, 0.94, 0.9, 0.86, 0.8):
        limit = int(most * share)
        directory = tmp_path / str(share)
        directory.mkdir()
        (directory / "in.jsonl").symlink_to(tmp_path / "in.jsonl")
        status, said = score(directory, tiny_model, lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))  # noqa: B023
        assert_all_or_nothing(directory, status, said)
        statuses.append(status)
        if status == 1 and "failed: " in said:
            assert "memory" in said.rpartition("failed: ")[2], said
    assert statuses[0] == 0 and 1 in statuses, statuses


@pytest.mark.parametrize("files", [8, 12, 16, 24])
def test_fewer_and_fewer_open_files(files: int, tmp_path: Path, tiny_model: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(ROWS))
    status, said = score(tmp_path, tiny_model, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
    assert_all_or_nothing(tmp_path, status, said)
