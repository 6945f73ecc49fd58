"""Beam's in-process runner with workers that only this user can reach, and that end when they are told to.

Workers are threads of this process, which talk with the runner through memory, or processes of their own, which talk
with it through Unix sockets in a directory that only this user can enter. Beam's own workers of either kind use gRPC
servers that listen on all interfaces, without authentication: they serve the options of the pipeline, any file that
this process may read, and take elements from anyone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
from apache_beam.runners.worker import data_plane
from apache_beam.transforms.environments import EmbeddedPythonEnvironment
from apache_beam.utils import thread_pool_executor

from pipelines.cli.interrupts import heed_interrupt
from torchmoji_core.errors import InputError, RunError
from transforms.stopping import stopped_by

WORKER_DIED = "a worker process died"
STOP_SECONDS = 5.0
"""Time for a thread to end its batch, and for a process to end when it is told to."""
LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path: Linux allows 107, others a little less."""
_REPEAT_SECONDS = 0.5
_one_run = threading.RLock()
"""Beam's runner finds the class of its workers' manager in its module, which is replaced while it runs."""


class LocalRunner(fn_runner.FnApiRunner):
    """Runs a bounded pipeline on this machine, in threads of this process or in processes of their own."""

    def __init__(self, processes: bool, worker_log: str) -> None:
        """Args:
        processes: whether workers are processes; Beam's option `direct_num_workers` says how many there are.
        worker_log: file for what worker processes print; the runner reports their errors by itself.
        """
        super().__init__(default_environment=EmbeddedPythonEnvironment.default())
        self._processes, self._worker_log = processes, worker_log
        self._options = PipelineOptions([])
        self._workers: _Threads | _Processes | None = None

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        """Run a pipeline to its end.

        Raises:
            Exception: the first error of any worker.
        """
        self._options = options
        return super().run_pipeline(pipeline, options)

    def run_stages(self, stage_context: Any, stages: Any) -> Any:
        """As Beam's, with our workers."""
        with _one_run, _private_directory() if self._processes else contextlib.nullcontext("") as directory:

            def manage(environments: Any, provision_info: Any) -> _Threads | _Processes:
                if self._processes:
                    self._workers = _Processes(environments, provision_info, directory, self._options, self._worker_log)
                else:
                    self._workers = _Threads(environments, provision_info)
                return self._workers

            theirs = fn_runner.WorkerHandlerManager
            fn_runner.WorkerHandlerManager = manage
            try:
                return super().run_stages(stage_context, stages)
            except Exception:
                # The error that stopped the others is not the one that went wrong first.
                if self._workers is not None and self._workers.error is not None:
                    raise self._workers.error from None
                raise
            finally:
                fn_runner.WorkerHandlerManager = theirs
                self._workers = None

    def dump_stacks(self) -> None:
        """Have worker processes write where they are into their log."""
        workers = self._workers
        if isinstance(workers, _Processes):
            workers.signal(signal.SIGUSR1)


class _Workers(worker_handlers.WorkerHandlerManager):
    """Makes the workers of one run when they are first asked for, all of one kind, and ends them."""

    def __init__(self, environments: Any, provision_info: Any) -> None:
        super().__init__(environments, provision_info)
        self._handlers: list[Any] = []
        self.error: Exception | None = None
        """The first one of any worker."""

    def make(self) -> Any:
        raise NotImplementedError

    def get_worker_handlers(self, environment_id: str | None, num_workers: int) -> list[Any]:
        while len(self._handlers) < num_workers:
            handler = self.make()
            self._handlers.append(handler)
            self._workers_by_id[handler.worker_id] = handler
            handler.start_worker()
        return self._handlers[:num_workers]

    def close_all(self) -> None:
        if isinstance(sys.exception(), KeyboardInterrupt):
            heed_interrupt()
        handlers, self._handlers = self._handlers, []
        self._close(handlers, succeeded=sys.exception() is None)

    def _close(self, handlers: Sequence[Any], succeeded: bool) -> None:
        raise NotImplementedError


# --- threads -------------------------------------------------------------------------------------------------------


class _Threads(_Workers):
    def __init__(self, environments: Any, provision_info: Any) -> None:
        super().__init__(environments, provision_info)
        self._stopped = threading.Event()
        self._working = 0
        self._changed = threading.Condition()

    def make(self) -> _ThreadWorker:
        return _ThreadWorker(self, self.state_servicer, self._job_provision_info)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Around what a worker does; the first that fails stops the others."""
        with self._changed:
            self._working += 1
        try:
            with stopped_by(self._stopped):
                yield
        except BaseException as error:
            with self._changed:
                if not self._stopped.is_set():
                    self.error = error if isinstance(error, Exception) else None
                    self._stopped.set()
            raise
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _close(self, handlers: Sequence[Any], succeeded: bool) -> None:
        self._stopped.set()
        # What they still write is removed afterwards, so they should have ended by then.
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._working, STOP_SECONDS)
        if ended:
            for handler in handlers:
                handler.close()


class _ThreadWorker(worker_handlers.EmbeddedWorkerHandler):
    """Works in whichever thread gives it something to do, one at a time."""

    def __init__(self, threads: _Threads, state: Any, provision_info: Any) -> None:
        super().__init__(None, state, provision_info, threads)
        self._threads = threads

    def push(self, request: Any) -> Any:
        with self._threads.work():
            return super().push(request)


# --- processes -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _private_directory() -> Iterator[str]:
    """A directory for sockets, with a short and plain path.

    Raises:
        InputError: if there is no place for one.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/dev/shm", "/var/tmp")):
        path = os.path.join(parent, "torchmoji-12345678", "control")  # noqa: PTH118
        # gRPC takes an address for a URI, in which some characters mean something else.
        if len(path) > LONGEST_SOCKET or not path.isascii() or set(path) & set("%?# "):
            continue
        try:
            directory = tempfile.TemporaryDirectory(prefix="torchmoji-", dir=parent, ignore_cleanup_errors=True)
        except OSError:
            continue
        with directory as name:  # of mode 0700
            yield name
            return
    raise InputError("no directory for the sockets of worker processes; set TMPDIR to a short path that is writable")


