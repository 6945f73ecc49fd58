"""Readers that are too large for every test run, or need another DuckDB: Spark, and DuckDB's own extension for Delta.

`make test-readers` installs them into an environment of their own and runs this.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.data_set.snapshot import live_files
from tests.pipelines.conftest import Finished, corpus, read_live, write_lines

PYTHON = Path(__file__).parents[3] / ".venv-readers" / "bin" / "python"
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
