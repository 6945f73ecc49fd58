"""Files of streams: pending at first, then committed by anyone, each once, and lost by nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from deltalake import DeltaTable

from pipelines.cli.options import parse
from pipelines.data_set import pending
from pipelines.data_set.liveness import process_key, this_process
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.recovery import commit_pending, recover
from pipelines.data_set.snapshot import DataSet, live_files
from pipelines.runs.accounting import describe_stream
from pipelines.runs.plan import Plan, check_model, check_stream
from pipelines.streams.committer import Committer
from tests.pipelines.conftest import WORDS, Finished, posts, read_live
from tests.tiny import tiny_bundle
from torchmoji_core.errors import InputError
from transforms import AnnotateTweets, Tweet, WriteDeadLetters, WriteScores
from transforms.output.commit import TEMPORARY

Run = Callable[..., Finished]
HOUR = 3600
DAY = 86_400


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "other"
    tiny_bundle(WORDS, seed=8).save(path)
    return str(path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tweets(first: int, number: int) -> list[Tweet]:
    """Of several hours, one in ten without tokens."""
    texts = [str(post["text"]) for post in posts(number)]  # type: ignore[index]
    return [
        Tweet(f"id-{first + index}", "" if index % 10 == 9 else text, (first + index) * 600_000_000)
        for index, text in enumerate(texts)
    ]


def make_plan(output: Path | str, model: str, *options: str) -> Plan:
    source = ["--streaming", "--input", "pubsub://projects/my-project/subscriptions/posts"]
    arguments = [*source, "--model", model, "--output", str(output), "--outputs", "top,source", *options]
    config, _ = parse(arguments)
    return Plan(config, (), check_model(config)).with_new_run(())


def write(plan: Plan, elements: Sequence[object]) -> None:
    """What a stream's pipeline does with so many elements."""
    score, output, run_id = plan.config.score, plan.config.output, plan.run_id
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        scored, dead = (
            pipeline
            | beam.Create(elements, reshuffle=False)
            | beam.Map(lambda tweet: TimestampedValue(tweet, (getattr(tweet, "timestamp", None) or 0) / 1e6))
            | beam.WindowInto(FixedWindows(HOUR))
            | AnnotateTweets(options=dataclasses.replace(score, timestamp=True))
        )
        scored | WriteScores(output, run_id, journal=True)
        dead | WriteDeadLetters(output, run_id, journal=True)


def stream(output: Path | str, model: str, elements: Sequence[object], *options: str) -> Plan:
    """A stream that has begun, has written so much, and goes on: it lives in this process."""
    plan = make_plan(output, model, *options)
    pending.begin(plan.config.output, describe_stream(plan))
    write(plan, elements)
    return plan


