"""The examples of docs/scheduling are what schedulers accept, and act on exit statuses as docs/scheduling.md says.

Of the Airflow example only the syntax is checked here; `make test-airflow` runs it.
"""

from __future__ import annotations

import ast
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipelines.runs.run_report import INPUT_STATES, write_report

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "scheduling"


def cron_lines() -> list[tuple[list[str], str]]:
    """The five fields and the command of each entry."""
    lines = (EXAMPLES / "crontab").read_text().splitlines()
    entries = [line.split(None, 5) for line in lines if line[:1].isdigit() or line.startswith("*")]
    return [(fields[:5], fields[5]) for fields in entries]


def test_the_crontab_has_three_entries() -> None:
    assert [re.findall(r"pipelines\.(\w+)", command) for _, command in cron_lines()] == [
        ["annotate"],
        ["verify"],
        ["compact"],
    ]
    for fields, command in cron_lines():
        assert all(re.fullmatch(r"[\d*/,-]+", field) for field in fields)
        assert "%" not in command  # cron ends the command there
    assert (EXAMPLES / "crontab").read_text().endswith("\n")  # or cron ignores the last line


@pytest.mark.parametrize(
    ("entry", "status", "mail"),
    [
        *[(0, status, status not in (0, 4)) for status in (0, 1, 2, 3, 4, 130)],
        *[(1, 0, False), (1, 1, True)],
        *[(2, 0, False), (2, 4, False), (2, 1, True)],
    ],
)
def test_cron_sends_mail_for_statuses_that_need_a_look(tmp_path: Path, entry: int, status: int, mail: bool) -> None:
    _, command = cron_lines()[entry]
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho speaking >&2\nexit {status}\n")
    python.chmod(0o755)
    command = command.replace("/opt/torchmoji", str(tmp_path)).replace("/var/log/torchmoji", str(tmp_path))
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert finished.stderr == ""
    assert (f"exit status {status}, see {tmp_path}" in finished.stdout) == mail
    assert mail or finished.stdout == ""
    (log,) = tmp_path.glob("*.log")
    assert log.read_text() == "speaking\n"


def exposed_metrics(directory: Path) -> set[str]:
    now = datetime.now(UTC)
    figures = {"output": "out", "exit_status": 0, "started": now, "finished": now, "fingerprint": "f", "inputs_new": 1}
    write_report(str(directory / "report.json"), figures)
    families = text_string_to_metric_families((directory / "report.prom").read_text())
    return {sample.name for family in families for sample in family.samples}


def test_alerts_are_on_metrics_that_exist(tmp_path: Path) -> None:
    (group,) = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["groups"]
    assert len(group["rules"]) == 4
    for rule in group["rules"]:
        assert rule["alert"] and rule["annotations"]["summary"]
        named = set(re.findall(r"torchmoji_\w+", rule["expr"]))
        assert named and named <= exposed_metrics(tmp_path), rule["alert"]


def test_every_metric_is_documented(tmp_path: Path) -> None:
    rows = [
        line for line in (ROOT / "docs" / "scheduling.md").read_text().splitlines() if line.startswith("| `torchmoji_")
    ]
    documented = set()
    for row in rows:
        names = re.findall(r"`(\w+)`", row.split("|")[1])
        whole = [name for name in names if name.startswith("torchmoji_")]
        documented |= {*whole, *(f"torchmoji_last_run{name}" for name in names if name.startswith("_"))}
    assert documented == exposed_metrics(tmp_path)
    assert all(f"_{state}`" in "".join(rows) for state in INPUT_STATES)


def test_the_airflow_example_is_python_and_nothing_more_is_checked_here() -> None:
    tree = ast.parse((EXAMPLES / "airflow_dag.py").read_text())
    dags = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DAG"
        if isinstance(node.args[0], ast.Constant)
    ]
    assert dags == ["torchmoji_annotate", "torchmoji_compact"]
