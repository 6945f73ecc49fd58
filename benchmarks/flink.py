"""Rows a second of the job of examples/flink beside scoring in one process, in turn; one thread, one slot.

What is measured is the middle of a job, and not its start: the scorer notes rows, clock and processor time before each
of its calls (benchmarks/flink_job.py), and the first half of the rows is left out, in which Java compiles. So all
that a row takes is there: reading, both ways between Java and Python, scoring, and writing Parquet. The ratio by the
clock needs a machine with a free second core, where Java works beside Python; the other one, of processor time, charges
the job for both, and changes little on a busy machine. It needs the environments that `make test-flink` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import report, texts
from tests.kafka import Broker, RealBroker

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-flink" / "bin" / "python"
JOB = ROOT / "examples" / "flink" / "job.py"
SESSION = Path(__file__).with_name("session.py")
HOPELESS_SECONDS = 900.0
ALONE = """
import json, sys, time
from torchmoji_core import load_bundle
from torchmoji_core.inference.scorer import Scorer
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
scorer = Scorer(load_bundle(), threads=1, cache_mb=0)
few = len(texts) // 2
scorer.score(texts[:few])
begun, used = time.perf_counter(), time.process_time()
scorer.score(texts[few:])
print(json.dumps([len(texts) - few, time.perf_counter() - begun, time.process_time() - used]))
"""


class Took(NamedTuple):
    rows: float
    seconds: float
    processor_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("file", "kafka"), default="file", help="(default: %(default)s)")
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=80_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of Flink; repeatable")
    options = parser.parse_args()
    corpus, source = texts(options.rows, options.data)
    figures = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "texts.jsonl"
        lines = [json.dumps({"id": str(row), "text": text}) for row, text in enumerate(corpus)]
        path.write_text("\n".join(lines) + "\n")
        with _topic(directory, lines) if options.source == "kafka" else _file(path) as place:
            for turn in range(options.rounds):
                alone = Took(*json.loads(_run([PYTHON, "-c", ALONE, path])))
                job = _job(place, len(corpus), directory / str(turn), options.setting)
                figures.append(
                    {
                        "round": turn + 1,
                        "alone rows/s": alone.rows / alone.seconds,
                        "job rows/s": job.rows / job.seconds,
                        "ratio": (job.rows / job.seconds) / (alone.rows / alone.seconds),
                        "alone ms a row of a core": 1e3 * alone.processor_seconds / alone.rows,
                        "job ms a row of a core": 1e3 * job.processor_seconds / job.rows,
                        "ratio of processor time": (alone.processor_seconds / alone.rows)
                        / (job.processor_seconds / job.rows),
                        "load": os.getloadavg()[0],
                    }
                )
    ratios = ("ratio", "ratio of processor time")
    medians = {f"median {name}": round(statistics.median(row[name] for row in figures), 3) for name in ratios}
    report(f"flink_{options.source}", figures, texts=source, settings=options.setting, **medians)


@contextmanager
def _file(path: Path) -> Iterator[str]:
    yield str(path)


@contextmanager
def _topic(directory: Path, lines: list[str]) -> Iterator[str]:
    """All lines wait in a topic of one partition."""
    broker = RealBroker(directory / "kafka")
    broker.start()
    try:
        broker.create("texts", 1)
        Broker(broker.address).send("texts", [line.encode() for line in lines])
        yield f"kafka://{broker.address}/texts"
    finally:
        broker.kill()


def _job(place: str, rows: int, directory: Path, settings: list[str]) -> Took:
    """The job, from the first call in the second half of the rows to the last one."""
    directory.mkdir()
    notes = directory / "notes"
    notes.touch()
    home = next((ROOT / ".venv-flink" / "lib").glob("python3*/site-packages/pyflink"))
    pythons = ["--pyExecutable", PYTHON, "--pyClientExecutable", PYTHON, "--pyFiles", f"{JOB},{SESSION}"]
    given = [f"-D{setting}" for setting in settings]
    program = ["--python", Path(__file__).with_name("flink_job.py"), "--input", place, "--output", directory / "out"]
    command = [home / "bin" / "flink", "run", "--target", "local", "--parallelism", "1", *given, *pythons, *program]
    with (directory / "log").open("w+") as log:
        process = subprocess.Popen(
            [*map(str, command), "--commit_every", "10"],
            env=_without_checkout() | {"NOTES": str(notes)}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + HOPELESS_SECONDS
            while sum(count for count, *_ in _notes(notes)) < rows:  # a job of a topic has no end
                if process.poll() or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(log.read()[-4000:])
                time.sleep(0.5)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    calls, before = [], 0.0
    for count, *at in _notes(notes):
        if before >= rows // 2:
            calls.append((before, *at))
        before += count
    return Took(*(last - first for first, last in zip(calls[0], calls[-1], strict=True)))


def _notes(path: Path) -> list[list[float]]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _run(command: list[object]) -> str:
    finished = subprocess.run(
        list(map(str, command)), env=_without_checkout(), capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return finished.stdout


def _without_checkout() -> dict[str, str]:
    """The environment of a process that takes `torchmoji_core` as it is installed beside PyFlink."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    main()
