"""Runners, and the pools where their workers come from; each that cannot be used is refused in one line."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.testing.util import assert_that, equal_to

from pipelines import worker
from pipelines.cli.options import parse
from pipelines.data_set.recovery import register_run
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import worker_forks
from pipelines.runs.runners import OptionsReadOnce
from pipelines.runs.worker_checks import HasBegun, check_worker, our_versions
from pipelines.runs.worker_pool import SERVICE, Response, StartWorkerRequest, StopWorkerRequest, WorkerPool
from tests.pipelines.conftest import Finished, environment, read_scores
from tests.pipelines.runs.conftest import LOOPBACK, assert_failed
from tests.pipelines.streams.parts import until
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.inference.kernels import choose

Score = Callable[..., Finished]


def external(pool: str) -> list[str]:
    """Options for workers of a pool."""
    runner = ["--runner=PortableRunner", "--job_endpoint=embed"]
    return [*runner, "--environment_type=EXTERNAL", f"--environment_config={pool}"]


@pytest.fixture
def worker_pool() -> Iterator[str]:
    with running_pool() as pool:
        yield pool


@contextlib.contextmanager
def running_pool(before: Sequence[str] = ()) -> Iterator[str]:
    """A pool of Beam workers in a process of its own, as beside a Flink task manager; `before` starts its command."""
    command = [*before, sys.executable, "-m", "pipelines.worker", "--port=0"]
    pool = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert pool.stdout is not None
        said = pool.stdout.readline()
        assert said.startswith("workers are started at localhost:"), said
        yield said.split()[4].rstrip(";")
        pool.terminate()
        assert pool.wait(30) == 0
    finally:
        pool.kill()
        pool.wait()


def test_a_portable_runner_gives_the_same_rows(
    run_score: Score, inputs: Path, model: str, reference: pa.Table, worker_pool: str, tmp_path: Path
) -> None:
    """Its workers are in another directory: relative paths are those of the command."""
    paths = ("--input", f"{inputs}/*", "--output", "portable", "--model", os.path.relpath(model, tmp_path))
    finished = run_score(*paths, *external(worker_pool))
    assert finished.status == 0, finished.err
    assert read_scores(tmp_path / "portable").equals(reference)
    data_set = DataSet(str(tmp_path / "portable"))
    data_set.refresh()
    (manifest,) = data_set.manifests
    assert manifest.model.arithmetic == str(choose("auto"))  # that of the workers


@pytest.mark.portable
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem, as root")
def test_workers_that_see_another_output_end_the_run_before_they_work(
    run_score: Score, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {tmp_path}/out && exec "$@"', "sh"]
    with running_pool(hidden) as pool:
        finished = run_score("--input", f"{inputs}/*", "--output", "out", *external(pool))
    assert_failed(finished, f"workers see another directory {tmp_path}/out than the command that started them")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def prints_much(number: int) -> int:
    for _ in range(200):
        print("x" * 1000)
    return number


def test_a_worker_of_another_version_ends_the_run(tmp_path: Path) -> None:
    register_run(str(tmp_path), "run")
    has_begun = HasBegun(str(tmp_path), "run")
    assert has_begun() == has_begun()
    check_worker(str(tmp_path), "run", our_versions())
    assert has_begun() != has_begun(), "no reason for a watchdog to bark any more"
    with pytest.raises(RunError, match=r"a worker has torchmoji-beam .*, the launcher torchmoji-beam 0.0; install"):
        check_worker(str(tmp_path), "run", "torchmoji-beam 0.0")


@pytest.mark.portable
def test_a_plugin_that_a_worker_has_not_ends_the_run(run_score: Score, inputs: Path, worker_pool: str) -> None:
    plugins = ("--beam_plugins=json", "--beam_plugins=no.such.plugin")
    finished = run_score("--input", f"{inputs}/*", *plugins, *external(worker_pool))
    assert_failed(finished, "--beam_plugins no.such.plugin: a worker cannot import it: No module named 'no'")


@pytest.mark.portable
def test_a_worker_of_the_pool_may_print_and_knows_the_options_of_the_job(worker_pool: str) -> None:
    """200 kB are more than a pipe holds that nobody reads."""
    options = PipelineOptions([*external(worker_pool), "--default_sdk_harness_log_level=ERROR"])
    with beam.Pipeline(options=options) as pipeline:
        found = pipeline | beam.Create([1]) | beam.Map(prints_much)
        found |= beam.Map(lambda _: logging.getLogger().level)
        assert_that(found, equal_to([logging.ERROR]))
    port = worker_pool.rpartition(":")[2]
    assert worker.main([f"--port={port}", "--check"]) == 0


@contextlib.contextmanager
def waiting_runner() -> Iterator[Any]:
    """A request for a worker, named "one", of a runner that never says what it is to do."""
    with socket.socket() as runner:
        runner.bind(("127.0.0.1", 0))
        runner.listen()
        request = StartWorkerRequest(worker_id="one")
        request.provision_endpoint.url = f"127.0.0.1:{runner.getsockname()[1]}"
        yield request


@pytest.mark.portable
def test_workers_of_two_jobs_may_have_one_name() -> None:
    """Runners count their workers from one, each for itself."""
    pool = WorkerPool()
    with waiting_runner() as request:
        try:
            for _ in range(2):
                assert not pool.start_worker(request).error
            workers = pool.workers
            pool.stop_worker(StopWorkerRequest(worker_id=request.worker_id))
            assert [worker.is_running for worker in workers] == [True, True], "it is unknown which of them is meant"
        finally:
            pool.stop()
    assert [worker.is_running for worker in workers] == [False, False]


def children(pid: int) -> set[int]:
    """Processes that a process's main thread has started."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open none."""
    free = os.dup(0)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.portable
