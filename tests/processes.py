"""The score command in a process of its own that goes on until it is told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.pipelines.conftest import environment

START_SECONDS = 60.0


class ScoreProcess:
    """A running `pipelines.score` in a directory; it may use one core."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        variables: Mapping[str, str] | None = None,
        preparation: Callable[[], None] | None = None,
        program: Sequence[str] = ("-m", "pipelines.score"),
    ) -> None:
        """Args:
        directory: where it runs.
        arguments: of the command.
        variables: of its environment, besides those of all tests.
        preparation: what the process does before it becomes the command.
        program: that Python runs.
        """
        self._log = (directory / "log").open("a+")
        self._from = self._log.tell()
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=directory,
            env=environment() | {"OMP_NUM_THREADS": "1"} | dict(variables or {}),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=preparation,
        )

    @property
    def log(self) -> str:
        """What it has printed."""
        return Path(self._log.name).read_bytes()[self._from :].decode()

    def wait_for(self, condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
        """Wait until something holds; it is an error if the process ends before, or the time."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal and wait. Returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()
