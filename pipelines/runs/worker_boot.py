"""A Beam worker as a runner wants it started: it asks the runner for the job's options, and becomes Beam's own worker.

This is what the program of Beam's containers does, but for staged packages: an environment of its own has those.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from typing import NoReturn

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from google.protobuf import json_format, text_format

from torchmoji_core.errors import RunError

PROVISION_SECONDS = 60.0


@dataclass(frozen=True)
class Endpoints:
    """Where the runner is to be reached, as it tells each worker."""

    provision: str
    control: str = ""
    """Needed only of runners that do not say it when they are asked."""
    logging: str = ""


def become_worker(worker_id: str, endpoints: Endpoints) -> NoReturn:
    """Replace this process by a worker.

    Raises:
        RunError: if the runner does not answer.
    """
    environment = os.environ | worker_environment(worker_id.strip("'\""), endpoints)  # Prism puts it in quotes
    # Who starts a worker may never read what it prints; a full pipe would stop it for ever.
    os.dup2(sys.stderr.fileno(), 1)
    os.execve(sys.executable, [sys.executable, "-m", "pipelines.runs.worker_main"], environment)


def worker_environment(worker_id: str, endpoints: Endpoints) -> dict[str, str]:
    """The variables that Beam's worker is told by what it is to do.

    Raises:
        RunError: if the runner does not answer.
    """
    stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(grpc.insecure_channel(endpoints.provision))
    request = beam_provision_api_pb2.GetProvisionInfoRequest()
    try:
        info = stub.GetProvisionInfo(
            request, metadata=(("worker_id", worker_id),), timeout=PROVISION_SECONDS, wait_for_ready=True
        ).info
    except grpc.RpcError as error:
        details = error.details() if isinstance(error, grpc.Call) else error
        raise RunError(
            f"the runner at {endpoints.provision} does not say what this worker is to do: {details}"
        ) from None
    variables = {
        "WORKER_ID": worker_id,
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "PIPELINE_OPTIONS_FILE": _inherited_file(json_format.MessageToJson(info.pipeline_options)),
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


def _inherited_file(content: str) -> str:
    """A file without a name, which the worker inherits: options may be longer than a variable can be."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open
    file.write(content.encode())
    file.seek(0)
    descriptor = os.dup(file.fileno())
    os.set_inheritable(descriptor, True)
    return f"/dev/fd/{descriptor}"
