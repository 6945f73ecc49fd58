"""Spark's standalone cluster, of a master and two workers: its processes are killed while the examples score.

`make test-spark` installs Spark and runs this. Rows are compared with those that the pipeline writes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import score
from tests.engines.conftest import BIN, ROOT, engine_environment
from tests.pipelines.conftest import read_dead_letters, read_scores

Found = TypeVar("Found")
pytestmark = pytest.mark.spark
EXAMPLES = ROOT / "examples" / "spark"
SECONDS = 900.0
FILES, ROWS = 12, 300
KILLS = 2
JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Starts in half of the processor time."""
WORDS = [
    "so", "happy", "late", "again", "the", "train", "sun", "coffee", "love", "hate", "bus", "!", "?", "..", ":)",
    "great", "what", "a", "never", "day", "2024", "unheardof",
]  # fmt: skip
BROKEN = [
    b'{"id": "null", "text": null}', b'{"id": "number", "text": 5}', b'{"id": "none"}', b"not json", b'["so happy"]',
    b'{"id": "list", "text": ["so"]}', b'{"id": "object", "text": {"so": 1}}', b'{"id": "cut", "te', b'"so happy"',
    b'{"id": "bytes", "text": "\xff\xfe so"}', b"\xff\xfe so",
]  # fmt: skip
ODD = [
    b'{"id": "empty", "text": ""}', b'{"id": "blank", "text": " \\t"}', b'{"id": "nul", "text": "so \\u0000 happy"}',
    b'{"id": "long", "text": "' + b"so late " * 100_000 + b'"}', '{"id": "emoji", "text": "so 😊 é"}'.encode(),
]  # fmt: skip


class Cluster:
    """A master and workers of one core each, on this machine; their files are in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.address = f"spark://127.0.0.1:{port}"
        self._start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")

    def start_workers(self) -> None:
        """Start those that are not there, and wait until the master knows them."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        known = self._log("master.Master").count("Registering worker")
        missing = 2 - len(self.workers)
        for _ in range(missing):
            options = ("--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g", "--work-dir")
            self.workers.append(self._start("worker.Worker", *options, str(self._directory / "work"), self.address))
        until(lambda: self._log("master.Master").count("Registering worker") == known + missing)

    def executors(self) -> list[int]:
        """Processes of workers, Java."""
        return [pid for worker in self.workers for pid in children(worker.pid)]

    def python_daemons(self) -> list[int]:
        """Each executor has one, which starts Python's workers."""
        return [pid for executor in self.executors() for pid in children(executor)]

    def python_workers(self) -> list[int]:
        """Those that run functions."""
        return [pid for daemon in self.python_daemons() for pid in children(daemon)]

    def close(self) -> None:
        for process in self._started:
            for executor in children(process.pid):
                os.kill(executor, signal.SIGKILL)
            process.kill()
            process.wait()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = engine_environment() | {
            "SPARK_DAEMON_MEMORY": "192m",
            "SPARK_DAEMON_JAVA_OPTS": JAVA,
            "SPARK_LOCAL_DIRS": str(self._directory / "local"),
            "SPARK_CONF_DIR": str(self._directory),
        }
        with (self._directory / name).open("ab") as log:
            process = subprocess.Popen(
                [BIN / "spark-class", f"org.apache.spark.deploy.{name}", *arguments],
                cwd=self._directory, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self._started.append(process)
        return process

    def _log(self, name: str) -> str:
        return (self._directory / name).read_text()


class Submitted:
    """An example that the cluster runs."""

    def __init__(self, cluster: Cluster, directory: Path, example: str, *options: object) -> None:
        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": "600m",
            "spark.executor.memory": "600m",
            "spark.driver.extraJavaOptions": JAVA,
            "spark.executor.extraJavaOptions": JAVA,
            "spark.sql.files.maxPartitionBytes": "20k",  # a task for each of the small files
        }
        conf = [text for name, value in settings.items() for text in ("--conf", f"{name}={value}")]
        self.log = directory / f"{example}.log"
        self._file: IO[bytes] = self.log.open("wb")
        self.process = subprocess.Popen(
            [BIN / "spark-submit", "--master", cluster.address, *conf, EXAMPLES / example, *map(str, options)],
            cwd=directory, env=engine_environment(), stdout=self._file, stderr=self._file, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, condition: Callable[[], Found]) -> Found:
        """Returns what the condition gives, once that is true."""

        def holds() -> Found:
            found = condition()
            assert found or self.process.poll() is None, self.log.read_text()[-5000:]
            return found

        return until(holds)

    def finish(self) -> str:
        """Returns what it has printed, once it has ended."""
        assert self.process.wait(SECONDS) == 0, self.log.read_text()[-5000:]
        return self.log.read_text()

    def fail(self) -> str:
        """Returns the last line that it has printed, once it has failed."""
        assert self.process.wait(SECONDS) == 1, self.log.read_text()[-5000:]
        return [line for line in self.log.read_text().splitlines() if line.startswith("error: ")][-1]

    def kill(self) -> None:
        """Its Java and its Python at once, as where a machine is lost."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def children(parent: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, of, state in rows if int(of) == parent and not state.startswith("Z")]


def until(condition: Callable[[], Found]) -> Found:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def lines(number: int) -> list[bytes]:
    generator = random.Random(number)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(1, 30))) for _ in range(ROWS)]
    return [json.dumps({"id": f"{number}-{row}", "text": text}).encode() for row, text in enumerate(texts)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines, some of them broken."""
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        content = lines(number) + (BROKEN if number == 2 else []) + (ODD if number == 3 else [])
        (directory / f"{number:02}.jsonl").write_bytes(b"\n".join(content) + b"\n")
    return directory


