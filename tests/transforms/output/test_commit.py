"""Files are put in place whole and once; what fails before leaves nothing under a final name."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.window import (
    GlobalWindow,
    IntervalWindow,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import Run
from tests.transforms.output.batches import (
    HOUR,
    ids_of,
    make_batch,
    numbered_batches,
    partitioned,
    parts,
    timed_batch,
    write,
)
from torchmoji_core.errors import RunError
from transforms import WriteScores, metrics
from transforms.output.commit import WrittenFile, commit, committed_files, latencies
from transforms.output.file_writers import ParquetFileWriter
from transforms.output.write import ScoreFiles
from transforms.storage import files as storage


def test_committed_files_are_those_of_the_run_alone(run: Run, tmp_path: Path) -> None:
    first = write(run, tmp_path, numbered_batches([25]), run_id="one", rows_per_file=10)
    second = write(run, tmp_path, [partitioned([("1", "lang=en")])], run_id="two")
    assert committed_files(str(tmp_path), "one") == sorted(first["files"])
    assert committed_files(str(tmp_path), "two") == second["files"]
    assert committed_files(str(tmp_path), "three") == []


@pytest.mark.parametrize("measured", [True, False])
def test_latency_is_from_the_event_to_the_file(measured: bool, run: Run, tmp_path: Path) -> None:
    before = time.time()
    batches = [timed_batch([before - 5, None, before - 65]), timed_batch([before - 20]), timed_batch([None])]
    ran = write(run, tmp_path, batches, measure_latency=measured)
    if not measured:
        assert metrics.LATENCY not in ran.distributions
        return
    latency = ran.distributions[metrics.LATENCY]
    took = 1000 * (time.time() - before) + 2
    assert latency.count == 3
    assert 5000 <= latency.min <= 5000 + took
    assert 65_000 <= latency.max <= 65_000 + took
    assert 90_000 <= latency.sum <= 90_000 + 3 * took


@given(
    st.lists(
        st.lists(st.none() | st.integers(-(2**40), 2**42).map(lambda ms: ms / 1000), max_size=6), min_size=1, max_size=6
    )
)
@settings(deadline=None)
def test_latencies_have_the_distribution_that_those_of_the_rows_have(columns: list[list[float | None]]) -> None:
    writer = ParquetFileWriter("unused", "unused", timed_batch([]).schema, rows_per_group=1000)
    for column in columns:
        writer.write(timed_batch(column))
    now = 2**41
    expected = [now - round(1000 * second) for column in columns for second in column if second is not None]
    found = list(latencies(writer.event_times, now))
    assert len(found) == len(expected)
    assert sum(found) == sum(expected)
    assert not expected or (min(found), max(found)) == (min(expected), max(expected))


def fail_at(batch: pa.RecordBatch, tweet_id: str) -> pa.RecordBatch:
    if tweet_id in batch["id"].to_pylist():
        raise ValueError("on purpose")
    return batch


def test_an_exception_in_the_middle_of_a_bundle_leaves_nothing_under_a_final_name(run: Run, tmp_path: Path) -> None:
    """Neither the file being written nor those of the bundle that were full."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create(numbered_batches([5] * 10), reshuffle=False) | beam.Map(fail_at, "00044")
        return {"files": batches | WriteScores(str(tmp_path), "run", rows_per_file=10)}

    with pytest.raises(Exception, match="on purpose"):
        run(build)
    assert [path.name for path in tmp_path.iterdir()] == ["_tmp"]
    assert list((tmp_path / "_tmp" / "run").iterdir()), "the bundle had begun to write"


def closed_file(tmp_path: Path, rows: int = 3) -> WrittenFile:
    files = ScoreFiles(str(tmp_path), "run", 100, 100)
    files.write(make_batch(str(index) for index in range(rows)), IntervalWindow(0, HOUR))
    ((window, file),) = files.close()
    assert window == IntervalWindow(0, HOUR)
    return file


def test_commit_is_idempotent(tmp_path: Path) -> None:
    file = closed_file(tmp_path)
    assert not Path(file.final).exists()
    assert commit(file) == file
    content = Path(file.final).read_bytes()
    assert commit(file) == file
    assert Path(file.final).read_bytes() == content
    assert [ids_of(path) for path in parts(tmp_path)] == [["0", "1", "2"]]


def test_commit_of_a_file_that_is_gone(tmp_path: Path) -> None:
    file = closed_file(tmp_path)
    Path(file.temporary).unlink()
    with pytest.raises(RunError, match="is gone before it could be renamed"):
        commit(file)
    assert parts(tmp_path) == []


def test_commit_where_nothing_can_be_put(tmp_path: Path) -> None:
    file = closed_file(tmp_path)
    (tmp_path / "date=1970-01-01").write_text("a file where a directory is needed")
    with pytest.raises(RunError, match="cannot be put in place"):
        commit(file)
    assert Path(file.temporary).exists()


def test_workers_may_make_the_same_directory_at_the_same_time(tmp_path: Path) -> None:
    for attempt in range(200):
        output = tmp_path / str(attempt)
        files = [
            WrittenFile(
                f"{output}-{index}", f"{output}/date=1/{index}", f"{output}/_tmp/run/{index}.json", 0, 0, "", {}, {}
            )
            for index in range(4)
        ]
        for file in files:
            Path(file.temporary).write_bytes(b"")
        start = threading.Barrier(len(files))

        def commit_with_others(file: WrittenFile, start: threading.Barrier = start) -> WrittenFile:
            start.wait()
            return commit(file)

        with ThreadPoolExecutor(len(files)) as threads:
            assert list(threads.map(commit_with_others, files)) == files


def test_an_empty_directory_is_never_removed_with_a_file_that_was_just_put_there(tmp_path: Path) -> None:
    """Another run's lock for instance; and who is putting it there is not disturbed."""
    directory = f"{tmp_path}/a/b"
    stop = threading.Event()

    def remove() -> None:
        while not stop.is_set():
            storage.remove_empty(directory, deep=False)
            time.sleep(random.uniform(0, 0.0005))  # a run removes it once, not in every moment

    with ThreadPoolExecutor(1) as threads:
        removing = threads.submit(remove)
        try:
            for index in range(1000):
                path = f"{directory}/{index}"
                storage.publish(path, b"x", f"{path}.tmp")
                assert storage.read_bytes(path) == b"x"
                storage.delete([path])
        finally:
            stop.set()
        removing.result()


def test_a_file_that_is_removed_while_it_is_written(tmp_path: Path) -> None:
    files = ScoreFiles(str(tmp_path), "run", 100, 1)
    files.write(make_batch(["1"]), GlobalWindow())
    (temporary,) = (tmp_path / "_tmp" / "run").iterdir()
    temporary.unlink()
    with pytest.raises(RunError, match="is gone before it could be renamed"):
        files.close()
