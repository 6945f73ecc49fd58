"""The same rows with any number of workers; failures that leave nothing half done."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from apache_beam.runners.runner import PipelineResult, PipelineState

from pipelines import score
from pipelines.cli.options import parse
from pipelines.data_set.manifest import DataFile
from pipelines.runs.accounting import reconcile
from pipelines.runs.context import locked, open_context
from pipelines.runs.explain import explain
from pipelines.runs.plan import make_plan
from pipelines.runs.progress import counters
from tests.pipelines.conftest import Finished, corpus, environment, posts, read_live, read_scores, write_lines
from tests.pipelines.runs.conftest import LOOPBACK, assert_failed
from torchmoji_core.errors import RunError

Score = Callable[..., Finished]


def test_two_workers_give_the_same_rows(run_score: Score, inputs: Path, reference: pa.Table, tmp_path: Path) -> None:
    finished = run_score("--input", f"{inputs}/*", "--output", "two", "--direct_num_workers", "2")
    assert finished.status == 0, finished.err
    assert read_scores(tmp_path / "two").equals(reference)


def test_batch_limits_do_not_matter(run_score: Score, inputs: Path, reference: pa.Table, tmp_path: Path) -> None:
    finished = run_score("--input", f"{inputs}/*", "--output", "small", "--max_batch_rows", "7", "--threads", "1")
    assert finished.status == 0, finished.err
    assert read_scores(tmp_path / "small").equals(reference)


def test_the_cache_does_not_matter(run_score: Score, inputs: Path, reference: pa.Table, tmp_path: Path) -> None:
    assert run_score("--input", f"{inputs}/*", "--output", "scored", "--cache_mb", "0").status == 0
    assert read_scores(tmp_path / "scored").equals(reference)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_nor_does_anything_in_any_precision(run_score: Score, inputs: Path, tmp_path: Path, precision: str) -> None:
    common = ("--input", f"{inputs}/*", "--precision", precision)
    assert run_score(*common, "--output", "a").status == 0
    changed = ("--cache_mb", "0", "--threads", "1", "--max_batch_rows", "33")
    assert run_score(*common, "--output", "b", *changed).status == 0
    assert read_scores(tmp_path / "a").equals(read_scores(tmp_path / "b"))


@pytest.mark.parametrize("runner", [[], LOOPBACK], ids=["local", "portable"])
def test_a_file_that_arrives_between_plan_and_pipeline_waits_for_the_next_run(
    runner: list[str], run_score: Score, run_verify: Score, model: str, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 10)
    command = ["--input", f"{tmp_path}/in/*", "--output", "out"]
    config, rest = parse([*command, "--model", model, "--progress", "off", *runner])
    with open_context(config, rest) as context, locked(context):
        plan = make_plan(config, context.data_set, context.scratch)
        context.figures.update(model=plan.model.name, fingerprint=plan.model.fingerprint)
        corpus(tmp_path / "in", 1, 10, first=2)
        assert score.run(plan, context) == 0
    assert len(read_live(tmp_path / "out")) == 20
    assert run_verify().status == 0
    assert run_score(*command).status == 0
    assert len(read_live(tmp_path / "out")) == 30
    assert run_verify().status == 0


def test_a_file_that_cannot_grow(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        finished = run_score("--input", "in.jsonl", "--output", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_failed(finished, "out")
    assert not list((tmp_path / "out").glob("**/*.parquet"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk(run_score: Score, tmp_path: Path, workers: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3000))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        finished = run_score("--input", "in.jsonl", "--output", "disk/out", "--direct_num_workers", workers)
        assert_failed(finished, "disk full")
        assert not list(disk.glob("**/*.parquet"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # a failed run's files are closed with its objects


def test_the_output_is_removed_while_running(model: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(20_000))
    command = [sys.executable, "-m", "pipelines.score", "--model", model, "--input", "in.jsonl", "--output", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/_tmp/*/*.parquet")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "out")
    out, err = process.communicate(timeout=120)
    assert_failed(Finished(process.returncode, out, err), "was the output removed while running?")
    assert not list(tmp_path.glob("out/**/*.parquet"))


def test_counts_that_do_not_add_up_fail_the_run() -> None:
    good = {"files_read": 2, "read": 6, "scored": 3, "empty": 1, "dead": 2, "rows_written": 4}
    files = [DataFile("date=2026-01-31/part-a.parquet", 3, 0, ""), DataFile("part-b.parquet", 1, 0, "")]
    dead = [DataFile("_dead_letters/part-c.jsonl", 2, 0, "")]
    reconcile(good, [*files, *dead], 2)
    for name in good.keys() - {"files_read"}:
        with pytest.raises(RunError, match="do not add up"):
            reconcile(good | {name: 5}, [*files, *dead], 2)
    for written in ([*files[:1], *dead], files, dead, [*files, *files, *dead], [*files, *dead, *dead]):
        with pytest.raises(RunError, match="do not add up"):
            reconcile(good, written, 2)
    with pytest.raises(RunError, match=r"says that it is done, and has counted 0 of 2 input\(s\)"):
        reconcile({}, [], 2)  # nothing is equal to nothing


def test_a_runner_that_counts_nothing_fails_the_run() -> None:
    """Beam leaves that to each runner."""
    with pytest.raises(RunError, match="the runner does not say what it has counted"):
        counters(PipelineResult(PipelineState.DONE))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "disk full"),
        (RuntimeError("Traceback ...\nOSError: [Errno 28] No space left on device\n"), "disk full"),
        (RunError("x is gone [while running 'Write']"), "x is gone"),
        (RuntimeError("Traceback ...\ntorchmoji_core.errors.RunError: x is gone [while running 'W']\n"), "x is gone"),
        (MemoryError(), "--max_batch_tokens"),
    ],
)
def test_failures_are_explained_in_one_line(error: BaseException, expected: str) -> None:
    line = explain(error, "out")
    assert expected in line and "\n" not in line and "while running" not in line
