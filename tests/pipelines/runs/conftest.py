"""Inputs of several formats, what one worker makes of them, and a run that fails."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import score
from tests.pipelines.conftest import Finished, posts, read_scores, write_lines

LOOPBACK = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several files of several formats, with some records that are none."""
    directory = tmp_path_factory.mktemp("in")
    rows = posts(3000)
    write_lines(directory / "a.jsonl", [*rows[:1000], "not json", *rows[1000:1500]])
    pq.write_table(pa.Table.from_pylist(rows[1500:]), directory / "b.parquet", row_group_size=400)
    return directory


@pytest.fixture(scope="session")
def reference(model: str, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What one worker in one process gives."""
    output = tmp_path_factory.mktemp("reference") / "one"
    common = ["--model", model, "--progress", "off", "--input", f"{inputs}/*", "--output"]
    assert score.main([*common, str(output)]) == 0
    table = read_scores(output)
    assert table["id"].to_pylist() == sorted(row["id"] for row in posts(3000))  # type: ignore[index]
    return table


def assert_failed(finished: Finished, expected: str) -> None:
    """The run has failed, and its last line says why."""
    assert finished.status == 1, finished
    assert finished.err.splitlines()[-1].startswith("failed: "), finished.err
    assert expected in finished.err.splitlines()[-1]
    assert "Traceback" not in finished.err
