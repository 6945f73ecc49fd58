"""WriteScores and WriteDeadLetters: whole files that any reader opens, each row once and in its own window."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    IntervalWindow,
    SlidingWindows,
    TimestampedValue,
)
from apache_beam.utils.windowed_value import PaneInfoTiming
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import Ran, Run, make_texts
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError, RunError
from transforms import WriteDeadLetters, WriteScores, metrics
from transforms.columns import OUTPUTS, PARTITION_COLUMN
from transforms.options import ScoreOptions
from transforms.output.commit import WrittenFile, commit, committed_files, latencies
from transforms.output.file_writers import BYTES_PER_BATCH, ParquetFileWriter
from transforms.output.write import MAX_OPEN_FILES, ScoreFiles, window_directory
from transforms.records import DeadLetter, Tweet
from transforms.scoring.score import RecordBatchHandler
from transforms.scoring.tokenize import tokenize
from transforms.storage import files as storage

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


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[7, 25, 1, 40], [73], [1] * 73, [10] * 7 + [3], [100, 1]], ids=str)
def test_a_new_file_begins_exactly_at_its_number_of_rows(sizes: list[int], run: Run, tmp_path: Path) -> None:
    ran = write(run, tmp_path, numbered_batches(sizes), rows_per_file=10)
    total = sum(sizes)
    contents = sorted(map(ids_of, parts(tmp_path)))
    assert sorted(map(len, contents)) == sorted([10] * (total // 10) + [total % 10] * (total % 10 > 0))
    assert [tweet_id for content in contents for tweet_id in content] == [f"{index:05}" for index in range(total)]
    assert ran.count(metrics.ROWS_WRITTEN) == total
    assert ran.count(metrics.FILES_WRITTEN) == len(contents) == len(ran["files"])


def test_what_is_reported_is_what_is_there(run: Run, tmp_path: Path) -> None:
    ran = write(run, tmp_path, numbered_batches([25]), run_id="run-7", rows_per_file=10)
    assert sorted(file.final for file in ran["files"]) == [str(path) for path in parts(tmp_path)]
    for file in ran["files"]:
        path = Path(file.final)
        assert path.name.startswith("part-run-7-")
        assert file.bytes_ == path.stat().st_size
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file.rows == pq.ParquetFile(path).metadata.num_rows
        assert not Path(file.temporary).exists()
    assert sorted(ran["files"]) == committed_files(str(tmp_path), "run-7")
    assert ran.count(metrics.BYTES_WRITTEN) == sum(path.stat().st_size for path in parts(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "per_group", "groups"),
    [
        ([1] * 10, 4, [4, 4, 2]),
        ([3] * 5, 4, [6, 6, 3]),
        ([2] * 5, 1000, [10]),
        ([9], 4, [9]),
        ([5, 5, 5, 5], 10, [10, 10]),
    ],
    ids=str,
)
def test_row_groups(sizes: list[int], per_group: int, groups: list[int], run: Run, tmp_path: Path) -> None:
    write(run, tmp_path, numbered_batches(sizes), rows_per_group=per_group)
    (path,) = parts(tmp_path)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == groups


def test_codec_and_metadata(run: Run, tmp_path: Path) -> None:
    batches = numbered_batches([5, 5])
    write(run, tmp_path, batches, rows_per_file=4)
    for path in parts(tmp_path):
        file = pq.ParquetFile(path)
        group = file.metadata.row_group(0)
        assert {group.column(index).compression for index in range(group.num_columns)} == {"ZSTD"}
        assert file.schema_arrow.equals(batches[0].schema, check_metadata=True)
        assert file.schema_arrow.metadata[b"torchmoji.classes"].decode() == METADATA["torchmoji.classes"]


def test_no_rows_no_files(run: Run, tmp_path: Path) -> None:
    ran = write(run, tmp_path, [])
    assert parts(tmp_path) == ran["files"] == []


def test_a_second_run_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path, numbered_batches([5]))
    before = {path: path.read_bytes() for path in parts(tmp_path)}
    write(run, tmp_path, numbered_batches([5]))
    assert len(parts(tmp_path)) == 2
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("name", ["run[1]", "what? a*", "ünï code", "deep/er/still"])
def test_outputs_of_any_name(name: str, run: Run, tmp_path: Path) -> None:
    """Brackets once passed for a glob that matched nothing, and the run failed."""
    write(run, tmp_path / name, numbered_batches([5]))
    assert [ids_of(path) for path in parts(tmp_path)] == [[f"{index:05}" for index in range(5)]]
    assert parts(tmp_path)[0].parent == tmp_path / name


@pytest.mark.parametrize("arguments", [{"rows_per_file": 0}, {"rows_per_group": 0}, {"rows_per_file": -1}], ids=str)
def test_numbers_of_rows_are_checked_when_the_pipeline_is_built(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        WriteScores("output", "run", **arguments)


# --- partitions ----------------------------------------------------------------------------------------------------


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


def test_rows_lie_in_the_directories_of_their_partitions(run: Run, tmp_path: Path) -> None:
    names = ["date=2026-01-31", "date=2026-02-01/lang=en", "date=2026-02-01/lang=..%2F..", ""]
    rows = [(f"{index:04}", names[index % 7 % 4]) for index in range(500)]
    batches = [partitioned(rows[first : first + 23]) for first in range(0, 500, 23)]
    ran = write(run, tmp_path, batches, rows_per_file=60)
    assert rows_of(tmp_path) == [(row, name or ".") for row, name in rows]
    assert max(map(len, map(ids_of, parts(tmp_path)))) == 60
    for path in parts(tmp_path):
        assert ids_of(path) == sorted(ids_of(path)), "rows stay in their order"
        schema = pq.read_schema(path)
        assert schema.names == ["id", "source", "vector"]
        assert schema.metadata[b"torchmoji.fingerprint"] == b"abc"
    assert ran.count(metrics.ROWS_WRITTEN) == 500
    assert ran.count(metrics.FILES_WRITTEN) == len(parts(tmp_path)) == len(ran["files"])


def test_partitions_are_columns_to_readers(run: Run, tmp_path: Path) -> None:
    write(run, tmp_path, [partitioned([("1", "lang=a%2Fb"), ("2", "lang=two words"), ("3", "lang=%F0%9F%98%82")])])
    with duckdb.connect() as connection:
        query = f"select id, lang from read_parquet('{tmp_path}/lang*/*.parquet', hive_partitioning=true) order by id"
        assert connection.sql(query).fetchall() == [("1", "a/b"), ("2", "two words"), ("3", "😂")]
    table = pq.read_table(tmp_path).sort_by("id")
    assert table["lang"].to_pylist() == ["a/b", "two words", "😂"]


def test_partitions_and_windows_go_together(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batch = partitioned([("1", "lang=en"), ("2", "lang=de")])
        batches = pipeline | beam.Create([TimestampedValue(batch, 5), TimestampedValue(batch, HOUR)])
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    hours = ("date=1970-01-01/hour=00", "date=1970-01-01/hour=01")
    assert rows_of(tmp_path) == sorted(
        (row, f"{hour}/{lang}") for hour in hours for row, lang in (("1", "lang=en"), ("2", "lang=de"))
    )


def open_below(directory: Path) -> int:
    """How many files below a directory this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith(str(directory))
        except FileNotFoundError:
            continue  # of the listing itself
    return count


