"""Time and memory of `pipelines.aggregate` over a data set of many rows, beside pandas on a sample.

The data set is scored first, from texts that repeat, so that the cache has most of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common import measure_command, report, texts
from pipelines.data_set.snapshot import live_files

_FILES, _DISTINCT, _DAYS = 10, 20_000, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--users", type=int, default=1_000, help="each tweets on thirty days (default: %(default)s)")
    options = parser.parse_args()
    corpus, source = texts(_DISTINCT, options.data)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _write(directory / "in", corpus, options.rows, options.users)
        measure_command(
            [sys.executable, "-m", "pipelines.score", "--input", f"{name}/in/*", "--output", f"{name}/scored",
             "--keep_fields", "user:string", "--timestamp_field", "time", "--progress", "off"]
        )  # fmt: skip
        command = [sys.executable, "-m", "pipelines.aggregate", f"{name}/scored", "--by", "user,day"]
        first = measure_command([*command, "--output", f"{name}/features"])
        again = measure_command([*command, "--output", f"{name}/features"])
        _compare(directory)
        features = sum(pq.read_metadata(path).num_rows for path in (directory / "features").glob("*.parquet"))
    rows = [{"what": "from nothing", "features": features, **first}, {"what": "nothing new", "features": 0, **again}]
    report("aggregation", rows, texts=source, tweets=options.rows)


def _write(directory: Path, corpus: list[str], count: int, users: int) -> None:
    directory.mkdir()
    generator = np.random.default_rng(1)
    for number in range(_FILES):
        with (directory / f"{number}.jsonl").open("w") as file:
            for _ in range(count // _FILES):
                day, hour = generator.integers(1, _DAYS + 1), generator.integers(24)
                tweet = {
                    "text": corpus[generator.integers(len(corpus))],
                    "user": f"user {generator.integers(users)}",
                    "time": f"2024-04-{day:02d}T{hour:02d}:00:00Z",
                }
                file.write(json.dumps(tweet) + "\n")


def _compare(directory: Path) -> None:
    """Make sure that features of one user are those that pandas gives."""
    rows = pq.read_table(live_files(str(directory / "scored")), filters=[("user", "=", "user 7")]).to_pandas()
    table = pq.read_table(directory / "features")
    features = table.filter(pc.equal(table["user"], "user 7")).to_pandas().set_index("day")
    for day, group in rows.groupby(rows["timestamp"].dt.floor("D")):
        scored = group[group["status"] == "scored"]
        assert features.loc[day, "tweets"] == len(group)
        for name in ("probabilities", "embedding"):
            np.testing.assert_allclose(
                features.loc[day, name], np.mean(scored[name].tolist(), axis=0, dtype=np.float64), atol=2e-7
            )


if __name__ == "__main__":
    main()
