"""Job servers: whether they, and what they need, are there before a job is sent; and Prism, which ends with us."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, PrismRunnerOptions
from apache_beam.portability.api import beam_job_api_pb2_grpc
from apache_beam.runners.portability.prism_runner import PrismJobServer, PrismRunner, PrismRunnerLogFilter
from apache_beam.utils.subprocess_server import SubprocessServer

from pipelines.runs import child_process
from pipelines.runs.environments import source_of
from torchmoji_core.errors import InputError, RunError

ANSWER_SECONDS = 10.0


def check_answers(runner: str, options: PipelineOptions) -> None:
    """Make sure that a job server is where it is said to be; and workers, where this command is the job server.

    What other job servers reach is another matter: a pool of workers beside each of them is none of this machine.

    Args:
        runner: its name.
        options: of the job.

    Raises:
        InputError: if an address or a program is not given, or not there.
        RunError: naming the address or program, and what to do.
    """
    portable = options.view_as(PortableOptions)
    endpoint, environment = portable.job_endpoint, portable.environment_type
    if endpoint is None and runner == "PortableRunner":
        raise InputError(f"--runner {runner} needs a job server; give --job_endpoint HOST:PORT")
    if endpoint == "embed" and environment is None:
        raise InputError(
            "--job_endpoint embed: Beam would start containers of an image that has not this package; give "
            "--environment_type EXTERNAL with a pool of workers, or LOOPBACK"
        )
    if endpoint and endpoint != "embed":
        if reason := why_no_answer(endpoint):
            raise RunError(
                f"--job_endpoint {endpoint}: nobody answers ({reason}); start the job server, or give its HOST:PORT"
            )
        return
    if endpoint is None and runner != "PrismRunner":
        return
    prism = options.view_as(PrismRunnerOptions).prism_location if endpoint is None else None
    if prism and "://" not in prism and not Path(prism).is_file():
        raise InputError(f"--prism_location {prism}: there is no such file; docs/runners.md says how to build one")
    if environment == "EXTERNAL":
        address = source_of(portable)
        if reason := why_no_answer(address):
            raise RunError(
                f"--environment_config {address}: no pool of workers answers ({reason}); start one there: "
                f"python -m pipelines.worker --port {address.rpartition(':')[2]}"
            )
    if environment == "PROCESS":
        if endpoint == "embed":
            raise RunError(
                "--job_endpoint embed starts no programs; give --environment_type EXTERNAL with a pool of workers"
            )
        command = source_of(portable)
        if shutil.which(command) is None:
            raise RunError(
                f"--environment_config: there is no program {command}; torchmoji-worker comes with this package, give "
                "its path"
            )


def why_no_answer(address: str) -> str | None:
    """Why nothing that speaks gRPC answers at an address; None if something does."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/nobody/knows")(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return str(error.details()).rpartition(": ")[2].rstrip("]")
    return None


class Prism(PrismRunner):
    """Beam's runner of that name. Unlike with Beam's, its process ends with ours, however that ends."""

    def default_job_server(self, options: PipelineOptions) -> Any:
        """One for all jobs of this process."""
        return self.shared_handle.acquire(lambda: _PrismServer(options))


class _PrismServer(PrismJobServer):
    _endpoint = ""
    _jobs: Any = None

    def start(self) -> Any:
        """What jobs are sent to; a new one if the last has died."""
        if self._jobs is None or why_no_answer(self._endpoint):
            command, self._endpoint = self.subprocess_cmd_and_endpoint()
            command = [sys.executable, "-I", child_process.__file__, str(os.getpid()), *command]
            logger = logging.getLogger("prism")
            logger.setLevel(logging.INFO)  # of Beam's thread, which knows no other
            logger.addFilter(PrismRunnerLogFilter())
            logger.addFilter(_tells_why_it_fails)
            port = int(self._endpoint.rpartition(":")[2])
            self._jobs = SubprocessServer(beam_job_api_pb2_grpc.JobServiceStub, command, port, logger).start()
        return self._jobs


def _tells_why_it_fails(record: logging.LogRecord) -> bool:
    """Whether it is about what does not become the error of a job, with which the command ends."""
    said = record.getMessage()
    # At the end of a job Prism kills the workers that it has started; one that was killed before is the job's error.
    return said.startswith("panic: ") or (said.startswith("process failed") and "signal: killed" not in said)