def test_of_many_partitions_few_files_are_open_and_every_row_is_there_once(tmp_path: Path) -> None:
    """Every row is a row group here, so that every partition wants an open file."""
    files = ScoreFiles(str(tmp_path), "run", 100, 1)
    rows = [(f"{index:05}", f"key={index * 7 % 300}") for index in range(1500)]
    opened = []
    for first in range(0, len(rows), 10):
        files.write(partitioned(rows[first : first + 10]), GlobalWindow())
        opened.append(open_below(tmp_path))
    closed = files.close()
    assert MAX_OPEN_FILES - 10 <= max(opened) <= MAX_OPEN_FILES
    assert open_below(tmp_path) == 0
    for _, file in closed:
        commit(file)
    assert rows_of(tmp_path) == rows
    assert len({name for _, name in rows_of(tmp_path)}) == 300


def test_many_partitions_with_a_few_rows_wait_in_memory_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the largest is written, so that files are few: one for each partition here, of few row groups."""
    monkeypatch.setattr("transforms.output.write.WAITING_BYTES", 40 * BYTES_PER_BATCH + 20_000)
    files = ScoreFiles(str(tmp_path), "run", 100_000, 4096)
    rows = [(f"{index:05}", f"key={index % 40}") for index in range(8000)]
    for first in range(0, len(rows), 50):
        files.write(partitioned(rows[first : first + 50]), GlobalWindow())
        assert files.waiting_bytes <= 40 * BYTES_PER_BATCH + 20_000
    for _, file in files.close():
        commit(file)
    assert rows_of(tmp_path) == rows
    assert len(parts(tmp_path)) == 40
    assert max(pq.ParquetFile(path).metadata.num_row_groups for path in parts(tmp_path)) > 1


def test_rows_are_counted_by_their_sources(run: Run, tmp_path: Path) -> None:
    batches = [partitioned([(str(index), f"key={index % 3}")] * 5, f"{index % 4}.jsonl") for index in range(40)]
    ran = write(run, tmp_path, batches, rows_per_file=17)
    total: dict[str, int] = {}
    for file in ran["files"]:
        column = pq.ParquetFile(file.final).read(["source"])["source"].to_pylist()
        assert file.sources == {source: column.count(source) for source in set(column)}
        for source, n in file.sources.items():
            total[source] = total.get(source, 0) + n
    assert total == {f"{index}.jsonl": 50 for index in range(4)}


def test_without_a_source_column_no_sources_are_counted(run: Run, tmp_path: Path) -> None:
    ran = write(run, tmp_path, numbered_batches([5]))
    assert [file.sources for file in ran["files"]] == [{}]


def test_committed_files_are_those_of_the_run_alone(run: Run, tmp_path: Path) -> None:
    first = write(run, tmp_path, numbered_batches([25]), run_id="one", rows_per_file=10)
    second = write(run, tmp_path, [partitioned([("1", "lang=en")])], run_id="two")
    assert committed_files(str(tmp_path), "one") == sorted(first["files"])
    assert committed_files(str(tmp_path), "two") == second["files"]
    assert committed_files(str(tmp_path), "three") == []


# --- readers -------------------------------------------------------------------------------------------------------


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


# --- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "directory"),
    [
        (GlobalWindow(), ""),
        (IntervalWindow(0, HOUR), "date=1970-01-01/hour=00"),
        (IntervalWindow(1711011512, 1711011572), "date=2024-03-21/hour=08"),
        (IntervalWindow(-1, 59), "date=1969-12-31/hour=23"),
        (IntervalWindow(-9223372036800, -9223372033200), ""),
    ],
    ids=str,
)
def test_window_directories(window: Any, directory: str) -> None:
    assert window_directory(window) == directory


def directory_of(tweet_id: str) -> str:
    """The ids of these tests begin with their time in seconds."""
    moment = datetime.fromtimestamp(int(tweet_id.split("-")[0]), UTC)
    return f"date={moment:%Y-%m-%d}/hour={moment:%H}"


def assert_in_windows(output: Path, ids: Iterable[str]) -> None:
    """Every file opens, every row lies in its window's directory, every id is there once."""
    found = []
    for path in parts(output):
        content = ids_of(path)
        assert content
        assert {directory_of(tweet_id) for tweet_id in content} == {str(path.parent.relative_to(output))}
        found += content
    assert sorted(found) == sorted(ids)


