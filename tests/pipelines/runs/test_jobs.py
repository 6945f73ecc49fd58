"""--no_wait: a job that goes on when its command has ended, and whose result a later command takes in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from pipelines import aggregate, annotate
from pipelines.data_set.snapshot import DataSet
from tests.pipelines.conftest import Finished, corpus, posts, read_live, write_lines

Command = Callable[..., Finished]


class Cluster:
    """A job server with its workers, which a command leaves behind when it ends: here it ends, and they stay."""

    def __init__(self, server: str, workers: str) -> None:
        self._server, self.workers = server, workers
        self.options = (
            "--runner=PortableRunner", f"--job_endpoint={server}", "--environment_type=EXTERNAL",
            f"--environment_config={workers}",
        )  # fmt: skip

    def wait(self) -> str:
        """Until the last job has ended. Gives its state."""
        with grpc.insecure_channel(self._server) as channel:
            stub = beam_job_api_pb2_grpc.JobServiceStub(channel)
            job = stub.GetJobs(beam_job_api_pb2.GetJobsRequest()).job_info[-1].job_id
            for state in stub.GetStateStream(beam_job_api_pb2.GetJobStateRequest(job_id=job)):
                last = beam_job_api_pb2.JobState.Enum.Name(state.state)
        return last


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        servicer = LocalJobServicer(str(tmp_path_factory.mktemp("staging")))
        port = servicer.start_grpc_server()
        stack.callback(servicer.stop)
        workers, pool = BeamFnExternalWorkerPoolServicer.start(use_process=False)
        stack.callback(pool.stop, 0)
        yield Cluster(f"localhost:{port}", workers.partition(" ")[0])


@pytest.fixture
def submit(run_annotate: Command, cluster: Cluster) -> Command:
    """The annotate command that leaves its job to the cluster."""
    return partial(run_annotate, *cluster.options, "--no_wait")


def test_the_next_run_takes_in_what_a_job_has_done(
    submit: Command, run_annotate: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    """New files, one that has changed, and a dead letter: all is as if no cluster had been there."""
    more = ("--partition_by", "", "--max_dead_fraction", "1")
    corpus(tmp_path / "in", 2, 20)
    assert run_annotate(*more).status == 0
    corpus(tmp_path / "in", 1, 35)
    write_lines(tmp_path / "in" / "new.jsonl", [*posts(5), "not json"])
    finished = submit(*more)
    assert finished.status == 0, finished.err
    assert "submitted to PortableRunner as job " in finished.out and "speed" not in finished.out
    assert cluster.wait() == "DONE"
    assert len(list((tmp_path / "out").glob("_manifests/*"))) == 1
    checked = run_verify()
    assert checked.status == 0 and "is done; pipelines.annotate, pipelines.compact or " in checked.out, checked.out

    finished = run_annotate(*more)
    assert finished.status == 0, finished.err
    assert "took in     a job submitted at " in finished.out and "40 rows, 1 dead letters" in finished.out
    assert "nothing is new" in finished.out
    assert run_verify().status == 0
    assert not (tmp_path / "out" / "_jobs").exists() and not (tmp_path / "out" / "_tmp").exists()
    assert run_annotate("--output", "local", *more).status == 0
    assert read_live(tmp_path / "out").equals(read_live(tmp_path / "local"))
    ours, theirs = (DataSet.read(str(tmp_path / name)) for name in ("out", "local"))
    assert ours.live.inputs == theirs.live.inputs
    assert ours.manifests[-1].model == theirs.manifests[-1].model


class InterruptingServicer(LocalJobServicer):
    """Takes a job, and is slow to say so: Ctrl-C comes before."""

    def Run(self, request: Any, context: Any = None) -> Any:  # noqa: N802 - Beam's name
        answer = super().Run(request, context)
        os.kill(os.getpid(), signal.SIGINT)
        return answer


def test_a_job_that_may_have_been_taken_when_its_command_was_interrupted_is_not_forgotten(
    run_annotate: Command, cluster: Cluster, tmp_path: Path
) -> None:
    servicer = InterruptingServicer(str(tmp_path / "staging"))
    interrupting = Cluster(f"localhost:{servicer.start_grpc_server()}", cluster.workers)
    corpus(tmp_path / "in", 1, 20)
    try:
        finished = run_annotate(*interrupting.options, "--no_wait", "--partition_by", "")
        assert finished.status == 130
        (described,) = (tmp_path / "out").glob("_jobs/*/job.json")
        assert f"else delete {described.parent}\n" in finished.err and finished.err.endswith("\ninterrupted\n")
        assert interrupting.wait() == "DONE"
    finally:
        servicer.stop()
    finished = run_annotate("--partition_by", "")
    assert finished.status == 0, finished.err
    assert "took in     a job" in finished.out and "nothing is new" in finished.out
    assert len(read_live(tmp_path / "out")) == 20


@pytest.fixture(scope="module")
def made(cluster: Cluster, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 20 rows of input, and an output of which a job has just done its work."""
    directory = tmp_path_factory.mktemp("made")
    corpus(directory / "in", 1, 20)
    places = ("--input", f"{directory}/in/*", "--output", f"{directory}/out", "--partition_by", "")
    assert annotate.main(["--model", model, "--progress", "off", *places, *cluster.options, "--no_wait"]) == 0
    assert cluster.wait() == "DONE"
    return directory


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy of that output, called as the commands expect."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def go_on(made: Path, model: str, run_main: Command, output: Path) -> Command:
    """The annotate command on that output."""
    places = ("--input", f"{made}/in/*", "--output", "out", "--partition_by", "")
    return partial(run_main, annotate.main, "--model", model, "--progress", "off", *places)


