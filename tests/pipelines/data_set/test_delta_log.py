"""The Delta log: readers of others see the files that are live, whatever happens to the log and to who writes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.data_set.delta_log import APPLICATION, DeltaLog
from pipelines.data_set.manifest import DataFile
from pipelines.data_set.snapshot import DataSet, live_files
from tests.pipelines.conftest import Finished, corpus, posts, write_lines
from tests.pipelines.data_set.test_manifest import make
from tests.pipelines.data_set.test_snapshot import commit

Run = Callable[..., Finished]
READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "polars": lambda output: pl.scan_delta(output).collect().to_dicts(),
    "pandas": lambda output: DeltaTable(output).to_pandas(types_mapper=None).replace({np.nan: None}).to_dict("records"),
    "pyarrow": lambda output: DeltaTable(output).to_pyarrow_table().to_pylist(),
    "DuckDB": lambda output: duckdb.from_arrow(DeltaTable(output).to_pyarrow_dataset()).to_arrow_table().to_pylist(),
}


def put(output: Path, path: str, n: int = 2, **columns: Any) -> DataFile:
    """A file of n rows, whose ids tell it, with a vector and further columns of one value each."""
    file = output / path
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"id": [f"{path}:{row}" for row in range(n)], "vector": pa.array([[0.5, -1.0]] * n, pa.list_(pa.float32()))}
        | {name: pa.array([value] * n) for name, value in columns.items()}
    )
    with file.open("wb") as opened:
        pq.write_table(table, opened)
    return DataFile(path, n, file.stat().st_size, "")


def publish(output: Path, *files: DataFile, number: int = 1) -> DeltaLog:
    log = DeltaLog(str(output))
    log.publish({file.path: file for file in files}, number)
    return log


def ids(output: Path | str) -> list[str]:
    found = [sorted(row["id"] for row in read(str(output))) for read in READERS.values()]
    assert all(other == found[0] for other in found)
    return found[0]


def ids_of(*files: DataFile) -> list[str]:
    return sorted(f"{file.path}:{row}" for file in files for row in range(file.rows))


# --- what commands publish ------------------------------------------------------------------------------------------


def test_readers_see_the_live_rows_and_no_others(
    tmp_path: Path, run_annotate: Run, run_compact: Run, run_verify: Run
) -> None:
    """After each of the commands that change a data set, by its conventional line."""
    paths = corpus(tmp_path / "in", 3, 10)
    expected = {f"{number}-{row}" for number in range(3) for row in range(10)}

    def check() -> None:
        for read in READERS.values():
            rows = read("out")
            assert sorted(row["id"] for row in rows) == sorted(expected)
            assert all(len(row["embedding"]) > 1 and str(row["date"])[:2] == "20" for row in rows)

    assert run_annotate().status == 0
    check()
    write_lines(paths[0], [{"id": "new", "text": "so happy"}])
    expected = {"new"} | {each for each in expected if not each.startswith("0-")}
    assert run_annotate().status == 0
    check()
    assert run_compact().status == 0
    check()
    paths[1].unlink()
    expected = {each for each in expected if not each.startswith("1-")}
    assert run_annotate("--on_vanished", "retire").status == 0
    check()
    assert run_verify("--clean", "--older_than", "0s").status == 0
    check()


def test_values_are_those_of_the_files(tmp_path: Path, run_annotate: Run) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"id": str(row), "text": f"love {row}", "day": "a/b %2F", "at": 1e9 + row} for row in range(9)]
    write_lines(tmp_path / "in" / "a.jsonl", [*rows])
    options = ("--partition_by", "day,hour", "--keep_fields", "at", "--timestamp_field", "at")
    assert run_annotate(*options, "--outputs", "text,top,embedding,attention").status == 0
    expected = pa.concat_tables(pq.ParquetFile(path).read() for path in live_files("out")).sort_by("id")
    table = DeltaTable("out").to_pyarrow_table().sort_by("id")
    assert {*table.column_names} - {*expected.column_names} == {"day", "hour"}
    assert {*table["day"].to_pylist()} == {"a/b %2F"} and {*table["hour"].to_pylist()} == {1}
    assert table.select(expected.column_names).to_pylist() == expected.to_pylist()


def test_half_floats_have_no_log_and_a_line_says_so(tmp_path: Path, run_score: Run) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    options = ("--input", "in.jsonl", "--output", "out")
    assert run_score(*options).status == 0
    finished = run_score(*options, "--embedding_type", "float16", "--if_exists", "replace")
    assert finished.status == 0
    assert finished.err.count("has no Delta log: Delta has no half floats (--embedding_type float16); read") == 1
    assert not (tmp_path / "out" / "_delta_log").exists()  # it would list what will be deleted
    assert run_score(*options, "--if_exists", "replace").status == 0
    assert len(ids("out")) == 3


def test_a_commit_that_was_not_published_is_by_the_next_command(
    tmp_path: Path, run_annotate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "in", 1, 5)
    with monkeypatch.context() as patch:
        patch.setattr(DataSet, "publish", lambda data_set: None)  # as if it were killed there
        assert run_annotate().status == 0
    assert "nothing is new" in run_annotate().out
    assert len(ids("out")) == 5


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    corpus(tmp_path / "in", 2, 5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_delta_log").touch()
    finished = run_annotate("--commit_every", "0.001s")
    assert finished.status == 0
    assert finished.err.count("the Delta log of") == 1 and "is behind until the next commit" in finished.err
    (tmp_path / "out" / "_delta_log").unlink()
    assert run_verify("--clean").status == 0
    assert len(ids("out")) == 10


# --- what is there in the log, and what is to be ----------------------------------------------------------------------


def test_each_publication_is_one_entry_with_the_number_of_its_manifest(tmp_path: Path) -> None:
    first, second = put(tmp_path, "date=2026-01-31/part-1.parquet"), put(tmp_path, "date=2026-01-31/part-2.parquet", 5)
    publish(tmp_path, first)
    publish(tmp_path, first, number=2)  # nothing to say
    publish(tmp_path, second, number=7)
    table = DeltaTable(str(tmp_path))
    assert (table.version(), table.transaction_version(APPLICATION)) == (1, 7)
    assert table.count() == 5  # told by the log alone
    assert ids(tmp_path) == ids_of(second)
    publish(tmp_path, number=8)
    assert ids(tmp_path) == []
    publish(tmp_path, first, second, number=9)
    assert ids(tmp_path) == ids_of(first, second)


@pytest.mark.parametrize(
    "directory",
    [
        "lang=__HIVE_DEFAULT_PARTITION__",
        "lang=a b%2Fc%25",
        "lang=%E6%97%A5",
        'lang=it\'s "%3D"&+',
        "user.name=x",
        "a%20b=1",
    ],
)
def test_directories_are_columns(tmp_path: Path, directory: str) -> None:
    file = put(tmp_path, f"{directory}/part-1.parquet")
    publish(tmp_path, file)
    name, _, value = directory.partition("=")
    expected = (
        None
        if "HIVE" in value
        else {"a b%2Fc%25": "a b/c%", "%E6%97%A5": "日", 'it\'s "%3D"&+': 'it\'s "="&+'}.get(value, value)
    )
    table = DeltaTable(str(tmp_path)).to_pyarrow_table()
    assert table[name.replace("%20", " ")].to_pylist() == [expected] * 2
    publish(tmp_path, number=2)
    assert ids(tmp_path) == []


@pytest.mark.parametrize("name", ["out put", "#?*[é]p%c", "s3:x", "~", "😂"])
def test_outputs_may_have_any_name(tmp_path: Path, name: str) -> None:
    file = put(tmp_path / name, "part-1.parquet")
    publish(tmp_path / name, file)
    assert len(DeltaTable(str(tmp_path / name)).to_pyarrow_table()) == 2


def test_a_name_that_the_library_would_take_for_another_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path / "a%20b", put(tmp_path / "a%20b", "part-1.parquet"))
    assert "percent sign" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"]


def test_columns_may_come_later(tmp_path: Path) -> None:
    first, second = put(tmp_path, "part-1.parquet"), put(tmp_path, "part-2.parquet", likes=3)
    publish(tmp_path, first)
    publish(tmp_path, first, second, number=2)
    for read in READERS.values():
        assert sorted((row["id"], row["likes"]) for row in read(str(tmp_path))) == [
            ("part-1.parquet:0", None), ("part-1.parquet:1", None), ("part-2.parquet:0", 3), ("part-2.parquet:1", 3),
        ]  # fmt: skip


def test_what_takes_the_place_of_all_may_have_other_columns_and_directories(tmp_path: Path) -> None:
    publish(tmp_path, put(tmp_path, "date=2026-01-31/part-1.parquet", likes=3))
    publish(tmp_path, file := put(tmp_path, "part-2.parquet", likes="many"), number=2)
    assert ids(tmp_path) == ids_of(file)
    table = DeltaTable(str(tmp_path))
    assert table.version() == 1 and table.metadata().partition_columns == []
    assert pl.scan_delta(str(tmp_path)).collect_schema().names() == ["id", "vector", "likes"]


def test_directories_may_come_later(tmp_path: Path) -> None:
    """As in a stream whose first messages are of no time."""
    files = [put(tmp_path, "part-1.parquet"), put(tmp_path, "date=2026-01-31/part-2.parquet")]
    publish(tmp_path, files[0])
    publish(tmp_path, *files, number=2)
    table = DeltaTable(str(tmp_path)).to_pyarrow_table()
    assert sorted(str(date) for date in table["date"].to_pylist()) == ["2026-01-31"] * 2 + ["None"] * 2


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"likes": "many"}, "Field likes has incompatible types"),
        ({"Likes": 1}, "columns Likes and likes differ only in case"),
    ],
)
def test_columns_that_are_no_table_have_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: dict[str, Any], said: str
) -> None:
    good, bad = put(tmp_path, "part-1.parquet", likes=1), put(tmp_path, "part-2.parquet", **columns)
    log = publish(tmp_path, good)
    for number in (2, 3):
        log.publish({file.path: file for file in (good, bad)}, number)
    assert caplog.text.count("has no Delta log") == 1 and said in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    assert not (tmp_path / "_delta_log").exists()
    log.publish({good.path: good}, 4)
    assert ids(tmp_path) == ids_of(good)


# --- what others do there ---------------------------------------------------------------------------------------------


def _damage(output: Path) -> None:
    """As a power cut may: a file has its size, and not its content."""
    for entry in (output / "_delta_log").glob("*.json"):
        entry.write_bytes(bytes(entry.stat().st_size))


def _empty(output: Path) -> None:
    for entry in (output / "_delta_log").glob("*.json"):
        entry.write_bytes(b"")


@pytest.mark.parametrize(
    "change",
    [
        lambda output: DeltaTable(output).delete("id like '%:0'"),
        lambda output: DeltaTable(output).update({"id": "'x'"}),
        lambda output: DeltaTable(output).optimize.compact(),
        lambda output: DeltaTable(output).alter.set_table_properties({"delta.enableChangeDataFeed": "true"}),
        lambda output: pl.DataFrame({"id": [1], "date": [1]}).write_delta(
            output, mode="overwrite", delta_write_options={"schema_mode": "overwrite"}
        ),
        lambda output: shutil.rmtree(output / "_delta_log"),
        _damage,
        _empty,
    ],
    ids=["delete", "update", "optimize", "property", "overwrite", "removal", "damage", "emptied"],
)  # fmt: skip
def test_what_others_change_is_undone(tmp_path: Path, change: Callable[[Path], object]) -> None:
    files = [put(tmp_path, f"date=2026-01-31/part-{number}.parquet") for number in range(3)]
    publish(tmp_path, *files)
    change(tmp_path)
    publish(tmp_path, *files, number=2)
    assert ids(tmp_path) == ids_of(*files)
    assert pl.scan_delta(str(tmp_path)).collect_schema().names() == ["id", "vector", "date"]


def test_vacuum_takes_nothing_that_is_ours_before_its_time(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    """Of a data set, only what the log does not list and has not changed for a week; ours with an underscore never."""
    paths = corpus(tmp_path / "in", 2, 5)
    write_lines(tmp_path / "in" / "bad.jsonl", [*posts(20), "x"])
    assert run_annotate().status == 0
    write_lines(paths[0], [{"id": "new", "text": "so happy"}])
    assert run_annotate().status == 0
    table = DeltaTable("out")
    assert table.vacuum(full=True, dry_run=False) == table.vacuum(dry_run=False) == []
    assert run_verify().status == 0
    table.vacuum(retention_hours=0, enforce_retention_duration=False, full=True, dry_run=False)
    assert run_verify().status == 0  # what is retired is gone, and nothing that counts
    assert len(ids("out")) == len(pl.read_parquet(live_files("out")))


# --- two at once ------------------------------------------------------------------------------------------------------


def test_who_knows_less_changes_nothing(tmp_path: Path) -> None:
    files = [put(tmp_path, f"part-{number}.parquet") for number in range(2)]
    data_set = DataSet(str(tmp_path))
    for number, file in enumerate(files, 1):
        commit(data_set, make(number, files=(file,)))
    publish(tmp_path, *files, number=2)
    publish(tmp_path, files[0], number=1)
    assert ids(tmp_path) == ids_of(*files)
    shutil.rmtree(tmp_path / "_manifests")  # begun anew
    commit(DataSet(str(tmp_path)), make(1, files=(files[0],)))
    publish(tmp_path, files[0], number=1)
    assert ids(tmp_path) == ids_of(files[0])


@pytest.mark.parametrize("later", [2, 4])
def test_another_that_commits_after_the_look_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    """A publisher was suspended between its look at the log and its commit."""
    files = [put(tmp_path, f"part-{number}.parquet") for number in range(5)]
    data_set = DataSet(str(tmp_path))
    for number in range(1, 5):
        commit(data_set, make(number, files=(files[number],)))
    publish(tmp_path, files[0])
    look, meanwhile = DeltaTable.get_add_actions, [later]

    def look_and_sleep(table: DeltaTable) -> Any:
        listed = look(table)
        if meanwhile:
            number = meanwhile.pop()
            publish(tmp_path, *files[: number + 1], number=number)
        return listed

    monkeypatch.setattr(DeltaTable, "get_add_actions", look_and_sleep)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    publish(tmp_path, *files[:4], number=3)
    assert ids(tmp_path) == ids_of(*files[: max(later, 3) + 1])


@pytest.mark.parametrize("limit", ["NOFILE", "AS"])
def test_a_library_that_finds_no_room_does_not_end_the_run(tmp_path: Path, limit: str) -> None:
    """It panics where it can open no more files, and ends the process where it gets no memory."""
    file = put(tmp_path, "a.parquet")
    code = f"""
import re, resource
import deltalake.transaction  # an import may fail by itself
from pipelines.data_set.delta_log import DeltaLog
from pipelines.data_set.manifest import DataFile
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
limit = {{"NOFILE": 4, "AS": size + (96 << 20)}}[{limit!r}]
resource.setrlimit(resource.RLIMIT_{limit}, (limit, limit))
DeltaLog({str(tmp_path)!r}).publish({{"a.parquet": DataFile("a.parquet", 2, {file.bytes}, "")}}, 1)
print("went on")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (finished.returncode, finished.stdout) == (0, "went on\n"), finished.stderr
    assert "is behind until the next commit" in finished.stderr
    assert publish(tmp_path, file) and ids(tmp_path) == ids_of(file)
