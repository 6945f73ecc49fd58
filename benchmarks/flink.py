"""Rows a second of the job of examples/flink beside `bundle.score` in one process, in turn, one thread each.

What a job takes to start is left out: two jobs are run, one with more rows, and the rest is what the difference took.
It needs the environment that `make test-flink` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.common import report, texts

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-flink" / "bin" / "python"
ALONE = """
import json, sys, time
from torchmoji_core import load_bundle
from torchmoji_core.inference.scorer import Scorer
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
scorer = Scorer(load_bundle(), threads=1)
scorer.score(texts[:100])
begun = time.perf_counter()
scorer.score(texts[int(sys.argv[2]):])
print(time.perf_counter() - begun)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    corpus, source = texts(options.rows, options.data)
    few = len(corpus) // 10
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        paths = Path(directory, "few.jsonl"), Path(directory, "all.jsonl")
        for path, some in zip(paths, (corpus[:few], corpus), strict=True):
            path.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(some)))
        for turn in range(options.rounds):
            alone = float(_run("-c", ALONE, str(paths[1]), str(few)).splitlines()[-1])
            seconds = []
            for path in paths:
                begun = time.perf_counter()
                job = str(ROOT / "examples" / "flink" / "job.py")
                _run(job, "--input", str(path), "--output", f"{directory}/{turn}-{path.stem}")
                seconds.append(time.perf_counter() - begun)
            job_rate, rate = (len(corpus) - few) / (seconds[1] - seconds[0]), (len(corpus) - few) / alone
            figures.append(
                {
                    "round": turn + 1,
                    "bundle.score rows/s": rate,
                    "job rows/s": job_rate,
                    "ratio": job_rate / rate,
                    "start seconds": seconds[0] - few / job_rate,
                    "load": os.getloadavg()[0],
                }
            )
            print(figures[-1], flush=True)
    report("flink", figures, texts=source, median=statistics.median(each["ratio"] for each in figures))


def _run(*arguments: str) -> str:
    finished = subprocess.run([PYTHON, *arguments], capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr[-2000:])
    return finished.stdout


if __name__ == "__main__":
    main()
