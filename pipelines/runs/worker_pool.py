"""A pool of workers: a server on this machine that starts a worker whenever a runner asks for one."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from torchmoji_core.errors import InputError

END_SECONDS = 10.0
"""A worker that has not ended by then is killed."""
CHECK_SECONDS = 5.0
_LOGGER = logging.getLogger(__name__)


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Beam's service of that name. Unlike in Beam's own pool, workers know the job's options, and may print."""

    def __init__(self) -> None:
        self._workers: list[tuple[str, subprocess.Popen[bytes]]] = []
        """With the name that a runner has given it; another job may give the same."""
        self._lock = threading.Lock()

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Start one, in a process of its own."""
        command = [sys.executable, "-m", "pipelines.worker", f"--id={request.worker_id}"]
        command += [
            f"--{name}_endpoint={endpoint.url}"
            for name, endpoint in (
                ("provision", request.provision_endpoint),
                ("control", request.control_endpoint),
                ("logging", request.logging_endpoint),
            )
        ]
        try:
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"a worker cannot be started: {error}")
        with self._lock:
            self._workers.append((request.worker_id, worker))
        _LOGGER.warning("started worker %s as process %d", request.worker_id, worker.pid)
        threading.Thread(target=self._attend, args=(request.worker_id, worker), daemon=True).start()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """End one, if it is still there.

        If several have that name, nobody can say which is meant, so none is ended: a worker ends with its runner.
        """
        with self._lock:
            named = [worker for name, worker in self._workers if name == request.worker_id]
        if len(named) == 1:
            _end(named)
        return beam_fn_api_pb2.StopWorkerResponse()

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        """Those that run."""
        with self._lock:
            return [worker for _, worker in self._workers]

    def stop(self) -> None:
        """End all workers."""
        _end(self.workers)

    def _attend(self, worker_id: str, worker: subprocess.Popen[bytes]) -> None:
        status = worker.wait()
        with self._lock:
            self._workers.remove((worker_id, worker))
        _LOGGER.warning("worker %s, process %d, ended with status %d", worker_id, worker.pid, status)


@contextmanager
def serving(port: int) -> Iterator[int]:
    """A pool at a port of this machine, which no other machine can reach; at the end its workers are ended.

    Args:
        port: 0 for any that is free.

    Yields:
        The port.

    Raises:
        InputError: if it is in use.
    """
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        port = 0
    if not port:
        raise InputError("--port: it is in use, or may not be used; give another")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()  # for a worker that is just being started
        pool.stop()


def check(port: int) -> bool:
    """Whether a pool answers at a port of this machine."""
    stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    try:
        stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="none"), timeout=CHECK_SECONDS)
    except grpc.RpcError:
        return False
    return True


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    end = time.monotonic() + END_SECONDS
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
