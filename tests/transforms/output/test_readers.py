"""Other people's readers open the files, and find the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.conftest import Run, make_texts
from tests.transforms.output.batches import numbered_batches, partitioned, write
from torchmoji_core.bundle import Bundle
from transforms import WriteDeadLetters
from transforms.columns import OUTPUTS
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, Tweet
from transforms.scoring.run_inference import RecordBatchHandler
from transforms.scoring.tokenize import tokenize


def test_partitions_are_columns_to_readers(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path, [partitioned([("1", "lang=a%2Fb"), ("2", "lang=two words"), ("3", "lang=%F0%9F%98%82")])])
    with duckdb.connect() as connection:
        query = f"select id, lang from read_parquet('{tmp_path}/lang*/*.parquet', hive_partitioning=true) order by id"
        assert connection.sql(query).fetchall() == [("1", "a/b"), ("2", "two words"), ("3", "😂")]
    table = pq.read_table(tmp_path).sort_by("id")
    assert table["lang"].to_pylist() == ["a/b", "two words", "😂"]


def scored_batch(bundle: Bundle, model: str, embedding_type: str) -> pa.RecordBatch:
    """Real output of the model, with two texts without tokens among it."""
    texts = [*make_texts(20), "", *make_texts(20, seed=1), " "]
    rows = [tokenize(Tweet(f"{i:03}", text, i), bundle.tokenizer, bundle.maxlen) for i, text in enumerate(texts)]
    options = ScoreOptions(model, outputs=OUTPUTS, embedding_type=embedding_type, timestamp=True)
    handler = RecordBatchHandler(options)
    (scored,) = handler.run_inference(rows, handler.load_model())
    return scored.parts[0]


def read_with_pyarrow(directory: Path) -> list[dict[str, Any]]:
    return pq.read_table(directory).to_pylist()


def read_with_pandas(directory: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(directory).to_dict("records")


def read_with_polars(directory: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(directory / "*.parquet").to_dicts()


def read_with_duckdb(directory: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.sql(f"select * from '{directory}/*.parquet'")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("read", [read_with_pyarrow, read_with_pandas, read_with_polars, read_with_duckdb])
@pytest.mark.parametrize("embedding_type", ["float16", "float32"])
def test_every_reader_gives_the_same_values(
    read: Callable[[Path], list[dict[str, Any]]],
    embedding_type: str,
    run: Run,
    bundle: Bundle,
    model: str,
    tmp_path: Path,
) -> None:
    batch = scored_batch(bundle, model, embedding_type)
    write(run, tmp_path, [batch.slice(0, 30), batch.slice(30)], rows_per_group=8)
    rows = sorted(read(tmp_path), key=lambda row: row["id"])
    expected = batch.to_pylist()
    assert len(rows) == len(expected) == 42
    empty = 0
    for found, row in zip(rows, expected, strict=True):
        assert list(found) == batch.schema.names
        for name in ("id", "text", "n_tokens", "n_unknown", "truncated", "status"):
            assert found[name] == row[name]
        for name in ("probabilities", "embedding"):
            if row[name] is None:
                assert found[name] is None
            else:
                np.testing.assert_array_equal(np.asarray(found[name], np.float64), np.asarray(row[name], np.float64))
        if row["status"] == "empty":
            empty += 1
            assert found["top_emojis"] is None
            assert found["attention"] is None
        else:
            assert list(found["top_emojis"]) == row["top_emojis"]
            assert [item["token"] for item in found["attention"]] == [item["token"] for item in row["attention"]]
    assert empty == 2


def test_other_files_in_the_directory_are_passed_over(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        letters = pipeline | beam.Create([DeadLetter("a", "1", "bad", b"x")])
        return {"files": letters | WriteDeadLetters(str(tmp_path), "run")}

    run(build)
    write(run, tmp_path, numbered_batches([3]))
    assert pq.read_table(tmp_path)["id"].to_pylist() == ["00000", "00001", "00002"]
