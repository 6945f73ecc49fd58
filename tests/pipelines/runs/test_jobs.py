"""--no_wait: a job that goes on when its command has ended, and whose result a later command takes in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from pipelines.data_set.snapshot import DataSet
from tests.pipelines.conftest import Finished, corpus, read_live, write_lines

Command = Callable[..., Finished]


class Cluster:
    """A job server with its workers, which a command leaves behind when it ends: here it ends, and they stay."""

    def __init__(self, server: str, workers: str) -> None:
        self._server = server
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


def jobs_of(output: Path) -> list[Path]:
    return sorted(output.glob("_jobs/*/job.json"))


def test_a_job_is_taken_in_by_the_next_run(
    submit: Command, run_annotate: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 50)
    write_lines(tmp_path / "in" / "bad.jsonl", ["not json"])
    finished = submit("--partition_by", "", "--max_dead_fraction", "1")
    assert finished.status == 0, finished.err
    assert "submitted to PortableRunner as job " in finished.out and "speed" not in finished.out
    assert cluster.wait() == "DONE"
    assert not list((tmp_path / "out").glob("_manifests/*"))
    checked = run_verify()
    assert "is done; pipelines.annotate or --clean takes it in" in checked.out, checked.out

    finished = run_annotate("--partition_by", "", "--max_dead_fraction", "1")
    assert finished.status == 0, finished.err
    assert "took in     a job submitted at " in finished.out and "100 rows, 1 dead letters" in finished.out
    assert "nothing is new" in finished.out
    assert run_verify().status == 0
    assert not (tmp_path / "out" / "_jobs").exists() and not (tmp_path / "out" / "_tmp").exists()
    again = run_annotate("--output", "local", "--partition_by", "", "--max_dead_fraction", "1")
    assert again.status == 0, again.err
    assert read_live(tmp_path / "out").equals(read_live(tmp_path / "local"))
    (ours,), (theirs,) = (DataSet.read(str(tmp_path / name)).manifests for name in ("out", "local"))
    assert (ours.inputs, ours.model, ours.identity) == (theirs.inputs, theirs.model, theirs.identity)
    assert ours.counts == {name: theirs.counts[name] for name in ours.counts} | {
        name: ours.counts[name] for name in ("files_written", "bytes_written")
    }


def test_files_that_have_changed_are_replaced_by_the_job(
    submit: Command, run_annotate: Command, run_compact: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 3, 20)
    assert run_annotate().status == 0
    corpus(tmp_path / "in", 1, 35)
    assert submit().status == 0
    assert cluster.wait() == "DONE"
    compacted = run_compact()  # which takes it in first
    assert compacted.status == 0, compacted.err
    assert len(read_live(tmp_path / "out")) == 35 + 20 + 20
    assert run_verify().status == 0
    assert "nothing is new" in run_annotate().out


def test_while_a_job_goes_on_nobody_else_scores_and_nothing_of_it_is_deleted(
    submit: Command, run_annotate: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 1, 20)
    assert submit().status == 0
    assert cluster.wait() == "DONE"
    (completed,) = (tmp_path / "out").glob("_jobs/*/completed.json")
    content = completed.read_text()
    completed.unlink()  # as it was a moment before
    finished = run_annotate()
    assert finished.status == 4
    assert "is being written by job " in finished.err and f"delete {completed.parent}" in finished.err
    assert run_verify("--clean", "--older_than", "0s").status == 0
    completed.write_text(content)
    assert run_verify("--clean").status == 0
    assert len(read_live(tmp_path / "out")) == 20


def test_a_job_that_has_failed_is_given_up_by_a_person(
    submit: Command, run_annotate: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 1, 20)
    assert submit().status == 0
    assert cluster.wait() == "DONE"
    (job,) = jobs_of(tmp_path / "out")
    for file in job.parent.iterdir():
        file.unlink()
    job.parent.rmdir()
    assert run_annotate().status == 0
    assert len(read_live(tmp_path / "out")) == 20
    assert run_verify().status == 0


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
    submit: Command, run_annotate: Command, cluster: Cluster, tmp_path: Path, change: str, said: str
) -> None:
    (path,) = corpus(tmp_path / "in", 1, 20)
    assert submit("--partition_by", "").status == 0
    assert cluster.wait() == "DONE"
    output = tmp_path / "out"
    (completed,) = output.glob("_jobs/*/completed.json")
    if change == "a file gone":
        next(output.glob("part-*")).unlink()
    elif change == "no files":
        for record in output.glob("_tmp/*/committed/*"):
            record.unlink()
    else:
        counts = {"no counts": {}, "a part not read": {str(path): [1, 20, 0]}, "other counts": {str(path): [0, 21, 0]}}
        completed.write_text(json.dumps({"inputs": counts[change]}))
    finished = run_annotate("--partition_by", "")
    assert finished.status == 1
    assert "was in vain: " in finished.err and said in finished.err and finished.err.count("\n") == 1
    assert not list(output.rglob("*.parquet")) and not jobs_of(output)
    assert run_annotate("--partition_by", "").status == 0
    assert len(read_live(output)) == 20


def test_what_others_have_scored_meanwhile_is_not_there_twice(
    submit: Command, run_annotate: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    """Its command was suspended before it said what it does, and another one took it for dead."""
    corpus(tmp_path / "in", 1, 20)
    assert submit().status == 0
    assert cluster.wait() == "DONE"
    (job,) = jobs_of(tmp_path / "out")
    hidden, kept = tmp_path / "hidden", tmp_path / "kept"
    job.parent.rename(hidden)
    (tmp_path / "out" / "_tmp").rename(kept)
    assert run_annotate().status == 0
    job.parent.parent.mkdir()
    hidden.rename(job.parent)
    kept.rename(tmp_path / "out" / "_tmp")
    finished = run_annotate()
    assert finished.status == 1
    assert "another command has written there meanwhile" in finished.err
    assert run_verify().status == 0
    assert len(read_live(tmp_path / "out")) == 20


def test_score_leaves_a_job_that_replaces_what_it_has_written_before(
    run_score: Command, run_verify: Command, cluster: Cluster, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 20)
    arguments = ("--input", "in/*", "--output", "out", *cluster.options, "--no_wait")
    for _ in range(2):
        finished = run_score(*arguments)
        assert finished.status == 0, finished.err
        assert cluster.wait() == "DONE"
        assert run_verify("--clean").status == 0
        assert len(read_live(tmp_path / "out")) == 40


def test_a_runner_that_ends_with_its_command_is_refused(run_annotate: Command, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 5)
    finished = run_annotate("--no_wait")
    assert finished.status == 2
    assert finished.err == (
        "error: --runner DirectRunner: it works in this command, and would end with it, while --no_wait leaves it to go "
        "on\n"
    )
    finished = run_annotate("--no_wait", "--runner=PortableRunner", "--job_endpoint=embed")
    assert finished.status == 2
    assert "its job server is a part of this command" in finished.err and finished.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