class _Processes(_Workers):
    def __init__(
        self, environments: Any, provision_info: Any, directory: str, options: PipelineOptions, log: str
    ) -> None:
        super().__init__(environments, provision_info)
        self._server, self._log = _Server(self, directory), log
        self._options = Path(directory, "options.json")
        values = options.get_all_options(drop_default=True, retain_unknown_options=True)
        self._options.write_text(json.dumps(values, default=str))

    def make(self) -> _ProcessWorker:
        return _ProcessWorker(self, self._server, self.state_servicer, self._job_provision_info)

    def start(self, worker_id: str) -> subprocess.Popen[bytes]:
        """Start a process, which ends when its standard input does: at the latest with this process."""
        control = self._server.address("control").url
        command = [sys.executable, "-m", "pipelines.runs.worker_process", control, worker_id, str(self._options)]
        with Path(self._log).open("ab") as printed:
            # In a group of its own, so that Ctrl-C comes here alone, and we tell it.
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=printed, stderr=printed, process_group=0, close_fds=True
            )

    def signal(self, number: int) -> None:
        """Send a signal to all processes."""
        for handler in self._handlers:
            handler.signal(number)

    def _close(self, handlers: Sequence[Any], succeeded: bool) -> None:
        try:
            for handler in handlers:
                handler.tell_to_end()
            end = time.monotonic() + (STOP_SECONDS if succeeded else 0)
            for handler in handlers:
                handler.end(end - time.monotonic())
        finally:
            self._server.close()


class _Server:
    """What worker processes ask, at Unix sockets: for work, elements and state, and for nothing else.

    It has the attributes that Beam's own has for `GrpcWorkerHandler`.
    """

    control_port = data_port = state_port = logging_port = 0

    def __init__(self, workers: _Processes, directory: str) -> None:
        self.control_handler = worker_handlers.BeamFnControlServicer(workers)
        self.data_plane_handler = data_plane.BeamFnDataServicer(worker_handlers.DATA_BUFFER_TIME_LIMIT_MS)
        state = worker_handlers.GrpcStateServicer(workers.state_servicer)
        self._directory, self._servers = directory, []
        for name, add, servicer in (
            ("data", beam_fn_api_pb2_grpc.add_BeamFnDataServicer_to_server, self.data_plane_handler),
            ("state", beam_fn_api_pb2_grpc.add_BeamFnStateServicer_to_server, state),
            ("control", beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server, self.control_handler),
        ):
            unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            # Workers ask for signs of life oftener than gRPC's servers put up with.
            pings = [("grpc.http2.max_ping_strikes", 0), ("grpc.http2.min_ping_interval_without_data_ms", 20_000)]
            server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[*unlimited, *pings])
            add(servicer, server)
            server.add_insecure_port(self.address(name).url)
            server.start()
            self._servers.append(server)

    def address(self, name: str) -> Any:
        return endpoints_pb2.ApiServiceDescriptor(url=f"unix:{self._directory}/{name}")

    def close(self) -> None:
        self.control_handler.done()
        for server in self._servers:
            server.stop(0)


class _ProcessWorker(worker_handlers.GrpcWorkerHandler):
    """Starts a worker process and waits for its end; if it dies, its open requests fail."""

    def __init__(self, processes: _Processes, server: _Server, state: Any, provision_info: Any) -> None:
        super().__init__(state, provision_info, server)
        self._processes, self._server = processes, server
        self._is_ending = threading.Event()

    def control_api_service_descriptor(self) -> Any:
        return self._server.address("control")

    def data_api_service_descriptor(self) -> Any:
        return self._server.address("data")

    def state_api_service_descriptor(self) -> Any:
        return self._server.address("state")

    def start_worker(self) -> None:
        """Start the process, with a thread that waits for it."""
        try:
            self._process = self._processes.start(self.worker_id)
        except OSError as error:
            raise RunError(f"a worker process cannot be started: {error.strerror or error}") from error
        threading.Thread(target=self._wait_for_it, name="worker", daemon=True).start()

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._process.send_signal(number)

    def tell_to_end(self) -> None:
        """Ask the process to end after its present work."""
        self._is_ending.set()
        self.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)

    def end(self, seconds: float) -> None:
        """Wait so long for its end, then end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _wait_for_it(self) -> None:
        status = self._process.wait()
        # What is asked of it later fails as well, until the runner gives up.
        while not self._is_ending.wait(_REPEAT_SECONDS):
            self._answer_all(f"{WORKER_DIED}: exit status {status}")

    def _answer_all(self, message: str) -> None:
        # The connection's own abort() sets an exception, which a runner that waits for data does not look at.
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=message))
