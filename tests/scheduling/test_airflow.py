"""The Airflow example, run by Airflow itself: what becomes of a task after each exit status.

`make test-airflow` runs it in an environment of its own, since Airflow brings about ninety packages. The commands are a
script that ends as it is told: what is tested is the mapping.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("airflow") is None:
    pytest.skip("Airflow is not installed here: make test-airflow", allow_module_level=True)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "scheduling"

PROGRAM = """
import sys
from datetime import timedelta
sys.path.insert(0, sys.argv[1])
from airflow_dag import annotate, compact
dag = {"annotate": annotate, "compact": compact}[sys.argv[2]].dag
for task in dag.tasks:
    task.retry_delay, task.retry_exponential_backoff = timedelta(), False  # the test does not wait
run = dag.test()
print("RESULT", run.state, *(f"{task.task_id}={task.state}:{task.try_number}" for task in run.get_task_instances()))
"""

STUB = """#!/bin/sh
# Ends with the status on the first line of statuses/MODULE, and takes that line away; with 0 if there is none.
echo "$@" >> {directory}/calls
file={directory}/statuses/$2
status=$(head -n 1 $file 2>/dev/null)
sed -i 1d $file 2>/dev/null
echo "a line to the log"
exit ${{status:-0}}
"""


class Ran(NamedTuple):
    state: str
    tasks: dict[str, str]
    """State and number of tries."""
    calls: list[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow with an empty database."""
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
    }
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(migrate, env=environment, check=True, capture_output=True, timeout=600)
    return environment


@pytest.fixture
def run(home: dict[str, str], tmp_path: Path) -> Callable[..., Ran]:
    """Run one of the DAGs with commands that end as they are told, one status a call."""

    def run(dag: str, **statuses: str) -> Ran:
        stub = tmp_path / "python"
        stub.write_text(STUB.format(directory=tmp_path))
        stub.chmod(0o755)
        (tmp_path / "statuses").mkdir()
        for module, lines in statuses.items():
            (tmp_path / "statuses" / f"pipelines.{module}").write_text(lines.replace(" ", "\n") + "\n")
        environment: dict[str, Any] = home | {
            "AIRFLOW_VAR_TORCHMOJI_PYTHON": str(stub),
            "AIRFLOW_VAR_TORCHMOJI_INPUT": "tweets of today/*.jsonl",
            "AIRFLOW_VAR_TORCHMOJI_OUTPUT": "s3://bucket/scored",
            "AIRFLOW_VAR_TORCHMOJI_OPTIONS": "--settle 10m",
        }
        command = [sys.executable, "-c", PROGRAM, str(EXAMPLES), dag]
        finished = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
        (result,) = [line for line in finished.stdout.splitlines() if line.startswith("RESULT")] or [finished.stderr]
        _, state, *tasks = result.split()
        calls = (tmp_path / "calls").read_text().splitlines()
        return Ran(state, dict(task.split("=") for task in tasks), calls)

    return run


def test_what_is_new_is_scored_and_verified(run: Callable[..., Ran]) -> None:
    ran = run("annotate")
    assert ran.state == "success" and ran.tasks == {"annotate": "success:1", "verify": "success:1"}
    assert ran.calls == [
        "-m pipelines.annotate --input tweets of today/*.jsonl --output s3://bucket/scored --settle 10m",
        "-m pipelines.verify s3://bucket/scored",
    ]


def test_a_failure_is_tried_again(run: Callable[..., Ran]) -> None:
    ran = run("annotate", annotate="1 1 0")
    assert ran.state == "success" and ran.tasks == {"annotate": "success:3", "verify": "success:1"}


def test_an_interrupted_run_is_tried_again(run: Callable[..., Ran]) -> None:
    assert run("annotate", annotate="130 0").tasks["annotate"] == "success:2"


@pytest.mark.parametrize("status", ["2", "3"])
def test_what_needs_a_person_fails_at_once(run: Callable[..., Ran], status: str) -> None:
    ran = run("annotate", annotate=status)
    assert ran.state == "failed" and ran.tasks["annotate"] == "failed:1" and len(ran.calls) == 1


def test_a_run_kept_out_by_another_is_skipped(run: Callable[..., Ran]) -> None:
    ran = run("annotate", annotate="4")
    assert ran.state == "success" and ran.tasks["annotate"] == "skipped:1" and len(ran.calls) == 1
    assert ran.tasks["verify"].startswith("skipped")


def test_unsound_results_fail_at_once(run: Callable[..., Ran]) -> None:
    ran = run("annotate", verify="1")
    assert ran.state == "failed" and ran.tasks == {"annotate": "success:1", "verify": "failed:1"}


def test_results_are_compacted_and_verified(run: Callable[..., Ran]) -> None:
    ran = run("compact", compact="1 0")
    assert ran.state == "success" and ran.tasks == {"compact": "success:2", "verify": "success:1"}
    assert ran.calls[-2:] == ["-m pipelines.compact s3://bucket/scored", "-m pipelines.verify s3://bucket/scored"]
