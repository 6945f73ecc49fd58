"""The streaming job on Prism, Beam's runner for tests, from Apache Kafka: runner and workers are killed.

Prism keeps no checkpoint when a job ends, so each begins where the data set ends. Within a job bundles go on from
checkpoints; in every second job Beam keeps no reader for them, so that each is made anew from one. In some rounds a
worker is only suspended, and wakes up under the next job: it goes on with what that one has begun to read again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kafka import ROOT, Broker, RealBroker, Traffic, free_ports, need_apache_kafka
from tests.pipelines.conftest import environment
from tests.streams import live_ids

pytestmark = pytest.mark.kafka
PRISM = ROOT / ".venv" / "prism" / "prism"
KILLS = 10
PARTITIONS = 3
PATIENCE = 300.0
JOBS = 10
"""The most that are needed to read what is left."""
_KEEP_NO_READERS = """
import sys
if "pipelines.runs.worker_forks" in sys.orig_argv:
    from apache_beam.io import unbounded_source
    unbounded_source._ReaderCache.park = lambda self, key, reader, started: reader.close()
"""
VICTIMS = ("runner", "workers", "all", "suspended")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RealBroker]:
    need_apache_kafka()
    if not PRISM.exists():
        pytest.skip(f"{PRISM} is not there; make test-kafka installs it with Go")
    broker = RealBroker(tmp_path / "kafka")
    broker.start()
    yield broker
    broker.kill()


class Job:
    """A runner, a pool of workers, and a job that was submitted to them."""

    def __init__(self, directory: Path, *options: str, keeps_readers: bool = True) -> None:
        self._directory = directory
        self._environment = environment() | {"OMP_NUM_THREADS": "1"}
        if not keeps_readers:
            (directory / "site").mkdir(exist_ok=True)
            (directory / "site" / "sitecustomize.py").write_text(_KEEP_NO_READERS)
            self._environment["PYTHONPATH"] += f"{os.pathsep}{directory / 'site'}"
        job_port, pool_port = free_ports(2)
        self._log = (directory / "log").open("ab")
        self.runner = self._start(str(PRISM), f"--job_port={job_port}", "--serve_http=false", "--log_level=warn")
        self.pool = self._start(sys.executable, "-m", "pipelines.worker", "--port", str(pool_port))
        self.run_id = ""
        try:
            self.run_id = self._submit(job_port, pool_port, *options)
        except BaseException:
            self.end()
            raise

    def _submit(self, job_port: int, pool_port: int, *options: str) -> str:
        """Returns the id of the run."""
        endpoints = (f"--job_endpoint=localhost:{job_port}", f"--environment_config=localhost:{pool_port}")
        command = (sys.executable, "-m", "pipelines.score", "--streaming", "--output", "out", *options)
        runner = ("--runner=PortableRunner", "--environment_type=EXTERNAL", *endpoints)
        submitted = subprocess.run(
            [*command, *runner],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr + self.log
        described = (self._directory / "out" / "_journal").glob("*/run.json")
        return max(described, key=lambda path: path.stat().st_mtime).parent.name

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=self._directory, env=self._environment, stdout=self._log, stderr=self._log)

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()[-4000:]

    @property
    def workers(self) -> list[int]:
        return _children(*_children(self.pool.pid))  # they are forked from a process that the pool has started

    @property
    def records(self) -> int:
        """How many there are of this job's messages now."""
        paths = (self._directory / "out" / "_journal" / self.run_id).glob("*.json")
        return sum(path.name not in ("run.json", "begin.json") for path in paths)

    def signal_workers(self, number: signal.Signals) -> list[int]:
        workers = self.workers
        for worker in workers:
            _send(worker, number)
        return workers

    def end(self, spare: list[int] | None = None) -> None:
        """Kill all of it that is still there, but the workers that are named."""
        for worker in self.workers:
            if worker not in (spare or []):
                _send(worker, signal.SIGKILL)
        for process in (self.pool, self.runner):
            process.kill()
            process.wait()
        self._log.close()


def _children(*parents: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", ",".join(map(str, parents))], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


@contextlib.contextmanager
def ended() -> Iterator[list[int]]:
    """Processes that are killed in the end."""
    processes: list[int] = []
    try:
        yield processes
    finally:
        for process in processes:
            _send(process, signal.SIGKILL)


def adopt(directory: Path) -> None:
    """What takes in the files of a job."""
    finished = subprocess.run(
        [sys.executable, "-m", "pipelines.verify", "out", "--clean"],
        cwd=directory, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr


def is_all_there(directory: Path, traffic: Traffic) -> bool:
    adopt(directory)
    return len(live_ids(directory / "out")) >= len(traffic)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true in time. Prism ends some jobs by itself: asked to split a bundle before it has
    measured an element, Beam's worker divides by zero."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def test_every_offset_once_whichever_part_of_a_job_is_killed(
    broker: RealBroker, tiny_model: str, tmp_path: Path
) -> None:
    broker.create("posts", PARTITIONS)
    output, dice = tmp_path / "out", random.Random(5)
    options = ("--input", f"kafka://{broker.address}/posts", "--model", tiny_model)
    with ended() as suspended, Traffic(Broker(broker.address), "posts", PARTITIONS, pause=1) as traffic:
        for number in range(KILLS):
            victim = VICTIMS[number % len(VICTIMS)]
            job = Job(tmp_path, *options, keeps_readers=number % 2 == 0)
            try:
                wait_for(lambda job=job: job.records > 0, 60)
                for worker in suspended:
                    _send(worker, signal.SIGCONT)
                time.sleep(dice.uniform(0.1, 4))
                if victim == "suspended":
                    suspended += job.signal_workers(signal.SIGSTOP)
                if victim in ("workers", "all"):
                    job.signal_workers(signal.SIGKILL)
                    time.sleep(dice.uniform(0, 0.5))
                if victim in ("runner", "all"):
                    job.runner.kill()
                    time.sleep(dice.uniform(0, 1))
            finally:
                job.end(spare=suspended)
            if number % 2:
                adopt(tmp_path)
        traffic.stop()
        assert "by a checkpoint" in (tmp_path / "log").read_text()
        for _ in range(JOBS):
            job = Job(tmp_path, *options)
            try:
                if wait_for(lambda: is_all_there(tmp_path, traffic), 120):
                    break
            finally:
                job.end()
        traffic.assert_once(output)