def test_a_pool_without_room_for_a_pipe_says_so_and_leaves_no_worker() -> None:
    before = children(os.getpid())
    pool = WorkerPool()
    (forks,) = children(os.getpid()) - before
    with waiting_runner() as request:
        try:
            assert not pool.start_worker(request).error
            with no_more_files():
                assert pool.start_worker(request).error == "a worker cannot be started: Too many open files"
            until(lambda: children(forks) == {pool.workers[0].pid})
        finally:
            pool.stop()


def test_where_no_pipe_can_be_made_no_worker_is_forked() -> None:
    asked, asking = socket.socketpair()
    before = signal.getsignal(signal.SIGCHLD)
    with asked, asking:
        asking.sendall(b'["one", "127.0.0.1:1"]\n')
        asking.shutdown(socket.SHUT_WR)
        try:
            with no_more_files():
                worker_forks.serve(asked)
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert asking.recv(1024) == b"Too many open files"


@pytest.mark.portable
def test_a_worker_whose_pool_was_killed_ends_in_one_line(tmp_path: Path) -> None:
    program = (
        "from pipelines.runs.worker_pool import StartWorkerRequest, WorkerPool\nimport socket\n"
        "runner = socket.create_server(('127.0.0.1', 0))\nrequest, pool = StartWorkerRequest(), WorkerPool()\n"
        "request.provision_endpoint.url = f'127.0.0.1:{runner.getsockname()[1]}'\npool.start_worker(request)\n"
        "connection = runner.accept()\nprint(pool.workers[0].pid, flush=True)\ninput()"
    )
    pool = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert pool.stdout is not None and pool.stderr is not None
    pid = int(pool.stdout.readline())
    pool.kill()
    pool.wait()
    os.kill(pid, signal.SIGTERM)
    said = pool.stderr.read()  # until all that have it have ended
    assert said.splitlines()[1:] == ["interrupted"], said


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (StartWorkerRequest, beam_fn_api_pb2.StartWorkerRequest),
        (StopWorkerRequest, beam_fn_api_pb2.StopWorkerRequest),
        (Response, beam_fn_api_pb2.StartWorkerResponse),
        (Response, beam_fn_api_pb2.StopWorkerResponse),
    ],
)
def test_what_the_pool_knows_of_beams_messages_is_so(ours: Any, theirs: Any) -> None:
    """The pool has descriptions of its own, since to import Beam costs a second."""
    for field in ours.DESCRIPTOR.fields:
        other = theirs.DESCRIPTOR.fields_by_name[field.name]
        assert (field.number, field.type) == (other.number, other.type)
        if field.message_type is not None:
            assert [(of.name, of.number, of.type) for of in field.message_type.fields] == [
                (of.name, of.number, of.type) for of in other.message_type.fields if of.name == "url"
            ]
    service = beam_fn_api_pb2.DESCRIPTOR.services_by_name["BeamFnExternalWorkerPool"]
    assert service.full_name == SERVICE and {"StartWorker", "StopWorker"} <= set(service.methods_by_name)