def test_while_a_job_goes_on_nobody_else_scores_and_nothing_of_it_is_deleted(
    go_on: Command, run_compact: Command, run_verify: Command, output: Path
) -> None:
    (completed,) = output.glob("_jobs/*/completed.json")
    content = completed.read_text()
    completed.unlink()  # as it was a moment before
    finished = go_on()
    assert finished.status == 4
    assert "out is being written by job " in finished.err
    assert f"delete {completed.parent.relative_to(output.parent)}" in finished.err
    assert finished.err.count("\n") == 1
    cleaned = run_verify("--clean", "--older_than", "0s")
    assert cleaned.status == 0 and "has not finished" in cleaned.out
    completed.write_text(content)
    finished = run_compact()
    assert finished.status == 0
    assert "took in     a job submitted at " in finished.out and ": 20 rows, 0 dead letters" in finished.out
    assert len(read_live(output)) == 20
    assert run_verify().status == 0


def test_cleaning_says_what_it_has_taken_in(run_verify: Command, output: Path) -> None:
    finished = run_verify("--clean")
    assert finished.status == 0
    assert "took in     a job submitted at " in finished.out and "20 row" in finished.out


def test_where_only_the_result_of_a_job_waits_aggregation_says_who_takes_it_in(run_main: Command, output: Path) -> None:
    finished = run_main(aggregate.main, "out", "--by", "id", "--output", "features")
    assert finished.status == 2
    assert "nothing there yet but job " in finished.err and finished.err.count("\n") == 1
    assert "is done; pipelines.annotate, pipelines.compact or pipelines.verify --clean takes in its" in finished.err


def test_a_command_that_dies_between_commit_and_cleaning_up_has_done_its_work(
    go_on: Command, run_verify: Command, output: Path, tmp_path: Path
) -> None:
    shutil.copytree(output / "_jobs", tmp_path / "jobs")
    assert go_on().status == 0
    shutil.copytree(tmp_path / "jobs", output / "_jobs")
    finished = go_on()
    assert finished.status == 0, finished.err
    assert not (output / "_jobs").exists()
    assert len(read_live(output)) == 20
    assert run_verify().status == 0


