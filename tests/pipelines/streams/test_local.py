"""What goes on around the loop of a local stream: its commits, its end, its exit status."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from pipelines.data_set.snapshot import DataSet, live_files
from pipelines.runs.plan import Plan, check_model
from pipelines.streams.local import LocalStream
from pipelines.streams.stages import Prepared, Stages
from tests.pipelines.streams.parts import Clock, ListSource, until
from torchmoji_core.errors import RunError
from transforms.records import Message
from transforms.scoring.score import ScoredBatch

DRAIN = 25


class Gated(Stages):
    """Scores when it may."""

    def __init__(self, plan: Plan) -> None:
        assert plan.config.stream is not None
        super().__init__(plan.config, plan.config.stream)
        self.may_score, self.scores = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def score(self, prepared: Sequence[Prepared]) -> ScoredBatch:
        self.scores.set()
        assert self.may_score.wait(60)
        if self.error is not None:
            raise self.error
        return super().score(prepared)


class Running:
    """A stream in a thread of its own."""

    def __init__(self, output: Path, model: str, *options: str) -> None:
        config, _ = parse(
            ["--streaming", "--input", ListSource.uri, "--output", str(output), "--model", model, "--drain",
             f"{DRAIN}s", "--commit_every", "10s", "--max_batch_rows", "10", *options]
        )  # fmt: skip
        assert config.stream is not None
        plan = Plan(config, (), check_model(config)).with_new_run(())
        self.figures: dict[str, object] = {
            "output": str(output), "run_id": plan.run_id, "fingerprint": plan.model.fingerprint
        }  # fmt: skip
        self.clock, self.source, self.stop = Clock(), ListSource(), threading.Event()
        self.work = Gated(plan)
        stream = LocalStream(plan, config.stream, DataSet.read(str(output)), self.figures, self.clock)
        self.status: Future[int] = Future()

        def attend() -> None:
            try:
                self.status.set_result(stream.attend(self.source, self.work, self.stop))
            except Exception as error:
                self.status.set_exception(error)

        threading.Thread(target=attend, daemon=True).start()

    def send(self, count: int) -> None:
        first = len(self.source.sent)
        self.source.send_messages(
            Message(f"m{number}", json.dumps({"id": f"post-{number}", "text": "so happy"}).encode(), 1_700_000_000_000)
            for number in range(first, first + count)
        )

    def run_to_its_end(self) -> int:
        self.stop.set()
        return self.status.result(60)


@pytest.fixture
def start(model: str, tmp_path: Path) -> Callable[..., Running]:
    return lambda *options: Running(tmp_path / "out", model, *options)


def rows_in_place(output: Path) -> int:
    records = [path for path in output.glob("_journal/*/*.json") if path.name != "run.json"]
    return sum(file["rows"] for path in records for file in json.loads(path.read_text())["files"])


def test_what_is_written_becomes_results_as_it_goes(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start("--report", str(tmp_path / "report.json"))
    running.work.may_score.set()
    running.send(10)
    until(lambda: len(running.source.acknowledged) == 10)
    assert rows_in_place(tmp_path / "out") == 10 and not live_files(str(tmp_path / "out"))
    running.clock.seconds += 10
    until(lambda: (tmp_path / "report.json").exists())
    assert live_files(str(tmp_path / "out")) and rows_in_place(tmp_path / "out") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows_written"] == report["latency_ms_count"] == 10 and report["in_flight"] == 0
    running.send(3)
    until(lambda: running.source.delivered["m12"])
    assert running.run_to_its_end() == 0
    assert not (tmp_path / "out" / "_journal").exists()
    assert len(running.source.acknowledged) == 13 and running.figures["scored"] == 13


def test_what_is_not_written_in_time_is_given_back(
    start: Callable[..., Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = start()
    running.work.may_score.set()
    running.send(10)
    until(lambda: len(running.source.acknowledged) == 10)
    running.work.may_score.clear()
    running.work.scores.clear()
    running.send(30)
    until(running.work.scores.is_set)
    until(lambda: running.source.delivered["m39"])
    running.stop.set()
    until(running.source.stopped.is_set)
    running.clock.seconds += DRAIN - 1
    assert not running.status.done()
    running.clock.seconds += 2
    assert running.status.result(60) == 1
    assert "30 messages were not written within --drain 25s; they are given back" in capsys.readouterr().err
    running.work.may_score.set()
    assert len(running.source.given_back) == 30 and len(running.source.acknowledged) == 10
    assert len(live_files(str(tmp_path / "out"))) == 1, "what was written is committed"


def test_a_failure_ends_it_and_says_why(start: Callable[..., Running]) -> None:
    running = start()
    running.work.error = RunError("no score")
    running.work.may_score.set()
    running.send(10)
    with pytest.raises(RunError, match="no score"):
        running.status.result(60)
    assert len(running.source.given_back) == 10 and not running.source.acknowledged


def test_too_many_dead_letters(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start("--max_dead_fraction", "0.5")
    running.work.may_score.set()
    running.source.send(2)
    running.send(1)
    until(lambda: running.source.delivered["m2"])
    assert running.run_to_its_end() == 3
    assert len(running.source.acknowledged) == 3 and running.figures["dead"] == 2
