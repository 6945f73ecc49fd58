"""Jobs on job servers, with workers in processes of their own: the same rows; whoever dies, nothing is half done.

Prism is Beam's runner in Go, which `make test-portable` builds; the embedded job server is Beam's in Python.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_job_api_pb2,
    beam_job_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import struct_pb2

from pipelines import score
from pipelines.cli.options import parse
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.explain import explain
from pipelines.runs.runners import pipeline_options
from pipelines.runs.worker_boot import redacted_record
from tests.pipelines.conftest import (
    Finished,
    corpus,
    environment,
    posts,
    read_dead_letters,
    read_live,
    read_scores,
    write_lines,
)  # fmt: skip
from tests.processes import ScoreProcess

PRISM = Path(sys.prefix, "prism", "prism")
needs_prism = pytest.mark.skipif(not PRISM.exists(), reason="Prism is missing; `make test-portable` builds it, with Go")
ON_PRISM = ["--runner=PrismRunner", f"--prism_location={PRISM}"]
SERVERS = [pytest.param("prism", marks=needs_prism), "embedded"]
MOMENTS = {
    "connecting": "start",
    "reading": "transforms.input.read:PartReader.read",
    "scoring": "transforms.scoring.score:score_batch",
    "writing": "transforms.output.write:_Write.finish_bundle",
    "committing": "transforms.storage.files:publish",
}
"""What a worker is doing when somebody dies. While committing, a file is in place, and the record of it is not."""
LIMIT = 300.0
"""Seconds after which a test has failed."""
Run = Callable[..., Finished]


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """A process that does not outlive a block."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def pool(variables: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[Any], str]]:
    """A pool of workers, and its address."""
    command = [sys.executable, "-m", "pipelines.worker", "--port=0"]
    variables = environment() | (variables or {})
    with ended(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().split()[4].rstrip(";")
        process.terminate()  # and its workers
        process.wait(LIMIT)


@contextlib.contextmanager
def job_server(kind: str) -> Iterator[tuple[subprocess.Popen[Any], list[str]]]:
    """One in a process of its own, and the options that send a job there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    embedded = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(port)]
    command = embedded if kind == "embedded" else [str(PRISM), "--job_port", str(port), "--serve_http=false"]
    with ended(subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) as p:
        wait_for(lambda: _connects(port), p)
        runner = "PrismRunner" if kind == "prism" else "PortableRunner"
        yield p, [f"--runner={runner}", f"--job_endpoint=localhost:{port}"]


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until something holds; it is an error if a process ends before."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int, name: str) -> list[int]:
    """Processes that a process has started and whose program has that name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = entry.read_text().partition(" (")
            program, _, fields = rest.rpartition(") ")
            if program == name and int(fields.split()[1]) == pid:
                found.append(int(number))
    return found


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def one_line(said: str) -> str:
    """The last line, which says what has failed; there is no traceback."""
    assert "Traceback" not in said, said
    lines = said.splitlines()
    assert sum(line.startswith("failed: ") for line in lines) == 1, said
    assert lines[-1].startswith("failed: "), said
    return lines[-1]


def files_of_runs(output: Path) -> list[Path]:
    """All but temporary ones: a worker may write for a moment after the end of its job, which the next run removes."""
    return [path for path in output.rglob("*") if path.is_file() and "_tmp" not in path.relative_to(output).parts]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """50,000 lines of which a thousandth are broken, and a few posts."""
    directory = tmp_path / "in"
    corpus(directory, 2, 50)
    lines: list[object] = posts(50_000)
    lines[500::1000] = ["not json", b'{"id": "a", "text": "\xff"', '{"id": "no text"}', "[]", '{"text": 5}'] * 10
    write_lines(directory / "many.jsonl", lines)
    return directory


@pytest.mark.portable
@pytest.mark.parametrize("kind", ["LOOPBACK", "EXTERNAL", "PROCESS"])
@needs_prism
def test_rows_dead_letters_and_manifest_on_prism_are_those_of_a_local_run(
    kind: str, run_score: Run, inputs: Path, tmp_path: Path
) -> None:
    common = ("--input", f"{inputs}/*", "--max_dead_fraction", "1", "--output")
    assert run_score(*common, "local").status == 0
    with contextlib.ExitStack() as stack:
        how = [*ON_PRISM, f"--environment_type={kind}"]
        if kind == "EXTERNAL":
            _, address = stack.enter_context(pool())
            how += [f"--environment_config={address}"]
        if kind == "PROCESS":
            command = tmp_path / "worker"
            command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipelines.worker "$@"\n')
            command.chmod(0o755)
            variables = {"command": str(command), "env": {"PYTHONPATH": environment()["PYTHONPATH"]}}
            how += [f"--environment_config={json.dumps(variables)}"]
        finished = run_score(*common, "prism", *how)
    assert finished.status == 0, finished.err
    assert "ERROR" not in finished.err
    assert read_scores(tmp_path / "prism").equals(read_scores(tmp_path / "local"))
    dead = [sorted(read_dead_letters(tmp_path / name), key=str) for name in ("prism", "local")]
    assert dead[0] == dead[1] and len(dead[0]) == 50
    assert _said(tmp_path / "prism") == _said(tmp_path / "local")


def _said(output: Path) -> dict[str, Any]:
    """What a manifest says, but for times, names of files and how it was run."""
    data_set = DataSet(str(output))
    data_set.refresh()
    (manifest,) = data_set.manifests
    by_bundle = ("files_written", "bytes_written", "reused", "batches")
    return {
        "counts": {name: number for name, number in manifest.counts.items() if name not in by_bundle},
        "model": manifest.model,
        "identity": manifest.identity,
        "inputs": manifest.inputs,
        "rows": sum(file.rows for file in manifest.files),
        "dead": sum(file.rows for file in manifest.dead_letters),
    }


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What a run gives in which nobody dies."""
    directory = tmp_path_factory.mktemp("undisturbed")
    corpus(directory / "in", 2, 60)
    common = ["--model", model, "--progress", "off", "--input", f"{directory}/in/*", "--output"]
    assert score.main([*common, str(directory / "out")]) == 0
    return read_scores(directory / "out")


@pytest.mark.portable
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["worker", "pool", "launcher", "runner"])
@pytest.mark.parametrize("kind", SERVERS)
def test_whoever_dies_nothing_is_half_done_and_the_next_run_is_right(
    kind: str,
    victim: str,
    moment: str,
    run_score: Run,
    run_verify: Run,
    model: str,
    undisturbed: pa.Table,
    tmp_path: Path,
) -> None:
    """A pool is told to end, as Kubernetes does it; all others are killed."""
    corpus(tmp_path / "in", 2, 60)
    halted = tmp_path / "halted"
    halting = {"HALT_AT": MOMENTS[moment], "HALT_FILE": str(halted)}
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out")
    with job_server(kind) as (runner, how), pool(halting) as (workers, address):
        launcher = ScoreProcess(
            tmp_path, *common, *how, "--environment_type=EXTERNAL", f"--environment_config={address}",
            "--beam_plugins=tests.pipelines.runs.halting",
            # Of a worker that has not connected, nobody hears that it is gone.
            *(["--stall_timeout=45s"] if moment == "connecting" and victim in ("worker", "pool") else []),
        )  # fmt: skip
        try:
            launcher.wait_for(halted.exists, LIMIT)
            worker = int(halted.read_text())
            if victim == "pool":
                workers.terminate()
                workers.wait(LIMIT)  # and its workers with it, before they can go on
            else:
                dies = {"worker": worker, "launcher": launcher.process.pid, "runner": runner.pid}
                os.kill(dies[victim], signal.SIGKILL)
            halted.with_suffix(".go").touch()
            status = launcher.process.wait(LIMIT)
            said = launcher.log
        finally:
            launcher.close()
        if victim == "launcher":
            assert status == -signal.SIGKILL
        else:
            assert status == 1, said
            one_line(said)
        if victim in ("worker", "pool") and moment != "connecting":
            assert "a worker process died" in said
    assert not is_running(worker)
    assert not list((tmp_path / "out" / "_manifests").glob("*"))
    assert run_score("--input", "in/*", "--output", "out").status == 0
    assert run_verify().status == 0
    assert read_live(tmp_path / "out").equals(undisturbed)
    assert read_scores(tmp_path / "out").equals(undisturbed)  # and no file beside


@pytest.mark.portable
@pytest.mark.parametrize("kind", [pytest.param("prism", marks=needs_prism), "embed"])
def test_when_a_pool_with_two_jobs_ends_each_of_them_ends(kind: str, model: str, tmp_path: Path) -> None:
    how = ON_PRISM if kind == "prism" else ["--runner=PortableRunner", "--job_endpoint=embed"]
    halted = tmp_path / "halted"
    halting = {"HALT_AT": MOMENTS["scoring"], "HALT_FILE": str(halted), "HALT_ALL": "1"}
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out", *how)
    with contextlib.ExitStack() as stack:
        workers, address = stack.enter_context(pool(halting))
        launchers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            corpus(tmp_path / name / "in", 1, 60)
            launchers.append(
                ScoreProcess(
                    tmp_path / name, *common, "--environment_type=EXTERNAL", f"--environment_config={address}",
                    "--beam_plugins=tests.pipelines.runs.halting",
                )
            )  # fmt: skip
            stack.callback(launchers[-1].close)
        for launcher in launchers:
            launcher.wait_for(lambda: len([*tmp_path.glob("halted.*")]) == 2, LIMIT)
        workers.terminate()
        workers.wait(LIMIT)
        for launcher in launchers:
            assert launcher.process.wait(LIMIT) == 1, launcher.log
            assert "a worker process died" in one_line(launcher.log)
    assert not files_of_runs(tmp_path / "one" / "out") + files_of_runs(tmp_path / "two" / "out")


@pytest.mark.portable
@needs_prism
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_while_its_prism_works_takes_that_with_it(
    number: signal.Signals, run_score: Run, undisturbed: pa.Table, model: str, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 60)
    halted = tmp_path / "halted"
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out")
    with pool({"HALT_AT": MOMENTS["scoring"], "HALT_FILE": str(halted)}) as (_, address):
        external = ("--environment_type=EXTERNAL", f"--environment_config={address}")
        plugin = "--beam_plugins=tests.pipelines.runs.halting"
        launcher = ScoreProcess(tmp_path, *common, *ON_PRISM, *external, plugin)
        try:
            launcher.wait_for(halted.exists, LIMIT)
            (prism,) = children(launcher.process.pid, PRISM.name)
            assert launcher.stop(number, LIMIT) == (-number if number == signal.SIGKILL else 130), launcher.log
        finally:
            launcher.close()
            halted.with_suffix(".go").touch()
        wait_for(lambda: not is_running(prism))
        wait_for(lambda: not is_running(int(halted.read_text())))
    assert "Traceback" not in launcher.log
    if number != signal.SIGKILL:
        assert launcher.log.splitlines()[-1] == "interrupted"
        assert not files_of_runs(tmp_path / "out")
    assert run_score("--input", "in/*", "--output", "out").status == 0
    assert read_scores(tmp_path / "out").equals(undisturbed)


@pytest.mark.portable
@pytest.mark.parametrize("kind", SERVERS)
def test_the_job_of_an_interrupted_command_is_cancelled(kind: str, model: str, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 60)
    halted = tmp_path / "halted"
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out")
    halting = {"HALT_AT": MOMENTS["scoring"], "HALT_FILE": str(halted)}
    with job_server(kind) as (_, how), pool(halting) as (_, address):
        external = ("--environment_type=EXTERNAL", f"--environment_config={address}")
        launcher = ScoreProcess(tmp_path, *common, *how, *external, "--beam_plugins=tests.pipelines.runs.halting")
        try:
            launcher.wait_for(halted.exists, LIMIT)
            assert launcher.stop(signal.SIGTERM) == 130, launcher.log
        finally:
            launcher.close()
            halted.with_suffix(".go").touch()
        with grpc.insecure_channel(how[1].partition("=")[2]) as channel:
            jobs = beam_job_api_pb2_grpc.JobServiceStub(channel)
            (job,) = jobs.GetJobs(beam_job_api_pb2.GetJobsRequest()).job_info
            wait_for(lambda: _state(jobs, job.job_id) == beam_job_api_pb2.JobState.CANCELLED)
    assert launcher.log.splitlines()[-1] == "interrupted" and "Traceback" not in launcher.log
    assert not files_of_runs(tmp_path / "out")


def _state(jobs: beam_job_api_pb2_grpc.JobServiceStub, job: str) -> int:
    return int(jobs.GetState(beam_job_api_pb2.GetJobStateRequest(job_id=job)).state)


@pytest.mark.portable
@needs_prism
@pytest.mark.parametrize("how", ["success", "failure", signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_prism_does_not_outlive_its_command(how: str | signal.Signals, model: str, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 60)
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out")
    dying = ("--environment_type=PROCESS", '--environment_config={"command": "false"}', "--stall_timeout=10s")
    launcher = ScoreProcess(tmp_path, *common, *ON_PRISM, *(dying if how == "failure" else ()))
    try:
        launcher.wait_for(lambda: children(launcher.process.pid, PRISM.name), LIMIT)
        (prism,) = children(launcher.process.pid, PRISM.name)
        if isinstance(how, signal.Signals):
            launcher.process.send_signal(how)
        expected = {"success": 0, "failure": 1, signal.SIGKILL: -9}.get(how, 130)
        assert launcher.process.wait(LIMIT) == expected, launcher.log
    finally:
        launcher.close()
    wait_for(lambda: not is_running(prism))
    assert "WARNING" not in launcher.log and "Traceback" not in launcher.log


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("PortableRunner --job_endpoint={}", "--job_endpoint {}: nobody answers (Connection refused)"),
        (
            "PrismRunner --job_endpoint={} --streaming kafka://b1:9092/posts",
            "--job_endpoint {}: nobody answers (Connection refused)",
        ),
        (
            "PortableRunner --job_endpoint=embed --environment_type=EXTERNAL --environment_config={}",
            "--environment_config {}: no pool of workers answers (Connection refused); start one there: python -m "
            "pipelines.worker --port ",
        ),
        (
            "PrismRunner --environment_type=EXTERNAL --environment_option=external_service_address={}",
            "--environment_config {}: no pool of workers answers (Connection refused)",
        ),
        (
            'PrismRunner --environment_type=PROCESS --environment_config={{"command":"/no/such/program"}}',
            "there is no program /no/such/program",
        ),
        (
            "PrismRunner --environment_type=PROCESS --environment_config=/no/such/program",
            "there is no program /no/such/program",
        ),
        (
            'PortableRunner --job_endpoint=embed --environment_type=PROCESS --environment_config={{"command":"true"}}',
            "--job_endpoint embed starts no programs",
        ),
    ],
    ids=["job server", "job server of a stream", "pool", "pool by option", "program", "program alone", "embedded"],
)
def test_what_is_not_there_is_said_at_once(how: str, said: str, run_score: Run, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 10)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"localhost:{nobody.getsockname()[1]}"
        runner, _, stream = how.format(address).partition(" --streaming ")
        source = ("--streaming", "--input", stream) if stream else ("--input", "in/*")
        finished = run_score(*source, "--output", "out", *f"--runner={runner}".split())
    assert finished.status == 1
    assert said.format(address) in one_line(finished.err)
    assert not list((tmp_path / "out").rglob("*.json"))


class _PoolOfTheDead(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Says that it starts workers; none of them is ever heard of."""

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        return beam_fn_api_pb2.StartWorkerResponse()


@pytest.mark.portable
@pytest.mark.parametrize("kind", SERVERS)
def test_a_job_for_which_no_worker_begins_ends(kind: str, model: str, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 10)
    server = grpc.server(ThreadPoolExecutor(1))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(_PoolOfTheDead(), server)
    address = f"localhost:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    common = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out", "--stall_timeout=2s")
    try:
        with job_server(kind) as (_, how):
            external = ("--environment_type=EXTERNAL", f"--environment_config={address}")
            launcher = ScoreProcess(tmp_path, *common, *how, *external)
            try:
                assert launcher.process.wait(LIMIT) == 1
                said = one_line(launcher.log)
            finally:
                launcher.close()
    finally:
        server.stop(None)
    assert "no worker has begun within 2 seconds" in said and f"--environment_config {address}" in said