def test_too_many_dead_letters_of_a_job_are_the_status_of_who_takes_it_in(go_on: Command, output: Path) -> None:
    (described,) = output.glob("_jobs/*/job.json")
    values = json.loads(described.read_text())
    described.write_text(json.dumps(values | {"max_dead_fraction": -1.0}))  # no dead letters are too many
    finished = go_on()
    assert finished.status == 3
    assert "too many dead letters, 0 of 20 records" in finished.err
    assert len(read_live(output)) == 20
    assert go_on().status == 0


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_what_a_job_has_done_is_not_lost_if_it_cannot_be_committed_now(
    go_on: Command, run_verify: Command, output: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    link = os.link

    def fail(source: Any, destination: Any) -> None:
        if Path(destination).parent.name == "_manifests":
            raise error
        link(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        finished = go_on()
    if isinstance(error, KeyboardInterrupt):
        assert finished.status == 130
    else:  # which may last
        assert finished.status == 1 and finished.err.count("\n") == 1
        (described,) = output.glob("_jobs/*")
        assert f"delete out/_jobs/{described.name}: its inputs are then scored again" in finished.err
    finished = go_on()
    assert finished.status == 0, finished.err
    assert "took in     a job" in finished.out and "nothing is new" in finished.out
    assert len(read_live(output)) == 20 and not (output / "_jobs").exists()
    assert run_verify().status == 0


def test_a_command_that_dies_while_it_cleans_up_has_done_its_work(
    go_on: Command, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def unlink_and_die(path: Any, **named: Any) -> None:
        unlink(path, **named)
        if Path(os.fsdecode(path)).name == "completed.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_die)
        assert go_on().status == 130
    finished = go_on()
    assert finished.status == 0, finished.err
    assert len(read_live(output)) == 20


def test_a_job_that_has_failed_is_given_up_by_a_person(go_on: Command, run_verify: Command, output: Path) -> None:
    (described,) = output.glob("_jobs/*/job.json")
    described.unlink()  # and its completion stays, as if it had gone on nevertheless
    assert go_on().status == 0
    assert len(read_live(output)) == 20
    assert run_verify().status == 0 and not (output / "_jobs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no counts", r"1 of 1 input(s) were not read to their end"),
        ("a part not read", r"1 of 1 input(s) were not read to their end"),
        ("other counts", "the counts do not add up: read 21, rows in files 20, dead letters 0, notices 0"),
        ("a file gone", "1 of its files are not there"),
        ("no files", "the counts do not add up: read 20, rows in files 0"),
    ],
)
def test_a_job_that_is_done_without_counts_or_files_is_no_success(
    go_on: Command, made: Path, output: Path, change: str, said: str
) -> None:
    (path,) = (made / "in").iterdir()
    (completed,) = output.glob("_jobs/*/completed.json")
    if change == "a file gone":
        next(output.glob("part-*")).unlink()
    elif change == "no files":
        for record in output.glob("_tmp/*/committed/*"):
            record.unlink()
    else:
        counts = {"no counts": {}, "a part not read": {str(path): [1, 20, 0]}, "other counts": {str(path): [0, 21, 0]}}
        completed.write_text(json.dumps({"inputs": counts[change]}))
    finished = go_on()
    assert finished.status == 1
    assert "was in vain: " in finished.err and said in finished.err and finished.err.count("\n") == 1
    assert not list(output.rglob("*.parquet")) and not (output / "_jobs").exists()


@pytest.mark.parametrize("name", ["job.json", "completed.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"inputs": {"a": [0]}}'])
def test_what_is_said_of_a_job_is_damaged(go_on: Command, output: Path, name: str, content: str) -> None:
    (path,) = output.glob(f"_jobs/*/{name}")
    path.write_text(content)
    finished = go_on()
    assert finished.status == 2
    assert "not what a submitted job has there" in finished.err and finished.err.count("\n") == 1


def test_what_others_have_scored_meanwhile_is_not_there_twice(
    go_on: Command, run_verify: Command, output: Path, tmp_path: Path
) -> None:
    """Its command was suspended before it said what it does, and another one took it for dead."""
    shutil.copytree(output, tmp_path / "copy")
    shutil.rmtree(output)
    assert go_on().status == 0
    shutil.copytree(tmp_path / "copy", output, dirs_exist_ok=True)
    finished = go_on()
    assert finished.status == 1
    assert "another command has written there meanwhile" in finished.err
    assert run_verify().status == 0
    assert len(read_live(output)) == 20


@pytest.mark.portable
def test_score_leaves_a_job_that_replaces_what_it_has_written_before(
    run_score: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 20)
    for _ in range(2):
        finished = run_score("--input", "in/*", "--output", "out", *cluster.options, "--no_wait")
        assert finished.status == 0, finished.err
        assert cluster.wait() == "DONE"
        assert run_verify("--clean").status == 0
        assert len(read_live(tmp_path / "out")) == 40


@pytest.mark.parametrize("command", ["annotate", "score"])
def test_a_runner_that_ends_with_its_command_is_refused(
    run_annotate: Command, run_score: Command, tmp_path: Path, command: str
) -> None:
    corpus(tmp_path / "in", 1, 5)
    run = run_annotate if command == "annotate" else partial(run_score, "--input", "in/*", "--output", "out")
    finished = run("--no_wait")
    assert finished.status == 2
    assert finished.err.startswith("error: --runner DirectRunner: it works in this command, and would end with it, ")
    for more in ([], ["--dry_run"]):
        finished = run("--no_wait", "--runner=PortableRunner", "--job_endpoint=embed", *more)
        assert finished.status == 2
        assert "its job server is a part of this command" in finished.err and finished.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
