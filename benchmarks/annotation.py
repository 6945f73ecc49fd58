"""python -m benchmarks.annotation: what a scheduled run costs among many old inputs, and verify with many rows.

* nothing new among --files old inputs: the time of a run that scores nothing;
* one new file of 500 rows among them, against a first run over that file alone;
* verify over --ids rows with distinct ids: time and peak memory. Its rows hold nothing but what verify reads.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import measure_command, report
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from pipelines.data_set.snapshot import DataSet
from pipelines.data_set.verification import _digest

WORDS = ["so", "happy", "sad", "rain", "love", "late", "coffee", "today", "never", "again", "friends", "!", "..."]
NEW_ROWS = 500
ROWS_PER_FILE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2_000, help="old inputs (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=20, help="rows of each (default: %(default)s)")
    parser.add_argument("--ids", type=int, default=10_000_000, help="rows that verify compares (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        _corpus(directory / "old", options.files, options.rows)
        _corpus(directory / "new", 1, NEW_ROWS, first=options.files)
        annotate = [sys.executable, "-m", "pipelines.annotate", "--progress", "off", "--input"]
        first = measure_command([*annotate, str(directory / "old/*"), "--output", str(directory / "out")])
        rows.append({"what": f"first run, {options.files:,} inputs, {options.files * options.rows:,} rows"} | first)
        verify = [sys.executable, "-m", "pipelines.verify"]
        rows.append({"what": "verify of that"} | measure_command([*verify, str(directory / "out")]))
        for _ in range(options.repeats):
            command = [*annotate, str(directory / "old/*"), "--output", str(directory / "out")]
            rows.append({"what": "nothing new"} | measure_command(command))
            shutil.copytree(directory / "out", directory / "copy")
            command = [*annotate, str(directory / "*/*.jsonl"), "--output", str(directory / "copy")]
            among = measure_command(command)
            command = [*annotate, str(directory / "new/*"), "--output", str(directory / "alone")]
            alone = measure_command(command)
            rows.append({"what": f"one new input of {NEW_ROWS} rows among them"} | among)
            rows.append({"what": "the same input alone"} | alone)
            shutil.rmtree(directory / "copy")
            shutil.rmtree(directory / "alone")
        _data_set(directory / "many", options.ids)
        measured = measure_command([*verify, str(directory / "many")])
        rows.append({"what": f"verify of {options.ids:,} rows"} | measured)
    report("annotation", rows)


def _corpus(directory: Path, files: int, rows: int, first: int = 0) -> None:
    directory.mkdir()
    generator = random.Random(first)
    for number in range(first, first + files):
        with (directory / f"{number:05}.jsonl").open("w") as file:
            for row in range(rows):
                text = " ".join(generator.choices(WORDS, k=generator.randint(3, 25)))
                file.write(json.dumps({"id": f"{number}-{row}", "text": text}) + "\n")


def _data_set(directory: Path, ids: int) -> None:
    """A data set of ids alone, with a manifest that verify finds right."""
    directory.mkdir()
    schema = pa.schema([("id", pa.string()), ("source", pa.string())], {"torchmoji.fingerprint": "none"})
    files, inputs = [], []
    for first in range(0, ids, ROWS_PER_FILE):
        count, source, name = min(ROWS_PER_FILE, ids - first), f"/in/{first}.jsonl", f"part-{first:012}.parquet"
        # Numbers as long as a tweet's, in no order.
        names = pa.array([str(10**18 + (first + index) * 7_919 % (10**9 + 7)) for index in range(count)])
        table = pa.table([names, pa.array([source] * count)], schema=schema)
        pq.write_table(table, directory / name, compression="zstd", use_dictionary=["source"])
        size, digest = _digest(str(directory / name))
        files.append(DataFile(name, count, size, digest, {source: count}))
        inputs.append(Input(source, 0, None, "jsonl", count, 0))
    DataSet(str(directory)).commit(
        lambda _: Manifest(
            sequence=1,
            run_id=uuid.uuid4().hex[:12],
            kind="annotate",
            status="done",
            started="2026-01-01T00:00:00+00:00",
            finished="2026-01-01T00:00:00+00:00",
            code_version="",
            identity={},
            model=Model("none", "none", "none"),
            inputs=tuple(inputs),
            files=tuple(files),
        )
    )


if __name__ == "__main__":
    main()
