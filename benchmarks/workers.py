"""python -m benchmarks.workers: the score command with one process and with two, on the same texts.

Prints the speed of each and compares every value of every row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import report, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--model", help="bundle (default: the bundled model)")
    options = parser.parse_args()
    corpus, source = texts(options.texts, options.data)
    model = ["--model", options.model] if options.model else []
    rows, tables = [], []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in.parquet")
        pq.write_table(pa.table({"id": [f"{index:07}" for index in range(len(corpus))], "text": corpus}), path)
        for workers in (1, 2):
            output = Path(directory, str(workers))
            command = [sys.executable, "-m", "pipelines.score", "--input", str(path), "--output", str(output), *model]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--direct_num_workers", str(workers), "--progress", "off"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - started
            table = pq.read_table(output).sort_by("id")
            tables.append(table)
            rows.append(
                {
                    "processes": workers,
                    "seconds": seconds,
                    "texts/s": len(corpus) / seconds,
                    "rows": len(table),
                    "distinct ids": len(table["id"].unique()),
                }
            )
    report("workers", rows, texts=source, every_value_equal=tables[0].equals(tables[1]))


if __name__ == "__main__":
    main()