def test_windows_of_a_bounded_run(run: Run, tmp_path: Path) -> None:
    ids = [f"{index * 600}-{index}" for index in range(200)]

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create([TimestampedValue(make_batch([x]), int(x.split("-")[0])) for x in ids])
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run", 4)}

    ran = run(build)
    assert_in_windows(tmp_path, ids)
    assert ran.count(metrics.ROWS_WRITTEN) == 200
    assert ran.count(metrics.FILES_WRITTEN) == len(parts(tmp_path)) == 67  # 33 full hours of 4 + 2, one of 2


def test_windowed_data_without_timestamps(run: Run, tmp_path: Path) -> None:
    """Beam puts it before all dates; that once ended the run."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create(numbered_batches([3])).with_output_types(pa.RecordBatch)
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    (path,) = parts(tmp_path)
    assert path.parent == tmp_path


def test_sliding_windows_have_each_row_in_each(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create([TimestampedValue(make_batch(["a", "b"]), 5000)])
        return {"files": batches | beam.WindowInto(SlidingWindows(2 * HOUR, HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    assert [(str(path.parent.relative_to(tmp_path)), ids_of(path)) for path in parts(tmp_path)] == [
        ("date=1970-01-01/hour=00", ["a", "b"]),
        ("date=1970-01-01/hour=01", ["a", "b"]),
    ]


def test_a_stream_with_two_windows_in_one_bundle_and_a_late_element(run: Run, tmp_path: Path) -> None:
    """What corrupts or mixes the files of Beam's own sinks."""
    at_once = [f"{second}-{index}" for index, second in enumerate([10, HOUR + 10, 20, HOUR + 20, 30, 2 * HOUR + 5])]
    stream = (
        test_stream.TestStream()
        .advance_watermark_to(0)
        .add_elements([TimestampedValue(x, int(x.split("-")[0])) for x in at_once])
        .advance_watermark_to(2 * HOUR)
        .add_elements([TimestampedValue("40-late", 40), TimestampedValue(f"{HOUR + 40}-late", HOUR + 40)])
        .advance_watermark_to_infinity()
    )

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | stream
            | beam.WindowInto(FixedWindows(HOUR), allowed_lateness=10 * HOUR)
            | beam.Map(lambda tweet_id: make_batch([tweet_id]))
        )
        return {"files": batches | WriteScores(str(tmp_path), "run")}

    ran = run(build, streaming=True)
    assert_in_windows(tmp_path, [*at_once, "40-late", f"{HOUR + 40}-late"])
    assert [path.parent.name for path in parts(tmp_path)] == ["hour=00"] * 2 + ["hour=01"] * 2 + ["hour=02"]
    # Not the counter: the counters of this runner miss all but the first bundle of a step.
    assert sum(file.rows for file in ran["files"]) == 8


