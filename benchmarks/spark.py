"""Spark's `mapInArrow` on one core beside `bundle.score` with one thread, in turn in one hour: rows a second of both.

It needs Java and pyspark, which `make test-spark` installs into .venv-engines. Start-up is left out: each is run once
before, which loads the model in the process that scores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PYTHON = Path(__file__).parents[1] / ".venv-engines" / "bin" / "python"


def main() -> None:
    from benchmarks.common import report, texts

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each (default: %(default)s)")
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit(f"there is no {PYTHON}: make test-spark makes it")
    corpus, source = texts(options.rows, options.data)
    environment = os.environ | {"PYSPARK_PYTHON": str(PYTHON), "PYTHONPATH": str(PYTHON.parents[2])}
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(pa.table({"text": corpus}), Path(directory, "texts.parquet"))
        finished = subprocess.run(
            [PYTHON, "-m", "benchmarks.spark", "--measure", directory, str(options.runs)],
            stdout=subprocess.PIPE, text=True, check=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    seconds: dict[str, list[float]] = json.loads(finished.stdout.splitlines()[-1])
    alone = seconds["bundle.score"]
    rows = [
        {
            "what": what,
            "rows/s": len(corpus) / statistics.median(taken),
            "of bundle.score, median of pairs": statistics.median(
                one / other for one, other in zip(alone, taken, strict=True)
            ),
        }
        for what, taken in seconds.items()
    ]
    report("spark", rows, texts=source, load=" ".join(f"{value:.1f}" for value in os.getloadavg()))


def measure(directory: str, runs: int) -> dict[str, list[float]]:
    """Seconds of each run. In the environment that has Spark."""
    from pyspark.sql import SparkSession
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

    from torchmoji_core import ArrowScorer, load_bundle
    from torchmoji_core.inference.scorer import Scorer

    settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    frame = spark.read.parquet(f"{directory}/texts.parquet").coalesce(1)
    scorer = ArrowScorer("text")
    scored = frame.mapInArrow(scorer.batches, from_arrow_schema(scorer.schema(to_arrow_schema(frame.schema))))
    alone = Scorer(load_bundle(), threads=1, cache_mb=0)  # what bundle.score is, with one thread
    texts = pq.read_table(f"{directory}/texts.parquet")["text"].to_pylist()

    def write(format: str, rows_of_a_batch: int) -> None:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows_of_a_batch)
        scored.write.mode("overwrite").format(format).save(f"{directory}/scored")

    ways = {
        "bundle.score": lambda: alone.score(texts),
        "mapInArrow": lambda: write("noop", 10_000),
        "mapInArrow, written as Parquet": lambda: write("parquet", 10_000),
        "the same, 2,000 rows a batch": lambda: write("parquet", 2_000),
    }
    seconds: dict[str, list[float]] = {what: [] for what in ways}
    for run in range(runs + 1):
        for what, work in ways.items():
            begun = time.perf_counter()
            work()
            if run:
                seconds[what].append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
