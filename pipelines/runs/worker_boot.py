"""A Beam worker as a runner wants it started: it asks the runner for the job's options, and becomes Beam's own worker.

This is what the program of Beam's containers does, but for staged packages: an environment of its own has those. And
the worker's log has no credentials, while Beam's own logs all options of the job.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import json_format, text_format

import torchmoji_core.inference.scorer  # noqa: F401 - torch: threads that score wait for it otherwise
from pipelines.cli.interrupts import end_at_once
from pipelines.cli.redaction import redact
from torchmoji_core.errors import RunError

PROVISION_SECONDS = 60.0


@dataclass(frozen=True)
class Endpoints:
    """Where the runner is to be reached, as it tells each worker."""

    provision: str
    control: str = ""
    """Needed only of runners that do not say it when they are asked."""
    logging: str = ""


def work(worker_id: str, endpoints: Endpoints) -> None:
    """Work for a runner, in this process, until the runner ends that.

    Raises:
        RunError: if the runner does not answer.
    """
    worker_id = worker_id.strip("'\"")  # Prism puts it in quotes
    os.environ |= worker_environment(worker_id, endpoints)
    WorkerIdInterceptor._worker_id = worker_id  # the variable was read when Beam was imported
    # Who starts a worker may never read what it prints; a full pipe would stop it for ever.
    os.dup2(sys.stderr.fileno(), 1)
    end_at_once()
    logging.setLogRecordFactory(redacted_record)
    sdk_worker_main.main(sys.argv)


def worker_environment(worker_id: str, endpoints: Endpoints) -> dict[str, str]:
    """The variables that Beam's worker is told by what it is to do.

    Raises:
        RunError: if the runner does not answer.
    """
    request = beam_provision_api_pb2.GetProvisionInfoRequest()
    try:
        with grpc.insecure_channel(endpoints.provision) as channel:
            info = (
                beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
                .GetProvisionInfo(
                    request, metadata=(("worker_id", worker_id),), timeout=PROVISION_SECONDS, wait_for_ready=True
                )
                .info
            )
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else error
        raise RunError(
            f"the runner at {endpoints.provision} does not say what this worker is to do: {details}"
        ) from None
    variables = {
        "WORKER_ID": worker_id,
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "PIPELINE_OPTIONS_FILE": _unnamed_file(json_format.MessageToJson(info.pipeline_options)),
    }
    for name, told, given in (
        ("CONTROL", info.control_endpoint, endpoints.control),
        ("LOGGING", info.logging_endpoint, endpoints.logging),
        ("STATUS", info.status_endpoint, ""),
    ):
        if url := told.url or given:
            descriptor = told if told.url else endpoints_pb2.ApiServiceDescriptor(url=url)
            variables[f"{name}_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(descriptor)
    return variables


def _unnamed_file(content: str) -> str:
    """A file that is there as long as this process is: options may be longer than a variable can be."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    file.write(content.encode())
    file.seek(0)
    return f"/dev/fd/{os.dup(file.fileno())}"


def redacted_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """A record as logging makes it, with its text final: handlers send it to the runner, which keeps and shows it."""
    record = logging.LogRecord(*arguments, **named)
    try:
        record.msg, record.args = redact(record.getMessage()), ()
    except Exception:  # its text and its arguments do not fit; the handler says so
        record.args = ()
    if record.exc_info:
        # Only as text: of an error that it gets, Beam's handler sends the traceback as it is.
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        record.exc_info = None
    return record
