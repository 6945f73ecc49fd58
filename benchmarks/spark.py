"""Spark on one core beside scoring in one process with one thread, in turn: rows a second of both.

Spark has the settings of examples/spark. Start-up is left out, and in which Java compiles: each is run twice before,
which loads the model in the process that scores. The ratio by the clock needs a machine with a free second core, where
Java writes beside Python; the other one, of processor time, charges Spark for both. It needs Java and pyspark, which
`make test-spark` installs into .venv-engines.
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

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-engines" / "bin" / "python"
EXAMPLES = ROOT / "examples" / "spark"


def main() -> None:
    from benchmarks.common import report, texts
    from pipelines.runs import child_process

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=40_000, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each (default: %(default)s)")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of Spark; repeatable")
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit(f"there is no {PYTHON}: make test-spark makes it")
    corpus, source = texts(options.rows, options.data)
    environment = os.environ | {"PYSPARK_PYTHON": str(PYTHON), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(pa.table({"text": corpus}), Path(directory, "texts.parquet"))
        measuring = [PYTHON, "-m", "benchmarks.spark", "--measure", directory, str(options.runs), *options.setting]
        finished = subprocess.run(
            [sys.executable, "-I", child_process.__file__, str(os.getpid()), *measuring],
            stdout=subprocess.PIPE, text=True, check=True, start_new_session=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    took: dict[str, list[list[float]]] = json.loads(finished.stdout.splitlines()[-1])
    alone = took["bundle.score"]
    rows = []
    for what, runs in took.items():
        seconds, processor_seconds = (statistics.median(each) for each in zip(*runs, strict=True))
        ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in zip(alone, runs, strict=True)]
        ratio, ratio_of_processor_time = (statistics.median(each) for each in zip(*ratios, strict=True))
        rows.append(
            {
                "what": what,
                "rows/s": len(corpus) / seconds,
                "of bundle.score, median of pairs": ratio,
                "ms a row of a core": 1e3 * processor_seconds / len(corpus),
                "of bundle.score, processor time": ratio_of_processor_time,
            }
        )
    report(
        "spark",
        rows,
        texts=source,
        settings=options.setting,
        load=" ".join(f"{value:.1f}" for value in os.getloadavg()),
    )


def measure(directory: str, runs: int, settings: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds of each run. In the environment that has Spark."""
    sys.path.insert(0, str(EXAMPLES))
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
    from score import SETTINGS, rows_of_table, scored  # type: ignore[import-not-found]

    from benchmarks.session import processor_seconds
    from torchmoji_core import ArrowScorer, load_bundle
    from torchmoji_core.inference.scorer import Scorer

    here = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    given = dict(setting.split("=", 1) for setting in settings)
    spark = SparkSession.builder.master("local[1]").config(map=here | SETTINGS | given).getOrCreate()
    frame = spark.read.parquet(f"{directory}/texts.parquet").coalesce(1)
    scorer = ArrowScorer("text")
    plain = frame.mapInArrow(scorer.batches, from_arrow_schema(scorer.schema(to_arrow_schema(frame.schema))))
    example = scored(rows_of_table(frame), scorer)
    alone = Scorer(load_bundle(), threads=1, cache_mb=0)  # bundle.score with one thread, and without a cache, as there
    texts = pq.read_table(f"{directory}/texts.parquet")["text"].to_pylist()

    def write(frame: DataFrame, format: str, *partitions: str) -> None:
        frame.write.mode("overwrite").partitionBy(*partitions).format(format).save(f"{directory}/scored")

    ways = {
        "bundle.score": lambda: alone.score(texts),
        "mapInArrow": lambda: write(plain, "noop"),
        "mapInArrow, written as Parquet": lambda: write(plain, "parquet"),
        "examples/spark/score.py": lambda: write(example, "parquet", "status"),
    }
    took: dict[str, list[tuple[float, float]]] = {what: [] for what in ways}
    for run in range(runs + 2):
        for what, work in ways.items():
            begun, used = time.perf_counter(), processor_seconds()
            work()
            if run >= 2:
                took[what].append((time.perf_counter() - begun, processor_seconds() - used))
    return took


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), sys.argv[4:])))
    else:
        main()
