"""What the processes of a job import: torch and Beam cost seconds each, so only those that need them pay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.conftest import environment, posts, write_lines

HEAVY = {"torch", "scipy", "apache_beam", "apache_beam.ml", "pandas", "google.cloud.storage", "boto3"}


def imported(program: str, directory: Path) -> set[str]:
    """Heavy modules that a program has imported by its end."""
    said = f"{program}\nimport sys\nprint('imported:', *({HEAVY!r} & sys.modules.keys()))"
    finished = subprocess.run(
        [sys.executable, "-c", said], cwd=directory, env=environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.rpartition("imported:")[2].split())


def test_who_sends_a_job_imports_beam_alone(tmp_path: Path) -> None:
    """Not torch, which scores elsewhere; nor Beam's package for models; nor what Beam imports because it is there."""
    write_lines(tmp_path / "in.jsonl", posts(3))
    job = ["--input=in.jsonl", "--output=out", "--runner=PortableRunner", "--job_endpoint=localhost:1", "--dry_run"]
    program = f"from pipelines import score\nassert score.main({job!r}) == 0\nimport pipelines.runs.execute"
    assert imported(program, tmp_path) == {"apache_beam"}


def test_a_run_on_this_machine_leaves_out_what_beam_imports_in_passing(tmp_path: Path) -> None:
    """Not even Arrow, which looks for pandas too, finds it."""
    write_lines(tmp_path / "in.jsonl", posts(3))
    program = "from pipelines import score\nassert score.main(['--input=in.jsonl', '--output=out']) == 0"
    assert imported(program, tmp_path) == {"apache_beam", "torch"}


def test_for_dataflow_beam_has_all_that_is_there(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    program = "from pipelines.runs.beam_alone import import_beam\nimport_beam(is_dataflow=True)\nimport apache_beam"
    assert {"apache_beam", "pandas"} <= imported(program, tmp_path)


def test_a_pool_of_workers_imports_neither(tmp_path: Path) -> None:
    program = "import pipelines.worker, pipelines.runs.worker_pool"
    assert imported(program, tmp_path) == set()


@pytest.mark.portable
def test_a_worker_imports_torch_before_it_begins_and_no_more_of_beam_than_it_needs(tmp_path: Path) -> None:
    program = (
        "import contextlib, io\nwith contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "    from pipelines.runs.worker_forks import load\n    load()\nassert not said.getvalue(), said.getvalue()"
    )
    assert imported(program, tmp_path) == {"apache_beam", "torch"}
