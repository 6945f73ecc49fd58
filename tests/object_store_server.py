"""An S3 server on this machine (moto's, in a process of its own) behind a proxy that injects faults, for all tests.

    with ObjectStoreServer() as server:
        server.use(monkeypatch)                       # or subprocess.run(..., env=os.environ | server.environment)
        server.faults = Faults(errors=0.2, seed=1)    # from here on; Faults() is none
        ...
        assert server.injected["errors"] > 0

The client's own library, signatures, connections and time-outs are the real ones; only the network is made up. Google's
XML protocol is S3's but for the names of two headers, which the proxy translates, so gs:// is tested with it too.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

_START_SECONDS = 60
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>injected</Message></Error>"


@dataclass(frozen=True)
class Faults:
    """Shares of requests, each decided by the seed and the request's number; a request has one fault at most."""

    errors: float = 0.0
    """Answered 500 InternalError or 503 SlowDown, and not passed on."""
    resets: float = 0.0
    """Done, and the connection reset after half of the answer's body, or before the answer if it has none."""
    truncations: float = 0.0
    """Done, and the connection closed in good order after half of the answer's body."""
    lost: float = 0.0
    """Done, and the connection closed without an answer."""
    hangs: float = 0.0
    """Passed on after `hang_seconds`, which should be beyond the client's time-out."""
    slow: float = 0.0
    """Done, and answered a quarter at a time, slowly, but within any time-out."""
    after: int | None = None
    """How many requests are answered well before all fail, as of a store that goes down; None for no such end."""
    hang_seconds: float = 3.0
    only: str = ""
    """Methods that faults are injected to, as "PUT POST"; all if empty."""
    seed: int = 0

    def concern(self, method: str) -> bool:
        return not self.only or method in self.only.split()

    def draw(self, number: int) -> str | None:
        """The fault of a request, by its number among those that faults concern."""
        if self.after is not None and number >= self.after:
            return "errors"
        drawn = random.Random(f"{self.seed}-{number}").random()
        for name in ("errors", "resets", "truncations", "lost", "hangs", "slow"):
            drawn -= getattr(self, name)
            if drawn < 0:
                return name
        return None


def mixed(share: float, seed: int = 0) -> Faults:
    """A share of requests with faults of every kind that does not take long."""
    each = share / 5
    return Faults(errors=2 * each, resets=each, truncations=each, lost=each, seed=seed)


class ObjectStoreServer:
    """The server and its proxy, running inside a `with` block.

    Attributes:
        faults: what the proxy does; may be set at any time. Setting it begins the count of requests anew.
        injected: how many faults of each kind there were.
        requests: the requests that came, as "PUT" or "GET", in order.
        held: part of the path of uploads that are kept waiting for ever, and never done; none if empty.
        is_holding: set once there is one.
        environment: variables that point AWS's libraries at the proxy.
    """

    def __init__(self, check_credentials: bool = False) -> None:
        """Args:
        check_credentials: refuse all access keys, as none is ever made.
        """
        self._variables = {"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if check_credentials else {}
        self.injected: Counter[str] = Counter()
        self.requests: list[str] = []
        self.held = ""
        self.is_holding = threading.Event()
        self._faults = Faults()
        self._number = 0
        self._lock = threading.Lock()

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults, self._number = faults, 0
            self.injected.clear()
            self.requests.clear()

    def next_fault(self, method: str) -> str | None:
        with self._lock:
            self.requests.append(method)
            if not self._faults.concern(method):
                return None
            fault = self._faults.draw(self._number)
            self._number += 1
            if fault:
                self.injected[fault] += 1
            return fault

    def __enter__(self) -> Self:
        self._process, self._port = _start_moto(self._variables)
        self._proxy = _Proxy(self, self._port)
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "STORAGE_EMULATOR_HOST": f"127.0.0.1:{self._proxy.server_address[1]}",
            "TORCHMOJI_RETRY_SECONDS": "60",
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._process.terminate()
        self._process.wait()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point this process at the server for the time of a test."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def client(self) -> Any:
        """A client of boto3 that speaks to the server itself, without faults."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def contents(self, bucket: str) -> dict[str, bytes]:
        """All objects of a bucket."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def unfinished_uploads(self, bucket: str) -> list[str]:
        """Keys of uploads in parts that were neither completed nor removed."""
        return [each["Key"] for each in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def upload_directory(self, directory: Path, bucket: str, prefix: str) -> None:
        """Put local files into a bucket."""
        client = self.client()
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(directory).as_posix()}")


def _start_moto(variables: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | variables,
    )
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process, port
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError("moto's server did not start")
        time.sleep(0.05)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: ObjectStoreServer, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.upstream, self.conditional = server, upstream, threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up closes its connection; that is what it is tested for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        faults = self.server.store.faults
        fault = self.server.store.next_fault(self.command)
        if self.command == "PUT" and self.server.store.held and self.server.store.held in self.path:
            self.server.store.is_holding.set()
            while self.server.store.held in self.path and self.server.store.held:
                time.sleep(0.05)
            self.close_connection = True
            return
        if fault == "errors":
            slow_down = random.Random(self.path).random() < 0.5
            status, code = (503, "SlowDown") if slow_down else (500, "InternalError")
            self._answer(status, [("Content-Type", "application/xml")], _ERROR.format(code).encode())
            return
        if fault == "hangs":
            time.sleep(faults.hang_seconds)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        if self.headers["x-goog-if-generation-match"] == "0":
            self.headers["If-None-Match"] = "*"
        if source := self.headers["x-goog-copy-source"]:
            self.headers["x-amz-copy-source"] = source
        # Moto looks whether an object is there, and then makes it; in a real store that is one step.
        with self.server.conditional if "If-None-Match" in self.headers else contextlib.nullcontext():
            upstream.request(self.command, self.path, sent, dict(self.headers.items()))
            answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "lost" or (fault in ("resets", "truncations") and not content):
            self._cut(reset=fault == "resets")
            return
        self._answer(answer.status, answer.getheaders(), content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("resets", "truncations"):
            self.wfile.write(content[: len(content) // 2])
            self._cut(reset=fault == "resets")
        elif fault == "slow":
            step = len(content) // 4 + 1
            for start in range(0, len(content), step):
                self.wfile.write(content[start : start + step])
                time.sleep(0.1)
        else:
            self.wfile.write(content)

    def _cut(self, reset: bool) -> None:
        self.close_connection = True
        self.wfile.flush()
        if reset:
            # With a linger of zero seconds, closing sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_WR)


def key_of(uri: str) -> str:
    """The key of an s3:// URI."""
    return urlsplit(uri).path.lstrip("/")
