"""Record batches that are written, and what was written of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from tests.transforms.conftest import Ran, Run
from transforms import WriteScores
from transforms.columns import PARTITION_COLUMN

HOUR = 3600
METADATA = {"torchmoji.fingerprint": "abc", "torchmoji.classes": '["😂"]'}


def make_batch(ids: Iterable[str]) -> pa.RecordBatch:
    names = list(ids)
    vectors = pa.array([[float(len(name))] for name in names], pa.list_(pa.field("element", pa.float64())))
    return pa.record_batch({"id": pa.array(names, pa.string()), "vector": vectors}).replace_schema_metadata(METADATA)


def numbered_batches(sizes: Iterable[int]) -> list[pa.RecordBatch]:
    batches, first = [], 0
    for size in sizes:
        batches.append(make_batch(f"{index:05}" for index in range(first, first + size)))
        first += size
    return batches


def write(run: Run, output: Path, batches: list[Any], run_id: str = "run", **arguments: Any) -> Ran:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        created = pipeline | beam.Create(batches, reshuffle=False).with_output_types(pa.RecordBatch)
        return {"files": created | "WriteScores" >> WriteScores(str(output), run_id, **arguments)}

    return run(build)


def parts(output: Path) -> list[Path]:
    """All files under final names; that there are no others but the records of them is checked along the way."""
    records = list(output.rglob("_tmp/*/committed/*.json"))
    found = [path for path in output.rglob("*") if path.is_file() and path not in records]
    assert all(re.fullmatch(r"part-[\w-]+-[0-9a-f]{12}\.(parquet|jsonl)", path.name) for path in found), found
    assert len({path.name for path in found}) == len(found)
    assert sorted(path.name.removesuffix(".json") for path in records) == sorted(path.name for path in found)
    return sorted(found)


def ids_of(path: Path) -> list[str]:
    return pq.ParquetFile(path).read(["id"])["id"].to_pylist()


def partitioned(rows: Iterable[tuple[str, str]], source: str = "in.jsonl") -> pa.RecordBatch:
    """Rows of id and partition."""
    ids, partitions = zip(*rows, strict=True)
    columns = {
        "id": pa.array(ids, pa.string()),
        "source": pa.array([source] * len(ids), pa.string()),
        PARTITION_COLUMN: pa.array(partitions, pa.string()),
        "vector": pa.array([[1.0, 2.0]] * len(ids), pa.list_(pa.float32())),
    }
    return pa.record_batch(columns).replace_schema_metadata(METADATA)


def rows_of(output: Path) -> list[tuple[str, str]]:
    """Id and directory of every row, sorted."""
    return sorted((row, str(path.parent.relative_to(output))) for path in parts(output) for row in ids_of(path))


def timed_batch(seconds: Iterable[float | None]) -> pa.RecordBatch:
    moments = [None if second is None else round(second * 1e6) for second in seconds]
    return pa.record_batch(
        {
            "id": pa.array([str(index) for index in range(len(moments))]),
            "timestamp": pa.array(moments, pa.timestamp("us", tz="UTC")),
        }
    )
