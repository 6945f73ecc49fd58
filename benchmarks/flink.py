"""Rows a second of the job of examples/flink beside scoring in one process, in turn; one thread, one task.

What a job takes to start is left out: two jobs are run, one with more rows, and what the second took longer is of the
rows that it has more. It needs the environment that `make test-flink` installs. On a busy machine look at the processor
time: Python's and Java's parts of a job run beside each other only where a core is free.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import report, texts

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-flink" / "bin" / "python"
JOB = ROOT / "examples" / "flink" / "job.py"
ALONE = """
import json, sys, time
from torchmoji_core import load_bundle
from torchmoji_core.inference.scorer import Scorer
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
scorer = Scorer(load_bundle(), threads=1)
scorer.score(texts[:100])
begun, used = time.perf_counter(), time.process_time()
scorer.score(texts[int(sys.argv[2]):])
print(json.dumps([time.perf_counter() - begun, time.process_time() - used]))
"""


class Took(NamedTuple):
    seconds: float
    processor_seconds: float
    """Of the process and its children."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=40_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of Flink; repeatable")
    options = parser.parse_args()
    corpus, source = texts(options.rows, options.data)
    few = len(corpus) // 4
    rows = len(corpus) - few
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        paths = Path(directory, "few.jsonl"), Path(directory, "all.jsonl")
        for path, some in zip(paths, (corpus[:few], corpus), strict=True):
            path.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(some)))
        for turn in range(options.rounds):
            alone = Took(*json.loads(_run([PYTHON, "-c", ALONE, paths[1], few]).splitlines()[-1]))
            short, long = (_job(path, Path(directory, f"{turn}-{path.stem}"), options.setting) for path in paths)
            job = Took(long.seconds - short.seconds, long.processor_seconds - short.processor_seconds)
            figures.append(
                {
                    "round": turn + 1,
                    "alone rows/s": rows / alone.seconds,
                    "job rows/s": rows / job.seconds,
                    "ratio": alone.seconds / job.seconds,
                    "alone ms a row of a core": 1e3 * alone.processor_seconds / rows,
                    "job ms a row of a core": 1e3 * job.processor_seconds / rows,
                    "load": os.getloadavg()[0],
                }
            )
    report(
        "flink",
        figures,
        texts=source,
        settings=options.setting,
        median_ratio=statistics.median(each["ratio"] for each in figures),
    )


def _job(path: Path, output: Path, settings: list[str]) -> Took:
    home = next((ROOT / ".venv-flink" / "lib").glob("python3*/site-packages/pyflink"))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    pythons = ["--pyExecutable", PYTHON, "--pyClientExecutable", PYTHON]
    given = [f"-D{setting}" for setting in settings]
    one = ["run", "--target", "local", "--parallelism", "1", *given, *pythons, "--python", JOB]
    _run([home / "bin" / "flink", *one, "--input", path, "--output", output])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.perf_counter() - begun, used)


def _run(command: list[object]) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    return finished.stdout


if __name__ == "__main__":
    main()
