"""Worker processes of a local run that end a run when they die, which Beam's own leave waiting for ever.

Importing this module makes Beam's local runner use them.
"""

from __future__ import annotations

import threading

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler

_REPEAT_SECONDS = 0.5


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class MortalWorkerHandler(SubprocessSdkWorkerHandler):
    """Starts a worker process and waits for its end; if that is a death, what it was asked fails."""

    def start_worker(self) -> None:
        """Start the process, with a thread that waits for it."""
        self._stopped = threading.Event()
        self.worker = local_job_service.SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(name="run_worker", target=self._wait_for_it, daemon=True)
        self.worker_thread.start()

    def stop_worker(self) -> None:
        """Wait for the process to end, which the end of its control stream tells it to."""
        self._stopped.set()
        self.worker_thread.join()

    def _wait_for_it(self) -> None:
        try:
            self.worker.run()
        except RuntimeError as error:
            # What is asked of it later fails as well, until the runner gives up.
            while not self._stopped.wait(_REPEAT_SECONDS):
                self._answer_all(f"a worker process died: {error}")

    def _answer_all(self, message: str) -> None:
        # The connection's own abort() sets an exception, which a runner that waits for data does not look at.
        for name, future in list(self.control_conn._futures_by_id.items()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=message))