def test_early_on_time_and_late_panes(run: Run, tmp_path: Path) -> None:
    """Each pane gets files of its own: the next one must not replace them."""
    stream = test_stream.TestStream().advance_watermark_to(0)
    ids = []
    for step, (watermark, seconds) in enumerate(
        [
            (100, [10, 20, 30, HOUR + 10, HOUR + 20]),  # early: at two elements of a key
            (200, [40, HOUR + 30]),
            (2 * HOUR + 1, []),  # both windows close
            (2 * HOUR + 2, [50]),  # late
            (2 * HOUR + 3, [60, HOUR + 40]),
        ]
    ):
        new = [f"{second}-{step}" for second in seconds]
        ids += new
        if new:
            stream = stream.add_elements([TimestampedValue(x, int(x.split("-")[0])) for x in new])
        stream = stream.advance_watermark_to(watermark)
    stream = stream.advance_watermark_to_infinity()
    trigger = AfterWatermark(early=AfterCount(2), late=AfterCount(1))

    def pane_of(batch: pa.RecordBatch, pane: Any = beam.DoFn.PaneInfoParam) -> str:
        return PaneInfoTiming.to_string(pane.timing)

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | stream
            | beam.WindowInto(
                FixedWindows(HOUR),
                trigger=trigger,
                accumulation_mode=AccumulationMode.DISCARDING,
                allowed_lateness=10 * HOUR,
            )
            | beam.Map(lambda tweet_id: ("all", tweet_id))
            | beam.GroupByKey()
            | beam.FlatMap(lambda group: [make_batch(group[1])] if group[1] else [])
        )
        return {"files": batches | WriteScores(str(tmp_path), "run"), "panes": batches | beam.Map(pane_of)}

    ran = run(build, streaming=True)
    assert_in_windows(tmp_path, ids)
    assert set(ran["panes"]) == {"EARLY", "ON_TIME", "LATE"}
    assert len(parts(tmp_path)) == len(ran["files"]) >= 5
    assert sum(file.rows for file in ran["files"]) == len(ids)


# --- models and moments --------------------------------------------------------------------------------------------


def test_models_are_not_mixed_in_a_file(run: Run, tmp_path: Path) -> None:
    """One may be replaced by the next in the middle of a bundle, and what a file says of its model is for all rows."""
    batches = []
    for index, batch in enumerate(numbered_batches([3] * 8)):
        model = "first" if index < 3 or index == 6 else "second"
        batches.append(batch.replace_schema_metadata({"torchmoji.fingerprint": model}))
    wider = batches[7].append_column("more", pa.array([1, 2, 3]))
    batches[7] = wider.replace_schema_metadata(batches[7].schema.metadata)
    write(run, tmp_path, batches)
    found = {}
    for path in parts(tmp_path):
        schema = pq.read_schema(path)
        found[schema.metadata[b"torchmoji.fingerprint"].decode(), "more" in schema.names] = ids_of(path)
    ids = [batch["id"].to_pylist() for batch in batches]
    assert found == {
        ("first", False): [*ids[0], *ids[1], *ids[2], *ids[6]],
        ("second", False): [*ids[3], *ids[4], *ids[5]],
        ("second", True): ids[7],
    }


