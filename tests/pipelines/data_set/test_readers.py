"""Readers that are too large for every test run, or need another DuckDB: Spark, and DuckDB's own extension for Delta.

`make test-readers` installs them into an environment of their own and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data_set.snapshot import live_files
from tests.pipelines.conftest import Finished, corpus, read_live, read_scores, write_lines
from torchmoji_core import Bundle
from torchmoji_core.inference.scorer import Scorer

PYTHON = Path(__file__).parents[3] / ".venv-engines" / "bin" / "python"
if not PYTHON.exists():
    pytest.skip("these readers are not installed here: make test-readers", allow_module_level=True)

SPARK = """
import json, sys
from pyspark.sql import SparkSession
settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
rows = spark.read.option("basePath", "out").parquet(*sys.argv[1:]).collect()
print(json.dumps([[row["id"], row["embedding"], row["date"].isoformat()] for row in rows]))
"""
DUCKDB = """
import json, pathlib, duckdb, duckdb_extension_delta
(extension,) = pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension")
duckdb.execute(f"LOAD '{extension}'")  # signed by DuckDB, which refuses others
rows = duckdb.sql("SELECT id, embedding, date FROM delta_scan('out')").fetchall()
print(json.dumps([[*row[:2], row[2].isoformat()] for row in rows]))
"""

MAP_IN_ARROW = """
import json, sys
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from torchmoji_core import ArrowScorer
settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
frame = spark.createDataFrame([(None,), ("so happy",), ("late again",)], "text string")
scorer = ArrowScorer("text", sys.argv[1])
rows = frame.mapInArrow(scorer.batches, from_arrow_schema(scorer.schema(to_arrow_schema(frame.schema)))).collect()
print(json.dumps([[row["text"], row["status"], row["probabilities"], row["embedding"]] for row in rows]))
"""


def test_spark_scores_by_the_scorer_for_arrow(model: str, bundle: Bundle) -> None:
    root = Path(__file__).parents[3]
    finished = subprocess.run(
        [PYTHON, "-c", MAP_IN_ARROW, model],
        capture_output=True, text=True, check=False, timeout=900,
        env={**os.environ, "PYTHONPATH": str(root), "PYSPARK_PYTHON": str(PYTHON)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    expected = Scorer(bundle, embedding_type="float32").score(["", "so happy", "late again"]).to_arrow()
    columns = [expected.column(name).to_pylist() for name in ("status", "probabilities", "embedding")]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found == [[text, *row] for text, *row in zip([None, "so happy", "late again"], *columns, strict=True)]


HALF_FLOATS = """
import json
import numpy as np
from pyspark.sql import SparkSession
settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
spark = SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
try:
    spark.read.parquet("out")
except Exception as error:
    refused = str(error)
rows = spark.read.schema("id string, embedding array<binary>").parquet("out").sort("id").collect()
plain = spark.read.schema("id string, probabilities array<float>").parquet("out").count()
vectors = [np.frombuffer(b"".join(row["embedding"]), "<f2").tolist() for row in rows]
print(json.dumps([refused, plain, vectors]))
"""


def test_spark_reads_half_floats_by_a_schema(tmp_path: Path, run_score: Callable[..., Finished]) -> None:
    """As docs/engines.md says; and DuckDB makes floats of them, for a schema that Spark finds by itself."""
    texts = write_lines(tmp_path / "in.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(["so", "happy"])])
    assert run_score("--input", texts, "--output", "out", "--embedding_type", "float16").status == 0
    table = read_scores(tmp_path / "out")
    duckdb.sql("COPY (SELECT * REPLACE (embedding::FLOAT[] AS embedding) FROM 'out/*.parquet') TO 'floats.parquet'")
    floats = pq.read_table("floats.parquet").sort_by("id")
    assert floats["embedding"].type.value_type == pa.float32()
    assert floats["embedding"].to_pylist() == table["embedding"].to_pylist()
    finished = subprocess.run([PYTHON, "-c", HALF_FLOATS], capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    refused, plain, vectors = json.loads(finished.stdout.splitlines()[-1])
    assert "PARQUET_TYPE_ILLEGAL" in refused
    assert plain == 2
    assert vectors == table["embedding"].to_pylist()


@pytest.mark.parametrize("program", [SPARK, DUCKDB], ids=["Spark", "DuckDB"])
def test_readers_see_the_live_rows_and_no_others(
    tmp_path: Path, run_annotate: Callable[..., Finished], program: str
) -> None:
    paths = corpus(tmp_path / "in", 3, 10)
    assert run_annotate().status == 0
    write_lines(paths[0], [{"id": "new", "text": "so happy"}])
    assert run_annotate().status == 0
    finished = subprocess.run(
        [PYTHON, "-c", program, *live_files("out")], capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    table = read_live(tmp_path / "out")
    expected = [
        list(row) for row in zip(*(table[name].to_pylist() for name in ("id", "embedding", "date")), strict=True)
    ]
    assert len(expected) == 21
    assert sorted(json.loads(finished.stdout.splitlines()[-1])) == expected
