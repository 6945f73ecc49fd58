"""A run leaves its figures as JSON and for Prometheus: whole, after failures too, and on no other file."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.cli.exits import LOCK_HELD
from pipelines.runs.run_report import check_report, reported, write_report
from tests.pipelines.conftest import Finished, posts, write_lines
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError, RunError

Score = Callable[..., Finished]
STARTED = datetime(2025, 3, 1, 12, 0, 0, tzinfo=UTC)


def metrics(path: Path) -> dict[str, float]:
    """Values by name, of samples whose labels are in the name where there are more than the output."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.name.startswith("torchmoji_") and family.documentation and family.type == "gauge"
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "output"}
            assert len(labels) == len(sample.labels) - 1
            values[sample.name + (str(sorted(labels.items())) if labels else "")] = sample.value
    return values


def figures(**more: Any) -> dict[str, Any]:
    return {"output": "out", "exit_status": 0, "started": STARTED, "finished": STARTED + timedelta(seconds=4)} | more


def test_score_reports_its_run(run_score: Score, bundle: Bundle, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [*posts(30), {"id": "e", "text": ""}, "not json"])
    assert run_score("--input", "in.jsonl", "--output", "out", "--report", "report.json").status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["exit_status"], report["output"], report["fingerprint"]) == (0, "out", bundle.fingerprint)
    assert (report["read"], report["scored"], report["empty"], report["dead"]) == (32, 30, 1, 1)
    assert report["started"] < report["finished"] == report["last_success"]
    values = metrics(tmp_path / "report.prom")
    run = "torchmoji_last_run_"
    written = [*tmp_path.glob("out/*.parquet"), *tmp_path.glob("out/_dead_letters/*")]
    assert [values[f"{run}{name}_records"] for name in ("read", "scored", "empty", "dead")] == [32, 30, 1, 1]
    assert values[f"{run}written_rows"] == 31 and values[f"{run}written_files"] == len(written)
    assert values[f"{run}written_bytes"] == sum(file.stat().st_size for file in written)
    assert values[f"{run}read_bytes"] == (tmp_path / "in.jsonl").stat().st_size
    assert values[f"{run}exit_status"] == 0 and values[f"{run}duration_seconds"] == report["seconds"] > 0
    assert values["torchmoji_last_success_timestamp_seconds"] == values[f"{run}end_timestamp_seconds"]
    assert values[f"{run}read_tokens"] > 0 and values[f"{run}records_per_second"] > 0
    assert any(f"('fingerprint', '{bundle.fingerprint}')" in name for name in values)


def test_a_failing_run_reports_too_and_keeps_the_last_success(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(5))
    common = ("--output", "out", "--report", "report.json")
    assert run_score("--input", "in.jsonl", *common).status == 0
    success = json.loads((tmp_path / "report.json").read_text())["last_success"]
    assert run_score("--input", "gone.jsonl", *common).status == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_status"] == 2 and "no file matches" in report["error"]
    assert report["last_success"] == success < report["finished"]
    values = metrics(tmp_path / "report.prom")
    assert values["torchmoji_last_run_exit_status"] == 2 and values["torchmoji_last_run_written_rows"] == 0
    assert values["torchmoji_last_success_timestamp_seconds"] == datetime.fromisoformat(success).timestamp()