class _Runner(
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,
    beam_fn_api_pb2_grpc.BeamFnControlServicer,
):
    """What a worker talks to first: it asks for the job's options, logs, and waits for work."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = struct_pb2.Struct()
        self._options.update({f"beam:option:{name}:v1": value for name, value in options.items()})
        self.url, self.log = "", []

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        endpoint = endpoints_pb2.ApiServiceDescriptor(url=self.url)
        info = beam_provision_api_pb2.ProvisionInfo(
            pipeline_options=self._options, logging_endpoint=endpoint, control_endpoint=endpoint
        )
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)

    def Logging(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        for entries in request:
            self.log += [f"{entry.message} {entry.trace}" for entry in entries.log_entries]
        yield from ()

    def Control(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        for _ in request:
            pass
        yield from ()


@pytest.mark.portable
def test_secrets_among_the_options_are_not_in_the_log_of_a_worker(tmp_path: Path) -> None:
    """Beam's worker logs all options as soon as it has begun."""
    secrets = ["hunter2hunter2", "wJalrXUtnFEMI", "p4ssw0rd"]
    runner = _Runner(
        {
            "labels": [f"password={secrets[0]}"],
            "environment_config": json.dumps({"command": "w", "env": {"AWS_SECRET_ACCESS_KEY": secrets[1]}}),
            "s3_endpoint_url": f"https://user:{secrets[2]}@store.example",
            "job_name": "harmless",
        }
    )
    server = grpc.server(ThreadPoolExecutor(8))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(runner, server)
    beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(runner, server)
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(runner, server)
    runner.url = f"localhost:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    command = [sys.executable, "-m", "pipelines.worker", "--id=1", f"--provision_endpoint={runner.url}"]
    log = (tmp_path / "log").open("wb")
    with log, ended(subprocess.Popen(command, env=environment(), stdout=log, stderr=log)) as worker:
        wait_for(lambda: any("Pipeline_options" in line for line in runner.log), worker)
    server.stop(None)
    said = "\n".join(runner.log) + (tmp_path / "log").read_text()
    assert "harmless" in said and "store.example" in said
    assert [secret for secret in secrets if secret in said] == []


