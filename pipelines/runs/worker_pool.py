"""A pool of workers: a server on this machine that starts a worker whenever a runner asks for one.

Workers are forked from a process that has imported Beam and torch (`worker_forks`): so a worker begins at once, and all
have that memory in common. The pool itself imports neither.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from torchmoji_core.errors import InputError, RunError, first_line

END_SECONDS = 10.0
"""A worker that has not ended by then is killed."""
CHECK_SECONDS = 5.0
_LOGGER = logging.getLogger(__name__)

SERVICE = "org.apache.beam.model.fn_execution.v1.BeamFnExternalWorkerPool"
_FILE = text_format.Parse(
    """
    name: "worker_pool.proto" package: "pool" syntax: "proto3"
    message_type { name: "Endpoint" field { name: "url" number: 1 type: TYPE_STRING } }
    message_type {
      name: "StartWorkerRequest"
      field { name: "worker_id" number: 1 type: TYPE_STRING }
      field { name: "control_endpoint" number: 2 type: TYPE_MESSAGE type_name: ".pool.Endpoint" }
      field { name: "logging_endpoint" number: 3 type: TYPE_MESSAGE type_name: ".pool.Endpoint" }
      field { name: "provision_endpoint" number: 5 type: TYPE_MESSAGE type_name: ".pool.Endpoint" }
    }
    message_type { name: "StopWorkerRequest" field { name: "worker_id" number: 1 type: TYPE_STRING } }
    message_type { name: "Response" field { name: "error" number: 1 type: TYPE_STRING } }
    """,
    descriptor_pb2.FileDescriptorProto(),
)
_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_FILE.SerializeToString())
_MESSAGES: dict[str, Any] = message_factory.GetMessageClassesForFiles([_FILE.name], _POOL)
StartWorkerRequest, StopWorkerRequest, Response = (
    _MESSAGES[f"pool.{name}"] for name in ("StartWorkerRequest", "StopWorkerRequest", "Response")
)
"""What we need of Beam's messages, by their numbers: to import those of Beam takes a second, and 200 MB."""


class Worker:
    """A process that works for a runner."""

    def __init__(self, name: str, pid: int, pipe: int, ended: Callable[[Worker, str], None]) -> None:
        """Args:
        name: that runners give it.
        pid: number of the process.
        pipe: closes when it ends. Before, the worker writes its status there, unless it is killed.
        ended: is called then.
        """
        self.name, self.pid = name, pid
        self._pipe, self._ended = pipe, ended
        self._thread = threading.Thread(target=self._attend, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self.is_running:
                os.kill(self.pid, number)

    def end(self, seconds: float) -> None:
        """Wait so long for its end, then kill it."""
        self._thread.join(seconds)
        self.send(signal.SIGKILL)
        self._thread.join()

    def _attend(self) -> None:
        with open(self._pipe) as pipe:  # noqa: PTH123 - a descriptor
            status = pipe.read()
        self._ended(self, f"ended with status {status}" if status else "was killed")


class _Forks:
    """The process that workers are forked from, as the pool sees it."""

    def __init__(self) -> None:
        """Raises:
        OSError: if it cannot be started.
        """
        self._requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "pipelines.runs.worker_forks"]
            self._process = subprocess.Popen(command, stdin=theirs.fileno())

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def fork(self, worker_id: str, *endpoints: str) -> tuple[int, int]:
        """A worker's number, and the pipe that closes when it ends. Waits for the imports, if this is the first.

        Raises:
            OSError: if there is none.
        """
        said, pipes = b"", list[int]()
        with contextlib.suppress(ConnectionError):
            self._requests.sendall(json.dumps([worker_id, *endpoints]).encode() + b"\n")
            said, pipes, _, _ = socket.recv_fds(self._requests, 1024, 1)
        if said.isdigit() and not pipes:  # this process has no room for the pipe
            os.kill(int(said), signal.SIGTERM)
            raise OSError(os.strerror(errno.EMFILE))
        if not said:
            self.end()  # its socket closes before it has ended, and the next request would find it running
            raise OSError("the process that it would be forked from has ended")
        if not pipes:
            raise OSError(said.decode())
        return int(said), pipes[0]

    def end(self) -> None:
        self._requests.close()
        self._process.kill()
        self._process.wait()


