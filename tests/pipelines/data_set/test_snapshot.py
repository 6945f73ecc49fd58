"""The data set that manifests lead to: what is live, what is retired, and what may be deleted when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data_set import manifest
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from pipelines.data_set.recovery import delete_uncommitted, recover
from pipelines.data_set.snapshot import DataSet, live_files, unlisted_files
from tests.pipelines.data_set.test_manifest import make, write
from torchmoji_core.errors import InputError


def inputs(*paths: str) -> tuple[Input, ...]:
    return tuple(Input(path, 10, 5.0, "jsonl") for path in paths)


def files(*paths: str) -> tuple[DataFile, ...]:
    return tuple(DataFile(path, 1, 1, "") for path in paths)


def replayed(*changes: Manifest) -> DataSet:
    return DataSet("out", changes)


def commit(data_set: DataSet, change: Manifest) -> None:
    """A change that does not depend on the state that is there."""
    assert data_set.commit(lambda state: dataclasses.replace(change, sequence=state.next_sequence)) is not None


def put(output: Path, paths: Iterable[str]) -> None:
    """Write a Parquet file of one row, its own path, for each."""
    for path in paths:
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"name": [path]}), output / path)


# --- replay --------------------------------------------------------------------------------------------------------


def test_without_manifests_it_is_empty() -> None:
    data_set = replayed()
    assert (data_set.live.files, data_set.live.inputs, data_set.live.fingerprint) == ({}, {}, None)
    assert (data_set.identity, data_set.next_sequence, data_set.known_files) == (None, 1, set())


def test_manifests_add_up() -> None:
    data_set = replayed(
        make(1, inputs=inputs("/a"), files=files("part-1")),
        make(5, inputs=inputs("/b"), files=files("x/part-2"), dead_letters=files("_dead_letters/part-3")),
    )
    assert data_set.live.inputs.keys() == {"/a", "/b"}
    assert data_set.live.files.keys() == {"part-1", "x/part-2"}
    assert data_set.live.dead_letters.keys() == {"_dead_letters/part-3"}
    assert data_set.live.all_files.keys() == data_set.known_files
    assert data_set.next_sequence == 6


def test_a_later_manifest_wins() -> None:
    newer = Input("/a", 20, 9.0, "jsonl")
    data_set = replayed(
        make(1, inputs=inputs("/a", "/b"), files=files("part-1", "part-2"), dead_letters=files("part-3")),
        make(2, inputs=(newer,), files=files("part-4"), retired=("part-1", "part-3"), dropped=("/b",)),
    )
    assert data_set.live.inputs == {"/a": newer}
    assert data_set.live.files.keys() == {"part-2", "part-4"}
    assert data_set.live.dead_letters == {}
    assert data_set.retired.keys() == {"part-1", "part-3"}
    assert data_set.known_files == {"part-1", "part-2", "part-3", "part-4"}


def test_an_input_may_come_back() -> None:
    data_set = replayed(
        make(1, inputs=inputs("/a"), files=files("part-1")),
        make(2, dropped=("/a",), retired=("part-1",)),
        make(3, inputs=inputs("/a"), files=files("part-2")),
    )
    assert data_set.live.inputs.keys() == {"/a"}
    assert data_set.live.files.keys() == {"part-2"}


def test_the_order_of_replay_is_that_of_the_files(tmp_path: Path) -> None:
    """Not that in which they were written."""
    changes = [
        make(1, files=files("part-1")),
        make(2, files=files("part-2"), retired=("part-1",)),
        make(10, files=files("part-10"), retired=("part-2",)),
    ]
    for change in reversed(changes):
        write(tmp_path, change)
    assert DataSet.read(f"{tmp_path}/").live.files.keys() == {"part-10"}
    assert DataSet.read(str(tmp_path)).manifests == changes


def test_a_checkpoint_is_all_that_there_is() -> None:
    data_set = replayed(
        make(1, inputs=inputs("/a", "/b"), files=files("part-1", "part-2")),
        make(
            2, inputs=inputs("/a"), files=files("part-2", "part-3"), retired=("part-1",), generation=4, checkpoint=True
        ),
        make(3, inputs=inputs("/c"), files=files("part-4"), generation=4),
    )
    assert data_set.live_generation == 4
    assert data_set.live.inputs.keys() == {"/a", "/c"}
    assert data_set.live.files.keys() == {"part-2", "part-3", "part-4"}
    assert data_set.retired.keys() == {"part-1"}


def test_reading_from_a_checkpoint_gives_what_reading_everything_gives(tmp_path: Path) -> None:
    changes = [
        make(1, inputs=inputs("/a"), files=files("part-1", "part-2")),
        make(2, inputs=inputs("/a"), files=files("part-3"), retired=("part-1", "part-2"), checkpoint=True),
        make(3, inputs=inputs("/b"), files=files("part-4"), retired=("part-3",)),
    ]
    for change in changes:
        write(tmp_path, change)
    found, whole = DataSet.read(str(tmp_path)), replayed(*changes)
    assert found.generations == whole.generations
    assert found.retired == whole.retired
    assert (found.identity, found.next_sequence) == (whole.identity, whole.next_sequence)


def new_model(sequence: int, **values: Any) -> Manifest:
    return make(sequence, model=Model("new", "new", "fp32"), generation=1, **values)


def test_a_generation_is_seen_by_nobody_until_it_is_promoted() -> None:
    data_set = replayed(
        make(1, inputs=inputs("/a", "/b"), files=files("old-1"), dead_letters=files("old-2")),
        new_model(2, inputs=inputs("/a"), files=files("new-1")),
        make(3, inputs=inputs("/c"), files=files("old-3")),
        new_model(4, inputs=inputs("/b"), files=files("new-2")),
    )
    assert data_set.live.files.keys() == {"old-1", "old-3"}
    assert data_set.live.inputs.keys() == {"/a", "/b", "/c"}
    assert data_set.live.fingerprint == "abc"
    assert data_set.generations[1].files.keys() == {"new-1", "new-2"}
    assert data_set.known_files == {"old-1", "old-2", "old-3", "new-1", "new-2"}
    assert data_set.retired == {}

    data_set.apply(new_model(5, promotes=True, finished="2026-02-01T00:00:00+00:00"))
    assert data_set.live.files.keys() == {"new-1", "new-2"}
    assert data_set.live.inputs.keys() == {"/a", "/b"}
    assert data_set.live.fingerprint == "new"
    assert data_set.generations.keys() == {1}
    assert data_set.retired == dict.fromkeys(["old-1", "old-2", "old-3"], "2026-02-01T00:00:00+00:00")


def test_retiring_in_one_generation_leaves_the_others_alone() -> None:
    data_set = replayed(
        make(1, files=files("old")),
        new_model(2, files=files("new-1")),
        new_model(3, files=files("new-2"), retired=("new-1",)),
    )
    assert data_set.live.files.keys() == {"old"}
    assert data_set.generations[1].files.keys() == {"new-2"}


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_commit_is_seen_at_once_and_by_the_next_reader(tmp_path: Path) -> None:
    data_set = DataSet.read(str(tmp_path))
    put(tmp_path, ["lang=en/part-1.parquet", "lang=de/part-2.parquet", "part-staged.parquet"])
    commit(data_set, make(1, files=files("lang=en/part-1.parquet", "lang=de/part-2.parquet")))
    commit(data_set, new_model(2, files=files("part-staged.parquet")))
    assert data_set.live.files.keys() == DataSet.read(str(tmp_path)).live.files.keys()
    found = live_files(str(tmp_path))
    assert found == [f"{tmp_path}/lang=de/part-2.parquet", f"{tmp_path}/lang=en/part-1.parquet"]
    with duckdb.connect() as connection:
        rows = connection.read_parquet(found, hive_partitioning=True).order("lang").fetchall()
    assert rows == [("lang=de/part-2.parquet", "de"), ("lang=en/part-1.parquet", "en")]


def test_live_files_of_a_spoiled_data_set_are_refused(tmp_path: Path) -> None:
    write(tmp_path, make(1, files=files("part-1")))
    (tmp_path / "_manifests" / "00000002-x.json").write_text("{")
    with pytest.raises(InputError, match=r"00000002-x\.json: not a manifest"):
        live_files(str(tmp_path))


def test_purging_deletes_what_is_retired_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, ["x/part-1.parquet", "part-2.parquet", "part-3.parquet", "part-unlisted.parquet"])
    data_set = DataSet(str(tmp_path))
    commit(data_set, make(1, files=files("x/part-1.parquet", "part-2.parquet")))
    commit(data_set, make(2, files=files("part-3.parquet"), retired=("x/part-1.parquet", "part-gone.parquet")))
    assert data_set.purge() == ["x/part-1.parquet"]
    assert sorted(path.name for path in tmp_path.rglob("*.parquet")) == [
        "part-2.parquet", "part-3.parquet", "part-unlisted.parquet",
    ]  # fmt: skip
    assert len(list((tmp_path / "_manifests").iterdir())) == 2, "without a checkpoint all manifests are needed"
    assert data_set.purge() == []


def test_purging_spares_what_was_retired_lately(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    put(tmp_path, ["part-1.parquet", "part-2.parquet", "part-3.parquet"])
    data_set = DataSet(str(tmp_path))
    commit(data_set, make(1, files=files("part-1.parquet", "part-2.parquet", "part-3.parquet")))
    for number, age in ((1, 10), (2, 1)):
        finished = (now - timedelta(hours=age)).isoformat(timespec="seconds")
        commit(data_set, make(1 + number, retired=(f"part-{number}.parquet",), finished=finished))
    assert data_set.purge(before=now - timedelta(hours=5)) == ["part-1.parquet"]
    assert DataSet.read(str(tmp_path)).purge(before=now) == ["part-2.parquet"]
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["part-3.parquet"]


def test_a_checkpoint_makes_earlier_manifests_superfluous(tmp_path: Path) -> None:
    put(tmp_path, ["part-1.parquet", "part-2.parquet"])
    data_set = DataSet(str(tmp_path))
    commit(data_set, make(1, files=files("part-1.parquet")))
    commit(data_set, make(2, files=files("part-2.parquet"), retired=("part-1.parquet",), checkpoint=True))
    commit(data_set, make(3, inputs=inputs("/a")))
    before = DataSet.read(str(tmp_path)).live
    assert sorted(data_set.purge()) == ["_manifests/00000001.json", "part-1.parquet"]
    assert DataSet.read(str(tmp_path)).live == before


def test_a_file_that_was_retired_and_is_live_again_is_never_deleted(tmp_path: Path) -> None:
    put(tmp_path, ["part-1.parquet"])
    data_set = DataSet(str(tmp_path))
    commit(data_set, make(1, files=files("part-1.parquet")))
    commit(data_set, make(2, retired=("part-1.parquet",)))
    commit(data_set, make(3, files=files("part-1.parquet"), checkpoint=True))
    data_set.purge()
    assert (tmp_path / "part-1.parquet").exists()


# --- what runs leave behind ----------------------------------------------------------------------------------------


@pytest.fixture
def after_deaths(tmp_path: Path) -> DataSet:
    """A run that committed, one that died after its commit, one before it, and a file of a stranger."""
    paths = ["part-done-1.parquet", "x/part-late-1.parquet", "x/part-died-1.parquet", "_dead_letters/part-died-2.jsonl"]
    put(tmp_path, [*paths, "_tmp/died/part-died-3.parquet", "part-stranger.parquet", "notes/read me.txt"])
    for name in ("_tmp/late/committed/part-late-1.parquet.json", "_tmp/died/committed/part-died-1.parquet.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    data_set = DataSet(str(tmp_path))
    commit(data_set, make(1, files=files("part-done-1.parquet")))
    commit(data_set, make(2, files=files("x/part-late-1.parquet")))
    return data_set


def test_unlisted_files_are_found(after_deaths: DataSet) -> None:
    found = unlisted_files(after_deaths)
    assert sorted(found) == [
        "_dead_letters/part-died-2.jsonl",
        "_tmp/died/committed/part-died-1.parquet.json",
        "_tmp/died/part-died-3.parquet",
        "_tmp/late/committed/part-late-1.parquet.json",
        "part-stranger.parquet",
        "x/part-died-1.parquet",
    ]
    assert all(modified is not None and modified > 1_700_000_000 for modified in found.values())


def test_recovery_deletes_what_the_dead_left_and_keeps_what_was_committed(
    after_deaths: DataSet, tmp_path: Path
) -> None:
    for _ in range(2):
        recover(after_deaths)
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        assert found == [
            "_delta_log/00000000000000000000.json",
            "_manifests/00000001.json",
            "_manifests/00000002.json",
            "_manifests/00000003.json",
            "notes/read me.txt",
            "part-done-1.parquet",
            "part-stranger.parquet",
            "x/part-late-1.parquet",
        ]
        assert not (tmp_path / "_tmp").exists()
    fence = manifest.read(str(tmp_path / "_manifests" / "00000003.json"))
    assert (fence.kind, fence.files) == ("fence", ()), "nobody knows whether it has died"
    assert (after_deaths.manifests[-1].sequence, after_deaths.next_sequence) == (2, 4)


def test_a_run_is_discarded_with_all_its_files(after_deaths: DataSet, tmp_path: Path) -> None:
    delete_uncommitted(after_deaths, "died")
    assert not [path for path in tmp_path.rglob("*") if "died" in path.name]
    assert (tmp_path / "_tmp" / "late").exists()
    assert (tmp_path / "x" / "part-late-1.parquet").exists()


def test_a_path_with_a_lone_surrogate_lives_through_a_commit(tmp_path: Path) -> None:
    data_set = DataSet(str(tmp_path))
    entry = dataclasses.replace(inputs("/in/half \udcff.jsonl")[0], rows=1)
    commit(data_set, make(1, inputs=(entry,), files=files("part-\udcff.parquet")))
    found = DataSet.read(str(tmp_path)).live
    assert found.inputs == {entry.path: entry}
    assert found.files.keys() == {"part-\udcff.parquet"}
