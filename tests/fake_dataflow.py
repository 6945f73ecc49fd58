"""Google's Dataflow service as far as launchers know it: jobs are taken and kept, and asked for; none is run.

It speaks REST, which Beam's client does where the address has "localhost" in it. Beside it there are the bucket
`bkt`, in memory, and a service account whose tokens come from here.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROJECT, REGION, BUCKET = "project-one", "us-central1", "bkt"


@dataclass
class FakeDataflow:
    """The service."""

    port: int = 0
    state: str = "JOB_STATE_RUNNING"
    """What it says of every job that nobody has asked to end."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As launchers have sent them, by id; with `requestedState` where it was asked for."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""

    @property
    def options(self) -> list[str]:
        """Options of a command that launches there."""
        return [
            "--runner=DataflowRunner",
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--temp_location=gs://{BUCKET}/temporary",
            f"--staging_location=gs://{BUCKET}/staging",
            f"--dataflow_endpoint=http://localhost:{self.port}",
            "--sdk_container_image=registry.example/torchmoji-beam:1",
            "--sdk_location=container",
        ]

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What is asked for; None if there is no such thing."""
        self.asked.append(f"{method} {path}")
        if path == "/token":
            return {"access_token": "token", "expires_in": 36_000, "token_type": "Bearer"}
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:6] != ["v1b3", "projects", PROJECT, "locations", REGION, "jobs"]:
            return None
        if method == "GET" and len(parts) == 6:
            return {"jobs": [self._job(name) for name in self.jobs]}
        if method == "POST" and len(parts) == 6:
            name = f"2026-01-31_00_00_00-{len(self.jobs) + 1}"
            self.jobs[name] = body
            return self._job(name)
        name, *what = parts[6:]
        if name not in self.jobs:
            return None
        if method == "PUT":
            self.jobs[name] |= body
        return {"messages": {}, "metrics": {"metrics": []}}[what[0]] if what else self._job(name)

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        shown = {key: job[key] for key in ("name", "type", "clientRequestId", "replaceJobId") if key in job}
        state = job.get("requestedState", self.state)
        return shown | {"id": name, "projectId": PROJECT, "location": REGION, "currentState": state}


def _handler(service: FakeDataflow) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_json = "json" in self.headers.get("Content-Type", "")
            answer = service.answer(self.command, self.path, json.loads(content) if content and is_json else {})
            body = json.dumps(answer if answer is not None else {"error": {"code": 404, "message": self.path}}).encode()
            self.send_response(200 if answer is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def running() -> Iterator[FakeDataflow]:
    """The service, at a free port."""
    service = FakeDataflow()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(service))
    service.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def bucket(directory: Path, service: FakeDataflow) -> Iterator[None]:
    """gs://bkt, empty, for this process, with a service account that has a key of its own in a directory."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from gcp_storage_emulator.server import create_server

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        "client_email": f"launcher@{PROJECT}.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"http://localhost:{service.port}/token",
    }
    (directory / "account.json").write_text(json.dumps(account))
    with socket.socket() as free:  # the emulator does not tell which port it took
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(directory / "account.json"))
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        try:
            yield
        finally:
            server.stop()