class WorkerPool:
    """Beam's service of that name. Unlike in Beam's own pool, workers know the job's options, and may print."""

    def __init__(self) -> None:
        """Raises:
        OSError: if no process can be started from which workers are forked.
        """
        self._workers: list[Worker] = []
        """Runners name them; another job may give the same name."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._is_stopped = False
        self._forks = _Forks()  # it imports while nobody waits for it yet

    def start_worker(self, request: Any, context: Any = None) -> Any:
        """Start one, in a process of its own."""
        endpoints = [
            endpoint.url
            for endpoint in (request.provision_endpoint, request.control_endpoint, request.logging_endpoint)
        ]
        with self._starting:
            if self._is_stopped:
                return Response(error="the pool is being stopped")
            try:
                if not self._forks.is_running:
                    self._forks.end()
                    self._forks = _Forks()
                pid, pipe = self._forks.fork(request.worker_id, *endpoints)
            except OSError as error:
                reason = f"a worker cannot be started: {first_line(error)}"
                _LOGGER.error(reason)  # runners may not pass it on
                return Response(error=reason)
            with self._lock:
                self._workers.append(Worker(request.worker_id, pid, pipe, self._ended))
        _LOGGER.warning("started worker %s as process %d", request.worker_id, pid)
        return Response()

    def stop_worker(self, request: Any, context: Any = None) -> Any:
        """End one, if it is still there.

        If several have that name, nobody can say which is meant, so none is ended: a worker ends with its runner.
        """
        named = [worker for worker in self.workers if worker.name == request.worker_id]
        if len(named) == 1:
            _end(named)
        return Response()

    @property
    def workers(self) -> list[Worker]:
        """Those that run."""
        with self._lock:
            return list(self._workers)

    def stop(self) -> None:
        """End all workers, and start none any more."""
        with self._starting:
            self._is_stopped = True
        _end(self.workers)
        self._forks.end()

    def _ended(self, worker: Worker, how: str) -> None:
        with self._lock:
            self._workers.remove(worker)
        _LOGGER.warning("worker %s, process %d, %s", worker.name, worker.pid, how)


@contextlib.contextmanager
def serving(port: int) -> Iterator[int]:
    """A pool at a port of this machine, which no other machine can reach; at the end its workers are ended.

    Args:
        port: 0 for any that is free.

    Yields:
        The port.

    Raises:
        InputError: if it is in use.
        RunError: if no process can be started from which workers are forked.
    """
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    try:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        port = 0
    if not port:
        raise InputError("--port: it is in use, or may not be used; give another")
    try:
        pool = WorkerPool()
    except OSError as error:
        raise RunError(f"workers cannot be forked: {first_line(error)}") from error
    answer = {
        name: grpc.unary_unary_rpc_method_handler(do, kind.FromString, Response.SerializeToString)
        for name, do, kind in (
            ("StartWorker", pool.start_worker, StartWorkerRequest),
            ("StopWorker", pool.stop_worker, StopWorkerRequest),
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, answer),))
    server.start()
    try:
        yield port
    finally:
        server.stop(None)
        pool.stop()


def check(port: int) -> bool:
    """Whether a pool answers at a port of this machine."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stop = channel.unary_unary(f"/{SERVICE}/StopWorker", StopWorkerRequest.SerializeToString, Response.FromString)
        try:
            stop(StopWorkerRequest(worker_id="none"), timeout=CHECK_SECONDS)
        except grpc.RpcError:
            return False
    return True


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.send(signal.SIGTERM)
    end = time.monotonic() + END_SECONDS
    for worker in workers:
        worker.end(max(0.0, end - time.monotonic()))