@pytest.fixture(scope="module")
def pipeline(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pipeline makes of it."""
    output = tmp_path_factory.mktemp("pipeline") / "out"
    assert score.main(["--input", str(corpus), "--output", str(output), "--threads", "1", "--progress", "off"]) == 0
    return output


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not (BIN / "spark-submit").exists() or not (shutil.which("java") or "JAVA_HOME" in os.environ):
        pytest.skip(f"no Spark in {BIN}, or no java; make test-spark installs Spark")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


def check(found: pa.Table, pipeline: Path) -> None:
    """Each row of the pipeline is there once, and equal to the last bit; so are dead letters."""
    expected = read_scores(pipeline)
    dead = found.filter(pa.compute.equal(found["status"].cast("string"), "dead"))
    letters = [letter["text"] for letter in read_dead_letters(pipeline)]
    assert sorted(dead["record"].to_pylist()) == sorted(letters)
    assert len(letters) == len(BROKEN)
    alive = found.filter(pa.compute.not_equal(found["status"].cast("string"), "dead")).sort_by("id")
    assert alive["record"].null_count == alive.num_rows == FILES * ROWS + len(ODD)
    names = [name for name in expected.column_names if name != "cut_by_platform"]  # which the pipeline reads in records
    for name in names:
        column = alive[name].cast(expected.schema.field(name).type)
        assert column.equals(expected[name]), name


@pytest.mark.parametrize("victim", ["python worker", "python daemon", "executor", "worker"])
def test_a_batch_is_whole_whoever_is_killed(
    victim: str, cluster: Cluster, corpus: Path, pipeline: Path, tmp_path: Path
) -> None:
    cluster.start_workers()
    output = tmp_path / "out"
    job = Submitted(cluster, tmp_path, "score.py", "--input", f"{corpus}/*.jsonl", "--output", output)
    for kill in range(KILLS):
        # Files of tasks that have ended wait there for the others.
        job.wait_for(lambda done=1 + 2 * kill: len([*output.glob("_temporary/*/task_*")]) >= done)
        if victim == "worker":
            cluster.workers[0].kill()
            cluster.workers[0].wait()
            cluster.start_workers()
        else:
            find = {
                "python worker": cluster.python_workers,
                "python daemon": cluster.python_daemons,
                "executor": cluster.executors,
            }[victim]
            process = job.wait_for(find)[0]
            with_it = children(process) if victim == "python daemon" else []  # which would go on without it
            for each in (process, *with_it):
                os.kill(each, signal.SIGKILL)
    printed = job.finish()
    assert "Lost task" in printed or "Lost executor" in printed, "the kills hit nothing"
    for status, rows in (("dead", len(BROKEN)), ("empty", 2), ("scored", FILES * ROWS + len(ODD) - 2)):
        assert f"\n{status}: {rows:,} rows\n" in printed
    check(pq.read_table(output), pipeline)


def test_a_stream_goes_on_where_its_driver_was_killed(
    cluster: Cluster, corpus: Path, pipeline: Path, tmp_path: Path
) -> None:
    cluster.start_workers()
    output, checkpoint, source = tmp_path / "out", tmp_path / "checkpoint", tmp_path / "in"
    source.mkdir()
    files = sorted(corpus.iterdir())
    options = ("--input", source, "--output", output, "--checkpoint", checkpoint, "--files_per_batch", 1)

    def put(some: list[Path]) -> None:
        for file in some:
            shutil.copy(file, tmp_path / file.name)
            (tmp_path / file.name).rename(source / file.name)

    put(files[:5])
    job = Submitted(cluster, tmp_path, "stream.py", *options)
    job.wait_for((output / "batch=1" / "_SUCCESS").exists)  # in place, and perhaps not yet in the checkpoint
    job.kill()
    assert not (output / "batch=4").exists()
    put(files[5:9])
    job = Submitted(cluster, tmp_path, "stream.py", *options)
    job.wait_for((output / "batch=6" / "_temporary").exists)  # in the middle of a batch
    job.kill()
    assert not (output / "batch=6" / "_SUCCESS").exists()
    put(files[9:])
    Submitted(cluster, tmp_path, "stream.py", *options, "--until_done").finish()
    assert len([*output.glob("batch=*/_SUCCESS")]) == len([*output.iterdir()]) == FILES
    check(pq.read_table(output), pipeline)


def test_a_table_keeps_its_columns(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_workers()
    table = pa.table({"body": ["so happy", None, ""], "user": [1, 2, 3]})
    pq.write_table(table, tmp_path / "table.parquet")
    options = ("--input", tmp_path / "table.parquet", "--format", "parquet", "--text_field", "body")
    Submitted(cluster, tmp_path, "score.py", *options, "--output", tmp_path / "out").finish()
    found = pq.read_table(tmp_path / "out").sort_by("user").select(["user", "body", "status", "record"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        (1, "so happy", "scored", None),
        (2, None, "dead", '{"user":2}'),
        (3, "", "empty", None),
    ]
    failed = Submitted(cluster, tmp_path, "score.py", *options[:-1], "user", "--output", tmp_path / "other").fail()
    assert failed == "error: the column 'user' is int64, not texts; cast it to string, or name another column"
    assert not (tmp_path / "other").exists()