def test_where_no_pool_is_the_check_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert worker.main([f"--port={port}", "--check"]) == 1
        assert f"no pool of workers answers at port {port}" in capsys.readouterr().out
        free.listen()
        with pytest.raises(InputError, match="--port: it is in use"):
            worker.main([f"--port={port}"])


@pytest.mark.portable
def test_a_pool_needs_no_file_that_somebody_may_delete(tmp_path: Path) -> None:
    """A directory for temporary files is cleaned by others, and its path may be too long for a socket's."""
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    with running_pool(["env", f"TMPDIR={deep}"]) as address:
        assert not list(deep.iterdir())
        with grpc.insecure_channel(address) as channel:
            start = channel.unary_unary(
                f"/{SERVICE}/StartWorker", StartWorkerRequest.SerializeToString, Response.FromString
            )
            assert not start(StartWorkerRequest(worker_id="one"), timeout=60).error


@pytest.mark.portable
def test_the_death_of_what_workers_are_forked_from_is_not_theirs(caplog: pytest.LogCaptureFixture) -> None:
    """While it is stopped, it does not answer; then it is killed."""
    pool = WorkerPool()
    with waiting_runner() as request:
        try:
            assert not pool.start_worker(request).error
            (first,) = pool.workers
            forks = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(forks, signal.SIGSTOP)
            with ThreadPoolExecutor(1) as thread:
                answer = thread.submit(pool.start_worker, request)
                os.kill(forks, signal.SIGKILL)
                error = answer.result(60).error
            assert error == "a worker cannot be started: the process that it would be forked from has ended"
            assert error in caplog.messages, "runners may not pass it on"
            assert pool.workers == [first] and first.is_running
            assert not pool.start_worker(request).error, "from another process"
            second = pool.workers[1]
        finally:
            pool.stop()
    assert not first.is_running and not second.is_running
    # All is said by then: what is said while the interpreter ends may find the log closed.
    said = "\n".join(caplog.messages)
    assert all(f"worker one, process {worker.pid}, " in said for worker in (first, second))


