"""A pool of workers: a server on this machine that starts a worker whenever a runner asks for one.

Workers are forked from a process that has imported Beam and torch, and does nothing else (Python's fork server): so a
worker begins at once, and all have that memory in common. The pool itself imports neither.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from pipelines.cli.exits import DONE, end, run_command
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

    def __init__(self, name: str, process: Any) -> None:
        self.name, self._process = name, process
        self._ended = threading.Event()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return int(self._process.pid)

    def attend(self) -> None:
        """Wait for its end."""
        wait([self._process.sentinel])
        self._ended.set()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    @property
    def status(self) -> int | None:
        """Of its end: negative for a signal."""
        status: int | None = self._process.exitcode
        return status

    def terminate(self) -> None:
        self._process.terminate()

    def end(self, seconds: float) -> None:
        """Kill it if it does not end within a time."""
        if not self._ended.wait(seconds):
            self._process.kill()
            self._ended.wait()


class WorkerPool:
    """Beam's service of that name. Unlike in Beam's own pool, workers know the job's options, and may print."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        """Runners name them; another job may give the same name."""
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._is_stopped = False
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pipelines.runs.worker_preload"])

    def start_worker(self, request: Any, context: Any = None) -> Any:
        """Start one, in a process of its own."""
        endpoints = [
            endpoint.url
            for endpoint in (request.provision_endpoint, request.control_endpoint, request.logging_endpoint)
        ]
        process = self._context.Process(target=_become_worker, args=(request.worker_id, *endpoints))
        with self._starting:
            if self._is_stopped:
                return Response(error="the pool is being stopped")
            try:
                process.start()  # waits for the imports, if this is the first
            except (OSError, EOFError) as error:
                reason = f"a worker cannot be started: {first_line(error)}"
                _LOGGER.error(reason)  # runners may not pass it on
                return Response(error=reason)
            worker = Worker(request.worker_id, process)
            with self._lock:
                self._workers.append(worker)
        _LOGGER.warning("started worker %s as process %d", worker.name, worker.pid)
        threading.Thread(target=self._attend, args=(worker,), daemon=True).start()
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

    def _attend(self, worker: Worker) -> None:
        worker.attend()
        with self._lock:
            self._workers.remove(worker)
        with self._starting:  # which asks for the status of those that have ended, too, and it can be read once
            status = worker.status
        _LOGGER.warning("worker %s, process %d, ended with status %s", worker.name, worker.pid, status)


def _become_worker(worker_id: str, *endpoints: str) -> None:
    """What a process does that was forked."""
    pool = multiprocessing.parent_process()
    if pool is None or not pool.is_alive():  # it has ended while this one was being started
        return

    def main(_: list[str]) -> int:
        from pipelines.runs.worker_boot import Endpoints, work

        work(worker_id, Endpoints(*endpoints))
        return DONE

    end(run_command(main))


@contextmanager
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
    pool = WorkerPool()
    answer = {
        name: grpc.unary_unary_rpc_method_handler(do, kind.FromString, Response.SerializeToString)
        for name, do, kind in (
            ("StartWorker", pool.start_worker, StartWorkerRequest),
            ("StopWorker", pool.stop_worker, StopWorkerRequest),
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, answer),))
    try:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        port = 0
    if not port:
        raise InputError("--port: it is in use, or may not be used; give another")
    try:
        forkserver.ensure_running()  # it imports while nobody waits for it yet
    except OSError as error:  # of the socket that it listens at, a file below the temporary directory
        raise RunError(
            f"workers cannot be forked: {first_line(error)}; let TMPDIR name a writable directory, by a short path"
        ) from error
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
        worker.terminate()
    end = time.monotonic() + END_SECONDS
    for worker in workers:
        worker.end(max(0.0, end - time.monotonic()))