def edit_run(plan: Plan, **changes: object) -> None:
    path = Path(plan.config.output, "_journal", plan.run_id, "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def kill(plan: Plan) -> None:
    """From now on it is the stream of a process that has been killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = this_process() | {"pid": process.pid, "process": process_key(process.pid)}
        process.kill()
    edit_run(plan, process=gone)


def records(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("_journal/*/*.json") if path.name != "run.json")


def committed(output: Path) -> list[Manifest]:
    data_set = DataSet.read(str(output))
    committed = commit_pending(data_set)
    data_set.publish()
    return committed


def ids(output: Path) -> list[str]:
    return sorted(read_live(output).column("id").to_pylist())


def leave_behind(plan: Plan) -> list[Path]:
    """What a bundle has written that has not come to its end: a temporary file, and one in place without a record."""
    output = Path(plan.config.output)
    left = [
        output / TEMPORARY / plan.run_id / f"{plan.run_id}-1.parquet",
        output / "date=1970-01-01" / "hour=00" / f"part-{plan.run_id}-2.parquet",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
    return left


# --- commits -------------------------------------------------------------------------------------------------------


def test_what_a_stream_has_written_becomes_results_by_a_commit(output: Path, model: str, run_verify: Run) -> None:
    plan = stream(output, model, [*tweets(0, 20), 42])
    assert live_files(str(output)) == []
    pending = run_verify()
    assert pending.status == 0
    assert "20 rows in 4 file(s), 1 dead letters" in pending.out
    assert "5 of these files are pending" in pending.out
    (change,) = committed(output)
    assert ids(output) == sorted(f"id-{index}" for index in range(20))
    assert (change.kind, change.model.fingerprint) == ("stream", plan.model.fingerprint)
    counts = {name: change.counts[name] for name in ("read", "scored", "empty", "dead", "rows_written")}
    assert counts == {"read": 21, "scored": 18, "empty": 2, "dead": 1, "rows_written": 20}
    assert records(output) == []
    finished = run_verify()
    assert (finished.status, "pending" in finished.out) == (0, False)
    assert "20 rows in 4 file(s), 1 dead letters" in finished.out


def test_every_command_that_writes_commits_what_is_pending_and_no_reader_does(
    output: Path, model: str, run_verify: Run, run_compact: Run
) -> None:
    stream(output, model, tweets(0, 6))
    assert run_verify().status == 0
    assert run_compact("--dry_run").status == 2
    assert len(records(output)) == 1
    assert run_verify("--clean").status == 0
    assert records(output) == []
    assert ids(output) == [f"id-{index}" for index in range(6)]


def test_the_directory_may_be_called_otherwise_where_the_stream_runs(
    tmp_path: Path, output: Path, model: str, monkeypatch: pytest.MonkeyPatch, run_verify: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    stream("out", model, tweets(0, 3))
    monkeypatch.chdir("/")
    assert len(committed(output)) == 1
    assert ids(output) == ["id-0", "id-1", "id-2"]
    monkeypatch.chdir(tmp_path)
    assert run_verify().status == 0


def test_each_model_has_its_manifest_and_its_files(
    output: Path, model: str, other_model: str, run_verify: Run, run_compact: Run
) -> None:
    plan = stream(output, model, tweets(0, 3))
    # As after a refresh of the model: the same run, other files.
    other = make_plan(output, other_model)
    for first in (3, 10):
        write(dataclasses.replace(other, run_id=plan.run_id), tweets(first, 2))
    write(plan, [*tweets(5, 1), "dead letters are of no model", 42])
    changes = committed(output)
    assert {change.model.fingerprint for change in changes} == {plan.model.fingerprint, other.model.fingerprint}
    assert len(changes) == 2
    assert sum(change.counts["dead"] for change in changes) == 1
    assert run_verify().status == 0
    before = read_live(output)
    finished = run_compact()
    assert finished.status == 0, finished.err
    assert run_verify().status == 0
    assert read_live(output).equals(before)
    live = DataSet.read(str(output)).live.files.values()
    by_model = {name: sum(file.rows for file in live if file.fingerprint == name) for name in
                (plan.model.fingerprint, other.model.fingerprint)}  # fmt: skip
    assert by_model == {plan.model.fingerprint: 5, other.model.fingerprint: 4}


def test_who_dies_before_the_records_are_deleted_has_listed_the_files_once(
    tmp_path: Path, output: Path, model: str, run_verify: Run
) -> None:
    plan = stream(output, model, [*tweets(0, 20), 42])
    shutil.copytree(output / "_journal", tmp_path / "copy")
    assert len(committed(output)) == 1
    shutil.copytree(tmp_path / "copy", output / "_journal", dirs_exist_ok=True)
    before = run_verify()
    assert "20 rows in 4 file(s), 1 dead letters" in before.out
    assert before.status == 0
    write(plan, tweets(20, 3))
    (change,) = committed(output)
    assert change.counts["read"] == 3
    assert records(output) == []
    assert len(ids(output)) == 23
    assert run_verify().status == 0


def test_a_recorded_file_that_is_gone_is_not_passed_over(output: Path, model: str, run_verify: Run) -> None:
    stream(output, model, tweets(0, 12))
    path = sorted(output.glob("date=*/hour=*/*.parquet"))[0]
    path.unlink()
    for waits in (True, False):
        finished = run_verify()
        assert finished.status == 1
        assert f"{path.name}: listed, but not there" in finished.out
        assert ("are pending" in finished.out) == waits
        committed(output)


def test_a_recorded_file_that_has_changed_is_found_before_its_commit(output: Path, model: str, run_verify: Run) -> None:
    stream(output, model, [*tweets(0, 3), 42])
    (path,) = output.glob("date=*/hour=*/*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (letters,) = output.rglob("*.jsonl")
    letters.write_text("{}\n")
    finished = run_verify()
    assert finished.status == 1
    assert f"{path.name}: its content is not what was written" in finished.out
    assert f"{letters.name}: has 3 bytes" in finished.out


def test_an_id_that_is_pending_and_listed_is_there_twice(output: Path, model: str, run_verify: Run) -> None:
    plan = stream(output, model, tweets(0, 2))
    committed(output)
    write(plan, tweets(1, 1))
    finished = run_verify()
    assert finished.status == 1
    assert "id 'id-1' is there 2 times" in finished.out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda output: next(output.glob("_journal/*/run.json")).unlink(), "run.json: not what a stream writes"),
        (
            lambda output: next(output.glob("_journal/*/run.json")).write_text("{}"),
            "run.json: not what a stream writes",
        ),
        (lambda output: records(output)[0].write_text("{"), "not what a stream writes"),
        (
            lambda output: records(output)[0].write_text(
                records(output)[0].read_text().replace("date=1970-01-01", "../..")
            ),
            "leaves the output",
        ),
    ],
)
def test_records_that_cannot_be_read_stop_all_who_write(
    output: Path, model: str, run_verify: Run, run_compact: Run, damage: Callable[[Path], object], said: str
) -> None:
    stream(output, model, tweets(0, 3))
    damage(output)
    compacted, verified = run_compact(), run_verify()
    assert (compacted.status, verified.status) == (2, 1)
    assert said in compacted.err
    assert said in verified.out
    assert len(compacted.err.splitlines()) == 1
    assert list(output.glob("date=*/hour=*/*.parquet"))


# --- streams that go on, and streams that have ended --------------------------------------------------------------


def test_what_a_stream_is_writing_is_left_alone(
    output: Path, model: str, run_verify: Run, run_compact: Run, run_annotate: Run
) -> None:
    plan = stream(output, model, tweets(0, 3))
    left = leave_behind(plan)
    (output.parent / "in").mkdir()
    (output.parent / "in" / "a.txt").write_text("i love rain\n")
    for finished in (
        run_verify(),
        run_verify("--clean", "--older_than", "0s"),
        run_compact(),
        run_compact(),
        run_verify("--clean", "--older_than", "0s"),
    ):
        assert finished.status == 0, finished
    assert "2 more file(s) are being written by a stream that may be going on" in finished.out
    assert run_annotate().status == 2, "other columns"
    assert all(path.exists() for path in left)
    write(plan, tweets(3, 1))
    assert len(committed(output)) == 1
    assert len(ids(output)) == 4


def test_on_a_cluster_a_stream_ends_with_nobody_knowing_and_a_day_is_waited(
    output: Path, model: str, run_verify: Run, run_compact: Run
) -> None:
    plan = stream(output, model, tweets(0, 3))
    edit_run(plan, process=None)
    temporary, in_place = leave_behind(plan)
    for path in (temporary, in_place, output / "_journal" / plan.run_id / "run.json"):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    young = temporary.with_name("young.parquet")
    young.touch()
    assert run_compact().status == 0
    assert (temporary.exists(), young.exists(), in_place.exists()) == (False, True, True)
    assert "no manifest lists it" in run_verify().out
    assert run_verify("--clean").status == 0
    assert (young.exists(), in_place.exists()) == (True, False)
    write(plan, tweets(3, 1))  # it goes on after all
    committed(output)
    assert len(ids(output)) == 4


@pytest.mark.parametrize("how", ["killed", "silent for a day"])
def test_what_a_dead_stream_has_left_is_committed_or_deleted_at_once(
    output: Path, model: str, run_verify: Run, run_compact: Run, how: str
) -> None:
    plan = stream(output, model, tweets(0, 3))
    left = leave_behind(plan)
    if how == "killed":
        kill(plan)
    else:
        edit_run(plan, process=this_process() | {"host": "another"})
        os.utime(output / "_journal" / plan.run_id / "run.json", (time.time() - 2 * DAY,) * 2)
    assert run_verify().status == 1
    assert run_compact().status == 0
    assert not any(path.exists() for path in left)
    assert not (output / "_journal").exists()
    assert len(ids(output)) == 3
    assert run_verify().status == 0


def test_a_stream_on_another_machine_that_shows_itself_goes_on(output: Path, model: str, run_compact: Run) -> None:
    plan = stream(output, model, tweets(0, 3))
    edit_run(plan, process=this_process() | {"host": "another"})
    path = output / "_journal" / plan.run_id / "run.json"
    os.utime(path, (time.time() - 2 * DAY,) * 2)
    pending.beat(str(output), plan.run_id)
    left = leave_behind(plan)
    assert run_compact().status == 0
    assert all(file.exists() for file in (path, *left))


# --- a stream's own commits ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Another command holds the lock: its file, with a sign of life, of another machine."""
    path = output / "_lock.json"
    path.write_text(json.dumps({"host": "other", "beat": datetime.now(UTC).isoformat(), "seconds": 300.0}))
    yield
    path.unlink()


def test_a_stream_commits_as_it_goes(
    output: Path, model: str, run_verify: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = stream(output, model, tweets(0, 3))
    committer = Committer(DataSet.read(str(output)), plan.run_id)
    damage = output / "_manifests" / "damage.json"
    damage.parent.mkdir()
    damage.touch()
    assert committer.commit() == committer.commit() == []
    said = capsys.readouterr().err
    assert said.count("waits to be committed") == 1, "each reason once"
    damage.unlink()
    (first,) = committer.commit()
    assert committer.commit() == [], "nothing is new"
    assert len(DeltaTable(output).file_uris()) == 1
    write(plan, tweets(12, 3))
    (last,) = committer.finish()
    assert first.counts["read"] + last.counts["read"] == 6
    assert len(DeltaTable(output).file_uris()) == len(live_files(str(output))) == 2
    assert not (output / "_journal").exists()
    assert run_verify().status == 0


def test_a_stream_commits_while_another_command_holds_the_output(output: Path, model: str, run_verify: Run) -> None:
    """Only what dead streams have left it does not delete then."""
    dead = stream(output, model, tweets(0, 3))
    left = leave_behind(dead)
    kill(dead)
    plan = stream(output, model, tweets(3, 3))
    committer = Committer(DataSet.read(str(output)), plan.run_id)
    with held(output):
        assert len(committer.commit()) == 2
        assert all(path.exists() for path in left)
    write(plan, tweets(6, 1))
    assert len(committer.commit()) == 1
    assert not any(path.exists() for path in left)
    assert committer.finish() == []
    assert len(ids(output)) == 7
    assert not (output / "_journal").exists()
    assert run_verify().status == 0


def test_files_are_merged_while_a_stream_goes_on(output: Path, model: str, run_verify: Run, run_compact: Run) -> None:
    """What it commits meanwhile is in the checkpoint that a compaction ends with."""
    plan = stream(output, model, tweets(0, 2))
    committer, stop = Committer(DataSet.read(str(output)), plan.run_id), threading.Event()

    def go_on() -> None:
        while not stop.wait(0.01):
            committer.commit()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for number in range(3):
            write(plan, tweets(2 + 2 * number, 2))
            finished = run_compact()
            assert finished.status == 0, finished.err
    finally:
        stop.set()
        thread.join()
    committer.finish()
    assert ids(output) == [f"id-{index}" for index in range(8)]
    assert run_compact().status == 0
    assert len(live_files(str(output))) == 2, "of two hours"
    assert run_verify().status == 0
    assert run_verify("--clean", "--older_than", "0s").status == 0
    assert len(list(output.glob("date=*/hour=*/*.parquet"))) == 2


def test_what_is_merged_again_and_again_carries_no_names_of_deleted_files_along(
    output: Path, model: str, run_verify: Run, run_compact: Run
) -> None:
    plan = stream(output, model, tweets(0, 2))
    for number in range(3):
        write(plan, tweets(2 + number, 1))
        assert run_compact().status == 0
        assert run_verify("--clean", "--older_than", "0s").status == 0
    assert len(DataSet.read(str(output)).retired) == 2


def test_what_others_commit_is_taken_up(output: Path, model: str, run_compact: Run) -> None:
    plan = stream(output, model, tweets(0, 3))
    data_set = DataSet.read(str(output))
    for first in (3, 4):
        write(plan, tweets(first, 1))
        committed(output)
        data_set.refresh()
        assert vars(data_set) == vars(DataSet.read(str(output)))
    assert run_compact().status == 0
    data_set.refresh()
    assert vars(data_set) == vars(DataSet.read(str(output)))
    shutil.rmtree(output)
    data_set.refresh()
    assert data_set.live.files == {}


# --- the same command ----------------------------------------------------------------------------------------------


def check(plan: Plan) -> None:
    assert plan.config.stream is not None
    check_stream(plan.config, plan.config.stream, DataSet.read(plan.config.output), plan.model)


def test_a_stream_continues_what_the_same_command_began(output: Path, model: str, run_score: Run) -> None:
    stream(output, model, tweets(0, 3))
    again = make_plan(output, model)
    check(again)
    committed(output)
    check(again)


@pytest.mark.parametrize("is_committed", [False, True])
@pytest.mark.parametrize(
    ("options", "other"),
    [
        (["--top_k", "3"], "top_k: 5 there"),
        (["--outputs", "text"], "outputs"),
        (["--window", "5m"], "stream"),
    ],
)
def test_a_stream_with_other_options_is_refused_before_it_starts(
    output: Path, model: str, options: list[str], other: str, is_committed: bool
) -> None:
    plan = make_plan(output, model)
    pending.begin(plan.config.output, describe_stream(plan))
    if is_committed:
        write(plan, tweets(0, 1))
        committed(output)
        pending.end(str(output), plan.run_id)
    again = make_plan(output, model, *options)
    said = rf"another command \(other {other}\); give" if is_committed else f"a stream with other {other}, started 20"
    with pytest.raises(InputError, match=said):
        check(again)


def test_another_model_is_refused_unless_models_may_differ(tmp_path: Path, model: str, other_model: str) -> None:
    changing = ("--model_watch", "models/*")
    for options in ((), changing):
        output = tmp_path / f"of-{len(options)}"
        stream(output, model, tweets(0, 1), *options)
        committed(output)
    check(make_plan(output, other_model, *changing))
    with pytest.raises(InputError, match="was scored by model"):
        check(make_plan(tmp_path / "of-0", other_model))


def test_results_of_files_are_no_streams(output: Path, model: str, run_score: Run) -> None:
    source = output.parent / "a.txt"
    source.write_text("i love rain\n")
    assert run_score("--input", source, "--output", output).status == 0
    plan = make_plan(output, model)
    with pytest.raises(InputError, match=r"another command \(other .*stream\)"):
        check(plan)


def test_recovery_of_an_output_without_streams_makes_nothing(tmp_path: Path) -> None:
    recover(DataSet.read(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
