"""A cluster of Flink: job manager, task manager and Python workers are processes, which can be killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-flink" / "bin" / "python"
JOB = ROOT / "examples" / "flink" / "job.py"
HOPELESS_SECONDS = 900.0
SLOTS = 2


class FlinkCluster:
    """One job manager and one task manager."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: an empty one, for settings, logs and state.
        """
        self._directory = directory
        self._home = next((ROOT / ".venv-flink" / "lib").glob("python3*/site-packages/pyflink"))
        with socket.socket() as one, socket.socket() as other:
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
            rpc, self._port = one.getsockname()[1], other.getsockname()[1]
        (opened,) = re.findall(r"^ +all: (.*)$", (self._home / "conf" / "config.yaml").read_text(), re.MULTILINE)
        addresses = ("jobmanager.rpc.address", "jobmanager.bind-host", "taskmanager.host", "taskmanager.bind-host")
        settings = {
            **dict.fromkeys((*addresses, "rest.address", "rest.bind-address"), "127.0.0.1"),
            "env.java.opts.all": f"{opened} -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "jobmanager.rpc.port": rpc,
            "rest.port": self._port,
            "jobmanager.memory.process.size": "1000m",
            "taskmanager.memory.process.size": "1728m",
            "taskmanager.numberOfTaskSlots": SLOTS,
            "parallelism.default": SLOTS,
            "python.executable": PYTHON,
            "python.client.executable": PYTHON,
            "execution.checkpointing.dir": (directory / "checkpoints").as_uri(),
            "io.tmp.dirs": directory / "tmp",
            "heartbeat.interval": "1 s",
            "heartbeat.timeout": "20 s",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1000,
            "restart-strategy.fixed-delay.delay": "1 s",
        }
        for name in ("conf", "log", "tmp"):
            (directory / name).mkdir(parents=True)
        for path in (self._home / "conf").glob("log4j*"):
            (directory / "conf" / path.name).write_bytes(path.read_bytes())
        lines = (f"{name}: {value}\n" for name, value in settings.items())
        (directory / "conf" / "config.yaml").write_text("".join(lines))
        self._variables = {
            "FLINK_HOME": str(self._home),
            "FLINK_CONF_DIR": str(directory / "conf"),
            "FLINK_LOG_DIR": str(directory / "log"),
        }
        self._managers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._start("jobmanager")
        self.start_task_manager()
        wait(lambda: self._ask("overview").get("slots-total") == SLOTS)

    def start_task_manager(self) -> None:
        self._start("taskmanager")

    def kill_task_manager(self) -> None:
        self._managers["taskmanager"].kill()
        self._managers["taskmanager"].wait()

    def workers(self, of_all: bool = False) -> list[int]:
        """Python processes that run functions.

        Args:
            of_all: also those that have outlived their task manager.
        """
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:  # ended, or another user's
                continue
            if b"pyflink.fn_execution" in command and self._variables["FLINK_CONF_DIR"].encode() in variables:
                found.append(int(path.name))
        return [worker for worker in found if of_all or self._managers["taskmanager"].pid in parents(worker)]

    def stop(self) -> None:
        """Kill all that is left."""
        for manager in self._managers.values():
            manager.kill()
            manager.wait()
        for worker in self.workers(of_all=True):
            os.kill(worker, signal.SIGKILL)

    def submit(self, *arguments: str, job: Path = JOB, options: tuple[str, ...] = ()) -> str:
        """Start a job. Returns its id.

        Args:
            arguments: of the job.
            job: the program.
            options: of `flink run`.
        """
        said = self._flink("run", "--detached", *options, "--python", str(job), *arguments)
        found = re.search(r"JobID ([0-9a-f]{32})", said)
        assert found, said
        return found[1]

    def cancel(self, job: str) -> str:
        """Cancel a job. Returns its last checkpoint."""
        self._flink("cancel", job)
        wait(lambda: self.state(job) == "CANCELED")
        return str(self._ask(f"jobs/{job}/checkpoints")["latest"]["completed"]["external_path"])

    def suspend(self, job: str) -> str:
        """Stop a job with a savepoint, as `flink stop` does. Returns the savepoint."""
        place = (self._directory / "savepoints").as_uri()
        order = self._ask(f"jobs/{job}/stop", {"targetDirectory": place})["request-id"]
        done = wait(lambda: self._ask(f"jobs/{job}/savepoints/{order}").get("operation"))
        assert "location" in done, done["failure-cause"]["stack-trace"]
        wait(lambda: self.state(job) == "FINISHED")
        return str(done["location"])

    def state(self, job: str) -> str:
        return str(self._ask(f"jobs/{job}").get("state"))

    def checkpoints(self, job: str, which: str = "completed") -> int:
        """How many were completed, or restored by restarts."""
        return int(self._ask(f"jobs/{job}/checkpoints").get("counts", {}).get(which, 0))

    @property
    def log(self) -> str:
        """The end of what was logged."""
        return "\n".join(path.read_text()[-3000:] for path in (self._directory / "log").glob("*"))

    def _ask(self, path: str, order: dict[str, str] | None = None) -> Any:
        """An answer of the job manager, to a question or an order; {} as long as it has none."""
        address = f"http://127.0.0.1:{self._port}/v1/{path}"
        body = None if order is None else json.dumps(order).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def _flink(self, *arguments: str) -> str:
        command = [str(self._home / "bin" / "flink"), *arguments]
        finished = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**without_checkout(), **self._variables},
            cwd=self._directory, timeout=HOPELESS_SECONDS,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def _start(self, manager: str) -> None:
        log = (self._directory / "log" / manager).open("ab")
        command = [str(self._home / "bin" / f"{manager}.sh"), "start-foreground"]
        self._managers[manager] = subprocess.Popen(
            command, stdout=log, stderr=log, env={**without_checkout(), **self._variables}, cwd=self._directory
        )


def parents(process: int) -> Iterator[int]:
    """The processes that a process is below, as long as there are any."""
    while process > 1:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield process


def without_checkout() -> dict[str, str]:
    """The environment of a process that takes `torchmoji_core` as it is installed beside PyFlink."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def wait(condition: Callable[[], Any], seconds: float = HOPELESS_SECONDS) -> Any:
    """Wait until something holds that has to come, however slow the machine is. Returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.2)
    return found
