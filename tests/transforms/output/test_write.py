"""WriteScores: whole files of the sizes that were asked for, each row once, in its partition's directory."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.transforms.window import (
    GlobalWindow,
    IntervalWindow,
)

from tests.transforms.conftest import Run
from tests.transforms.output.batches import (
    METADATA,
    ids_of,
    numbered_batches,
    partitioned,
    parts,
    rows_of,
    timed_batch,
    write,
)
from torchmoji_core.errors import InputError
from transforms import WriteScores, metrics
from transforms.output.commit import commit, committed_files
from transforms.output.file_writers import BYTES_PER_BATCH
from transforms.output.write import MAX_OPEN_FILES, ScoreFiles

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
    rows = [(f"{index:05}", f"key={index * 7 % 160}") for index in range(640)]
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
    assert len({name for _, name in rows_of(tmp_path)}) == 160


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
