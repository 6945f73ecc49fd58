"""The lines of docs/engines.md for Ray Data, Dask and `datasets`, each in a process of an environment that has them.

`make test-readers` makes it and runs this.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.conftest import BIN, engine_environment
from tests.tiny import tiny_bundle
from torchmoji_core import ArrowScorer

if not (BIN / "python").exists():
    pytest.skip("these engines are not installed here: make test-readers", allow_module_level=True)

TEXTS = ["so happy", None, "late again", "", "the train, so LATE"] * 4
RAY = """
import ray
from torchmoji_core import ArrowScorer
scorer = ArrowScorer(model="tiny")
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100_000_000)
dataset = ray.data.read_parquet("in.parquet")
dataset.map_batches(scorer, batch_format="pyarrow").write_parquet("out")
"""
DASK = """
import dask
import dask.dataframe as dd
import pyarrow as pa
from torchmoji_core import ArrowScorer
scorer = ArrowScorer(model="tiny")
frame = dd.read_parquet("in.parquet").repartition(npartitions=3)
scored = frame.map_partitions(scorer, meta=scorer(frame.head(1)).head(0))
schema = scorer.schema(pa.schema({"text": pa.string(), "number": pa.int64()}))
scored.to_parquet("out", schema=schema, write_index=False)
"""
DATASETS = """
from datasets import Dataset
from torchmoji_core import ArrowScorer
scorer = ArrowScorer(model="tiny")
if __name__ == "__main__":
    dataset = Dataset.from_parquet("in.parquet")
    scored = dataset.with_format("arrow").map(scorer, batched=True, num_proc=2)
    scored.to_parquet("out")
"""


@pytest.mark.parametrize("program", [RAY, DASK, DATASETS], ids=["Ray Data", "Dask", "datasets"])
def test_rows_are_those_of_the_scorer_itself(program: str, tmp_path: Path) -> None:
    tiny_bundle(["so", "happy", "late", "again", "train"], seed=5).save(tmp_path / "tiny")
    table = pa.table({"text": TEXTS, "number": range(len(TEXTS))})
    pq.write_table(table, tmp_path / "in.parquet")
    environment = engine_environment() | {"HF_HOME": str(tmp_path / "cache")}
    finished = subprocess.run(
        [BIN / "python", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    expected = ArrowScorer(model=tmp_path / "tiny")(table)
    found = pq.read_table(tmp_path / "out").sort_by("number")
    assert found.cast(expected.schema).equals(expected)