def test_too_many_dead_letters_are_no_success(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", ["not json", *posts(2)])
    assert run_score("--input", "in.jsonl", "--output", "out", "--report", "report.json").status == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_status"] == 3 and report["rows_written"] == 2 and report["last_success"] is None
    assert "torchmoji_last_success_timestamp_seconds" not in metrics(tmp_path / "report.prom")


@pytest.mark.parametrize(
    ("error", "status"), [(InputError("x"), 2), (RunError("x"), 1), (KeyboardInterrupt(), 130), (MemoryError("x"), 1)]
)
def test_every_end_has_its_status(tmp_path: Path, error: BaseException, status: int) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(type(error)), reported(str(path), output="out"):
        raise error
    assert json.loads(path.read_text())["exit_status"] == status
    assert metrics(tmp_path / "report.prom")["torchmoji_last_run_exit_status"] == status


def test_a_run_kept_out_by_another_leaves_the_report_to_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(str(path), figures(read=7))
    before = path.read_bytes(), (tmp_path / "report.prom").read_bytes()
    with reported(str(path), output="out") as run:
        run["exit_status"] = LOCK_HELD
    assert (path.read_bytes(), (tmp_path / "report.prom").read_bytes()) == before


def test_a_dry_run_reports_nothing_but_checks_the_path(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    common = ("--input", "in.jsonl", "--output", "out", "--dry_run", "--report")
    assert run_score(*common, "report.json").status == 0
    assert not list(tmp_path.glob("report*"))
    finished = run_score(*common, "nowhere/report.json")
    assert finished.status == 2 and finished.err.startswith("error: --report") and finished.err.count("\n") == 1


def test_inputs_have_states(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(str(path), figures(inputs_new=3, inputs_unsettled=1))
    values = metrics(tmp_path / "report.prom")
    states = {
        state: values[f"torchmoji_last_run_inputs[('state', '{state}')]"] for state in ("new", "unsettled", "changed")
    }
    assert states == {"new": 3, "unsettled": 1, "changed": 0}


def test_hostile_names_and_credentials(tmp_path: Path) -> None:
    output = 's3://me:Hunter2@host/a"b\\c\nd'
    write_report(
        str(tmp_path / "report.json"), figures(output=output, model='m"\n', fingerprint="f", error="token=Hunter2")
    )
    families = list(text_string_to_metric_families((tmp_path / "report.prom").read_text()))
    assert {sample.labels["output"] for family in families for sample in family.samples} == {'s3://***@host/a"b\\c\nd'}
    assert "Hunter2" not in (tmp_path / "report.json").read_text() + (tmp_path / "report.prom").read_text()


def test_the_last_success_of_another_output_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(str(path), figures(output="a"))
    write_report(str(path), figures(output="b", exit_status=1))
    assert json.loads(path.read_text())["last_success"] is None


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_files_can_be_read_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    former = os.umask(mask)
    try:
        write_report(str(tmp_path / "report.json"), figures())
    finally:
        os.umask(former)
    for name in ("report.json", "report.prom"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.prom"]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Someone who reads both files all the time and parses them."""
    stop, read, faults = threading.Event(), [0], []

    def loop() -> None:
        while not stop.is_set():
            try:
                if (tmp_path / "report.prom").exists():
                    assert len(metrics(tmp_path / "report.prom")) > 15
                    json.loads((tmp_path / "report.json").read_text())
                    read[0] += 1
            except Exception as error:
                faults.append(error)

    thread = threading.Thread(target=loop)
    thread.start()

    def finish() -> int:
        stop.set()
        thread.join()
        assert not faults
        return read[0]

    yield finish
    stop.set()


def test_a_reader_never_meets_half_a_file(tmp_path: Path, reader: Callable[[], int]) -> None:
    for n in range(40):
        write_report(str(tmp_path / "report.json"), figures(read=n, error="x" * 10_000))
    assert reader() > 0


def test_a_report_that_cannot_be_written_at_the_end_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "reports"
    directory.mkdir()
    with reported(f"{directory}/report.json", output="out"):
        directory.rmdir()
        directory.touch()
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("-", "local files"),
        ("s3://bucket/report.json", "local files"),
        ("nowhere/report.json", "cannot be written (No such file or directory)"),
        ("/proc/report.json", "cannot be written"),
        ("directory", "is a directory"),
        ("blocked.json", "is a directory"),
        ("report.prom", "give the name of the JSON file"),
        ("tweets.jsonl", "no report"),
        ("other.json", "no report"),
        ("a\0b", "cannot be written"),
    ],
)
def test_a_wrong_path_is_found_out_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "tweets.jsonl", posts(3))
    (tmp_path / "other.json").write_text('{"mine": 1}')
    (tmp_path / "directory").mkdir()
    (tmp_path / "blocked.prom").mkdir()
    with pytest.raises(InputError, match=f"--report .*{re.escape(expected)}") as error:
        check_report(path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "other.json").read_text() == '{"mine": 1}'
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "blocked.prom",
        "directory",
        "other.json",
        "tweets.jsonl",
    ]


FOREIGN = "# HELP node_time_seconds System time.\n# TYPE node_time_seconds gauge\nnode_time_seconds 1\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.prom", FOREIGN),
        ("report.prom", "not metrics"),
        ("report.prom", 'torchmoji_last_run_exit_status{output="out"} 0\n' + FOREIGN),
        ("report.json", '{"version": 1, "name": "a package"}'),
    ],
)
def test_a_file_of_others_stays(tmp_path: Path, name: str, content: str) -> None:
    path = str(tmp_path / "report.json")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"--report .*{name} is there already and no report of ours; give another"):
        check_report(path)
    with pytest.raises(OSError, match="no report of ours"):
        write_report(path, figures())
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("name", ["report.json", "report.prom"])
@pytest.mark.parametrize("target", ["written", "missing", "/dev/full", "pipe"])
def test_links_and_what_is_no_file_are_refused(tmp_path: Path, name: str, target: str) -> None:
    path = tmp_path / "report.json"
    write_report(str(path), figures())
    (tmp_path / name).rename(tmp_path / "written")
    if target == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=f"--report .*{name} is (a symbolic link|no regular file)"):
        check_report(str(path))
    before = (tmp_path / "written").read_bytes()
    with pytest.raises(OSError, match=name):
        write_report(str(path), figures(read=7))
    assert (tmp_path / "written").read_bytes() == before and not (tmp_path / "missing").exists()


def test_what_comes_to_be_there_during_the_run_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reported(str(tmp_path / "report.json"), output="out"):
        (tmp_path / "report.prom").write_text(FOREIGN)
    assert (tmp_path / "report.prom").read_text() == FOREIGN and "report.prom is there already" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["report.prom"]


def test_hostile_names_are_lines_of_neither_file(tmp_path: Path) -> None:
    hostile = 'a\nnode_time_seconds 1\r\x1b[2J"\\\u2028\udcff'
    for _ in range(2):
        write_report(str(tmp_path / "report.json"), figures(output=hostile, model=hostile, fingerprint="f"))
        check_report(str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["output"] == hostile
    content = (tmp_path / "report.prom").read_text()
    assert metrics(tmp_path / "report.prom")["torchmoji_last_run_exit_status"] == 0
    assert not any(line.startswith("node") for line in content.split("\n"))


def test_an_empty_file_and_an_earlier_report_may_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.touch()
    check_report(str(path))
    write_report(str(path), figures())
    check_report(str(path))
