"""Workers of local runs: nobody else can reach them, they end with their run, and the first error is the one told."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipelines import annotate, score
from pipelines.cli.options import parse
from pipelines.runs.local_workers import LocalRunner
from pipelines.runs.runners import pipeline_options
from tests.pipelines.conftest import Finished, corpus, environment
from tests.sockets import listeners
from torchmoji_core.errors import InputError, RunError
from transforms.stopping import check_stopped

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="looks for sockets in Linux' /proc")


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


class Looking(threading.Thread):
    """Looks all the time at what this process listens at."""

    def __init__(self) -> None:
        super().__init__()
        self.before = listeners(os.getpid())
        self.seen: set[object] = set()
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.02):
            for found, known in zip(listeners(os.getpid()), self.before, strict=True):
                self.seen |= set(found) - set(known)


@pytest.mark.parametrize("main", [score.main, annotate.main])
def test_a_run_in_threads_opens_no_socket(
    main: Callable[[list[str]], int], run_main: Callable[..., Finished], model: str, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 4, 200)
    looking = Looking()
    looking.start()
    try:
        options = ("--model", model, "--input", "in/*", "--output", "out", "--cache_mb", "0", "--threads", "2")
        assert run_main(main, *options).status == 0
    finally:
        looking.is_over.set()
        looking.join()
    assert not looking.seen


def test_worker_processes_listen_where_nobody_else_can_connect(model: str, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 4, 200)
    command = (sys.executable, "-m", "pipelines.score", "--model", model, "--input", "in/*", "--output", "out")
    process = subprocess.Popen(
        [*command, "--cache_mb", "0", "--direct_num_workers", "2"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen: set[Path] = set()
    workers: set[int] = set()
    try:
        while process.poll() is None:
            for pid in (process.pid, *children(process.pid)):
                internet, unix = listeners(pid)
                assert not internet, internet
                for path in unix:
                    if path not in seen and path.parent.exists():
                        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path
                    seen.add(path)
            workers |= set(children(process.pid))
            time.sleep(0.1)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert seen and len(workers) >= 2
    assert not any(path.exists() for path in seen)


@pytest.fixture
def numbers() -> Callable[..., list[int]]:
    """Runs a function over numbers in a pipeline on some workers."""

    def run(function: Callable[[int], int], workers: int, processes: bool, directory: Path) -> list[int]:
        options = PipelineOptions([])
        options.view_as(DirectOptions).direct_num_workers = workers
        runner = LocalRunner(processes, str(directory / "log"))
        out = directory / "out"
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            results = pipeline | beam.Create(list(range(100))) | beam.Reshuffle() | beam.Map(function)
            results | beam.Map(lambda number: Path(f"{out}-{number}").touch())
        return sorted(int(path.name.split("-")[1]) for path in directory.glob("out-*"))

    return run


@pytest.mark.parametrize(("workers", "processes"), [(1, False), (3, False), (2, True)])
def test_every_element_is_worked_on_once(
    numbers: Callable[..., list[int]], workers: int, processes: bool, tmp_path: Path
) -> None:
    assert numbers(lambda number: number + 1000, workers, processes, tmp_path) == list(range(1000, 1100))


def test_the_first_error_is_the_one_that_is_told_and_the_others_stop(
    numbers: Callable[..., list[int]], tmp_path: Path
) -> None:
    lock = threading.Lock()
    failed: list[int] = []

    def work(number: int) -> int:
        with lock:
            if not failed:
                failed.append(number)
                raise RunError("the disk of the first one")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # what goes on for ever elsewhere looks whether it should
            check_stopped()
            time.sleep(0.01)
        raise AssertionError("nobody stopped this thread")

    with pytest.raises(RunError, match="the disk of the first one"):
        numbers(work, 3, False, tmp_path)
    check_stopped()  # this thread works for nobody


def test_a_worker_process_that_dies_fails_the_run(numbers: Callable[..., list[int]], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker process died: exit status 7"):
        numbers(lambda number: os._exit(7), 2, True, tmp_path)


def test_a_stranger_at_the_sockets_of_workers_is_kept_out(
    numbers: Callable[..., list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user gets nothing; who may enter the directory finds no service that serves files or options."""
    monkeypatch.setenv("TORCHMOJI_TEST_DIRECTORY", str(tmp_path))

    def work(number: int) -> int:
        # In the worker: its own address is that of everybody.
        control = os.environ["CONTROL_API_SERVICE_DESCRIPTOR"].split('"')[1]
        Path(os.environ["TORCHMOJI_TEST_DIRECTORY"], "address").write_text(control)
        deadline = time.monotonic() + 60
        while not Path(os.environ["TORCHMOJI_TEST_DIRECTORY"], "attacked").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return number

    outcome: list[str] = []

    def attack() -> None:
        address = tmp_path / "address"
        deadline = time.monotonic() + 60
        while not (address.exists() and address.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        path = address.read_text().removeprefix("unix:")
        code = "import os, socket, sys; os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        if os.getuid() == 0:
            tried = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
            outcome.append(tried.stderr.strip().splitlines()[-1])
        services = (
            "/org.apache.beam.model.job_management.v1.ArtifactRetrievalService/GetArtifact",
            "/org.apache.beam.model.fn_execution.v1.ProvisionService/GetProvisionInfo",
            "/org.apache.beam.model.fn_execution.v1.BeamFnLogging/Logging",
        )
        with grpc.insecure_channel(f"unix:{path}") as channel:
            for service in services:
                try:
                    outcome.append(f"answered {channel.unary_unary(service)(b'', timeout=30)!r}")
                except grpc.RpcError as error:
                    outcome.append(error.code().name)

    def attack_and_tell() -> None:
        try:
            attack()
        finally:
            (tmp_path / "attacked").touch()

    attacker = threading.Thread(target=attack_and_tell)
    attacker.start()
    try:
        assert numbers(work, 2, True, tmp_path) == list(range(100))
    finally:
        attacker.join()
    expected = ["UNIMPLEMENTED"] * 3
    if os.getuid() == 0:
        expected.insert(0, "PermissionError: [Errno 13] Permission denied")
    assert outcome == expected


def test_sockets_have_a_place_whatever_tmpdir_is_called(
    numbers: Callable[..., list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / ("a long name with 100 % blanks " * 5)
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    assert numbers(lambda number: number, 2, True, tmp_path) == list(range(100))


SECRETS = ("--s3_access_key_id", "AKIAX", "--s3_secret_access_key=hidden1", "--s3_session_token", "hidden2")


def test_secrets_are_not_in_the_options_of_a_local_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(variable, "")
    config, rest = parse(["--s3_endpoint_url=http://127.0.0.1:1", *SECRETS])
    options = pipeline_options(config, rest)
    said = json.dumps(options.get_all_options(retain_unknown_options=True), default=str) + repr(options)
    assert "hidden" not in said and "AKIAX" not in said
    assert "http://127.0.0.1:1" in said
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AKIAX"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "hidden1"
    assert os.environ["AWS_SESSION_TOKEN"] == "hidden2"


def test_secrets_are_refused_for_a_job_that_others_can_see() -> None:
    config, rest = parse(["--runner=FlinkRunner", "--flink_master=127.0.0.1:1", *SECRETS])
    with pytest.raises(InputError, match="--s3_access_key_id would be stored with the job") as error:
        pipeline_options(config, rest)
    assert "AKIAX" not in str(error.value)


@pytest.mark.parametrize("option", ["--s3-secret-access-key", "-s3_secret_access_key", "--s3_secret-access_key"])
@pytest.mark.parametrize("runner", ["DirectRunner", "FlinkRunner"])
def test_an_option_of_another_spelling_is_not_passed_over_with_its_secret(option: str, runner: str) -> None:
    config, rest = parse([f"--runner={runner}", f"{option}=hidden1"])
    with pytest.raises(InputError, match=f"option {option} is unknown.* is --s3_secret_access_key meant") as error:
        pipeline_options(config, rest)
    assert "hidden1" not in str(error.value)


def test_the_looking_finds_what_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listeners(os.getpid())[0]) == 1