def test_records_of_workers_are_final_and_without_credentials() -> None:
    """Beam's handler sends the traceback of an error by itself, as it is."""
    try:
        raise ValueError("no access with password=hunter2hunter2")
    except ValueError:
        record = redacted_record("name", logging.ERROR, "file", 1, "%s (%d)", ("token=abcdefgh1", 5), sys.exc_info())
    assert record.exc_info is None
    said = logging.Formatter().format(record)
    assert said.startswith("token=*** (5)\nTraceback") and "hunter2" not in said
    unfit = redacted_record("name", logging.ERROR, "file", 1, "%d", ("text",), None)
    assert unfit.getMessage() == "%d"


def test_a_job_may_take_longer_than_an_answer_of_its_job_server() -> None:
    """Beam ends the wait for a job after the time that it has for answers, five minutes. Who does not wait for a job is
    not to wait for a job server that has died just then either."""
    config, rest = parse(["--runner=PortableRunner", "--job_endpoint=localhost:1"])
    year = 365 * 86_400
    assert pipeline_options(config, rest).view_as(PortableOptions).job_server_timeout > year
    assert pipeline_options(replace(config, no_wait=True), rest).view_as(PortableOptions).job_server_timeout == 300
    rest = [*rest, "--job_server_timeout=20"]
    assert pipeline_options(config, rest).view_as(PortableOptions).job_server_timeout == 20


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Pipeline job-001[job] failed in state FAILED: SDK worker disconnected: job-001[job]_go", "a worker process"),
        (
            "Pipeline job-001 failed in state FAILED: panic in stage.Execute bundle processing goroutine: send on "
            "closed channel, stage: &{ID:stage-001 transforms:[...]},stackTrace:\ngoroutine 43 [running]:\n...",
            "a worker process",
        ),
        (
            "Pipeline job-001 failed in state FAILED: prism worker[job-001[job]_env] didn't get control connection to "
            "localhost:52549 after 1m0s",
            "a worker has not connected to the runner",
        ),
        (
            "Unable to fetch remote job server jar at https://maven/flink.jar: HTTP Error 404: Not Found. Also failed",
            "Beam's job server jar cannot be fetched from https://maven/flink.jar; give the --job_endpoint",
        ),
        (
            "Pipeline job-001 failed in state FAILED: unable to create container image apache/beam_sdk:2.77.0 "
            "with docker for env ref_Environment_1, err: failed to connect to the docker API",
            "no container can be started; start Docker",
        ),
        ('<_MultiThreadedRendezvous of RPC ...:\n\tdetails = "Stream removed (Socket closed)"\n\t...', "Socket closed"),
    ],
)
def test_what_runners_say_is_explained(error: str, said: str) -> None:
    line = explain(RuntimeError(error), "out")
    assert said in line and "\n" not in line