def test_a_runner_that_refuses_is_said_in_one_line(run_score: Score, inputs: Path) -> None:
    """A server that speaks gRPC, and is no job server."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        finished = run_score("--input", f"{inputs}/*", "--runner=PortableRunner", f"--job_endpoint=localhost:{port}")
    finally:
        server.stop(None)
    assert_failed(finished, "the runner or a worker cannot be reached, or refuses: Method not found!")


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        (["--runner=PortableRunner"], "--runner PortableRunner needs a job server; give --job_endpoint HOST:PORT"),
        (
            ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=EXTERNAL"],
            "--environment_type EXTERNAL needs --environment_config, the HOST:PORT of a pool of workers",
        ),
        (
            ["--runner=PrismRunner", "--environment_type=PROCESS"],
            """--environment_type PROCESS needs --environment_config, '{"command": "PROGRAM"}'""",
        ),
        (["--runner=PortableRunner", "--job_endpoint="], "--runner PortableRunner needs a job server"),
        (["--runner=portable"], "--runner PortableRunner needs a job server"),
        (["--runner=PortableRunner", "--job_endpoint=embed"], "--job_endpoint embed: Beam would start containers"),
        (["--runner=PrismRunner", "--environment_type=PODMAN"], "--environment_type PODMAN is unknown; it must be one"),
        (["--runner=PrismRunner", "--environment_config=localhost:1"], "--environment_config means nothing without"),
        (
            ["--runner=PrismRunner", "--environment_type=external", "--environment_config=localhost"],
            "--environment_config localhost: it must be the HOST:PORT of a pool of workers",
        ),
        (
            ["--runner=PrismRunner", "--environment_type=EXTERNAL", '--environment_config={"command": "x"}'],
            '--environment_config {"command": "x"}: it must be the HOST:PORT of a pool of workers',
        ),
        (
            ["--runner=PrismRunner", "--environment_type=PROCESS", '--environment_config={"command": "x"'],
            """--environment_config {"command": "x": it must be '{"command": "PROGRAM"}'""",
        ),
        (["--runner=PrismRunner", "--prism_location=/no/such/file"], "--prism_location /no/such/file: "),
        ([*LOOPBACK, "--setup_file=no/setup.py"], "--setup_file no/setup.py: there is no such file"),
        ([*LOOPBACK, "--requirements_file=no.txt"], "--requirements_file no.txt: there is no such file"),
    ],
)
def test_an_address_that_is_missing_is_asked_for_in_one_line(
    run_score: Score, inputs: Path, tmp_path: Path, runner: list[str], said: str
) -> None:
    finished = run_score("--input", f"{inputs}/*", "--output", "out", *runner)
    assert finished.status == 2
    assert finished.err.startswith(f"error: {said}") and finished.err.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("runner", "why"),
    [
        (["--runner=PortableRunner", "--job_endpoint=embed"], "its job server is a part of this command"),
        (["--runner=PrismRunner"], "its job server is a part of this command"),
        (["--runner=prism"], "its job server is a part of this command"),
        (["--runner=apache_beam.runners.portability.prism_runner.PrismRunner"], "its job server is a part of this"),
        (["--runner=FlinkRunner", "--flink_master=localhost:1"], "without --flink_submit_uber_jar, or the --job_end"),
        (["--runner=FlinkRunner", "--environment_type=LOOPBACK"], "its workers are a part of this command"),
    ],
)
def test_a_stream_is_not_left_to_a_job_that_ends_with_its_command(
    run_score: Score, tmp_path: Path, runner: list[str], why: str
) -> None:
    for more in ([], ["--dry_run"]):
        finished = run_score("--streaming", "--input", "kafka://b1:9092/posts", "--output", "out", *runner, *more)
        assert finished.status == 2
        assert why in finished.err and finished.err.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("runner", "why"),
    [
        ("DaskRunner", "--runner DaskRunner: it loses rows without a word"),
        ("apache_beam.runners.dask.dask_runner.DaskRunner", "--runner DaskRunner: it loses rows without a word"),
        ("interactive", "--runner InteractiveRunner: it is for notebooks"),
        ("RenderRunner", "--runner RenderRunner: it draws the graph and runs nothing"),
        ("apache_beam.runners.render.RenderRunner", "--runner RenderRunner: it draws the graph and runs nothing"),
        ("apache_beam.runners.trivial_runner.TrivialRunner", "--runner TrivialRunner: it is for teaching"),
        ("os.path", "--runner os.path: 'module' object is not callable"),
        ("json.JSONDecoder", "--runner json.JSONDecoder: that is no runner of Beam"),
    ],
)
def test_a_runner_that_is_none_or_of_no_use_is_refused(
    run_score: Score, inputs: Path, tmp_path: Path, runner: str, why: str
) -> None:
    finished = run_score("--input", f"{inputs}/*", "--output", "out", "--runner", runner)
    assert finished.status == 2
    assert finished.err.startswith(f"error: {why}") and finished.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_local_run_may_be_named_as_beam_takes_it(run_score: Score, inputs: Path) -> None:
    """Beam's own runner of that name would look for another engine, and take no --direct_num_workers of ours."""
    finished = run_score("--input", f"{inputs}/*", "--output", "out", "--runner=direct", "--dry_run")
    assert finished.status == 0
    assert "runner      DirectRunner, 1 process(es)" in finished.out


def test_options_that_are_read_once_are_those_of_beam() -> None:
    options = OptionsReadOnce(["--direct_num_workers=3"])
    options.view_as(DirectOptions).direct_num_workers = 5
    for copied in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert copied.get_all_options() == options.get_all_options()
        copied.view_as(DirectOptions).direct_num_workers = 7
        assert copied.view_as(DirectOptions).direct_num_workers == 7
    assert options.get_all_options()["direct_num_workers"] == options.view_as(DirectOptions).direct_num_workers == 5


@pytest.mark.parametrize("name", ["DataflowRunner", "dataflow", "apache_beam.runners.dataflow.DataflowRunner"])
def test_dataflow_is_known_by_each_of_its_names(name: str) -> None:
    config, _ = parse([f"--runner={name}"])
    assert config.is_dataflow


def test_dataflow_without_googles_libraries_names_the_extra(
    run_score: Score, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.dataflow", None)
    finished = run_score("--input", f"{inputs}/*", "--runner=DataflowRunner")
    assert finished.status == 2
    assert finished.err.endswith("; install torchmoji-beam[gcp]\n") and finished.err.count("\n") == 1