def timed_batch(seconds: Iterable[float | None]) -> pa.RecordBatch:
    moments = [None if second is None else round(second * 1e6) for second in seconds]
    return pa.record_batch(
        {
            "id": pa.array([str(index) for index in range(len(moments))]),
            "timestamp": pa.array(moments, pa.timestamp("us", tz="UTC")),
        }
    )


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


@pytest.mark.parametrize(("windows", "groups"), [(20, 20), (400, 400)])
def test_small_batches_that_wait_take_little_memory(
    windows: int, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows a batch has, it takes kilobytes of which Arrow does not count any; and yet a window's rows are
    not written one by one."""
    monkeypatch.setattr("transforms.output.write.WAITING_BYTES", 100 * BYTES_PER_BATCH)
    files = ScoreFiles(str(tmp_path), "run", 100_000, 4096)
    written: list[weakref.ref[pa.RecordBatch]] = []
    for index in range(400):
        batch = timed_batch([index])
        written.append(weakref.ref(batch))
        files.write(batch, IntervalWindow(index % windows, 1000))
        del batch
        assert sum(one() is not None for one in written) <= 100
        assert files.waiting_bytes <= 100 * BYTES_PER_BATCH
    closed = [file for _, file in files.close()]
    assert sum(file.rows for file in closed) == 400
    assert sum(pq.ParquetFile(file.temporary).metadata.num_row_groups for file in closed) == groups


# --- failures ------------------------------------------------------------------------------------------------------


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


# --- dead letters --------------------------------------------------------------------------------------------------

LETTERS = [
    DeadLetter("x.jsonl", "17", "not JSON: Expecting value", b'{"text": '),
    DeadLetter("x.jsonl", "99", "not UTF-8", b"na\xefve \xff\xfe\0"),
    DeadLetter("s3://bucket/ünï.csv.gz", "0", "record has 1 fields", bytes(range(256)) * 10),
    DeadLetter("", "", "", b""),
    DeadLetter("x.txt", "5", 'quotes " and\nnewlines\u2028', "☕\r\n".encode()),
    DeadLetter("name-\udcff.txt", "half \ud83d", "lone \udc00 surrogates", b"x"),
]


def test_dead_letters_survive_as_json_lines(run: Run, tmp_path: Path) -> None:
    """With any bytes; and with lone surrogates, as names of files can have them: those once ended the run."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"files": pipeline | beam.Create(LETTERS) | WriteDeadLetters(str(tmp_path), "run")}

    ran = run(build)
    found = []
    for path in parts(tmp_path):
        assert path.parent == tmp_path / "_dead_letters"
        for line in path.read_bytes().splitlines():
            fields = json.loads(line)
            assert list(fields) == ["source", "position", "reason", "raw", "text"]
            raw = base64.b64decode(fields["raw"], validate=True)
            assert fields["text"] == raw.decode("utf-8", "replace")
            found.append(DeadLetter(fields["source"], fields["position"], fields["reason"], raw))
    assert sorted(found) == sorted(LETTERS)
    assert ran.count(metrics.DEAD) == len(LETTERS)
    counted: dict[str, int] = {}
    for file in ran["files"]:
        content = Path(file.final).read_bytes()
        assert (file.bytes_, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.rows == len(content.splitlines())
        for source, n in file.sources.items():
            counted[source] = counted.get(source, 0) + n
    assert counted == {"x.jsonl": 2, "s3://bucket/ünï.csv.gz": 1, "": 1, "x.txt": 1, "name-\ufffd.txt": 1}
    assert ran.count(metrics.FILES_WRITTEN) == len(ran["files"]) == len(parts(tmp_path))
    assert ran.count(metrics.ROWS_WRITTEN) == 0


def test_dead_letters_of_windows(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        letters = pipeline | beam.Create(
            [TimestampedValue(DeadLetter("x", str(second), "bad", b""), second) for second in (5, 10, HOUR)]
        )
        return {"files": letters | beam.WindowInto(FixedWindows(HOUR)) | WriteDeadLetters(str(tmp_path), "run")}

    run(build)
    found = {str(path.parent.relative_to(tmp_path)): len(path.read_text().splitlines()) for path in parts(tmp_path)}
    assert found == {"_dead_letters/date=1970-01-01/hour=00": 2, "_dead_letters/date=1970-01-01/hour=01": 1}


def test_without_dead_letters_there_is_no_file(run: Run, tmp_path: Path) -> None:
    run(lambda pipeline: {"files": pipeline | beam.Create([]) | WriteDeadLetters(str(tmp_path), "run")})
    assert list(tmp_path.iterdir()) == []
