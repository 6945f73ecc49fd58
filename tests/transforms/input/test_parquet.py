"""Parquet: rows by ranges, columns that are wanted, and damage that costs its rows."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.input.records import ROWS, one_damage, parquet, parts_of, read, values
from torchmoji_core.errors import InputError
from transforms.input import parquet as parquet_files
from transforms.input.parquet import parquet_rows
from transforms.input.raw_records import Damage, Record
from transforms.input.source_file import SourceFile


def make_table(n: int = 50) -> pa.Table:
    return pa.table({"id": [str(index) for index in range(n)], "text": [f"text {index}" for index in range(n)]})


def test_parquet() -> None:
    found = read(parquet(pa.Table.from_pylist(ROWS)), "parquet")
    assert values(found) == ROWS
    assert [record.position for record in found] == [0, 1, 2, 3, 4]
    assert all(record.raw == b"" for record in found)


@settings(max_examples=100, deadline=None)
@given(
    n_rows=st.integers(0, 40),
    group=st.integers(1, 15),
    batch=st.integers(1, 15),
    cuts=st.lists(st.integers(1, 40), max_size=5),
)
def test_row_ranges_give_every_row_once(n_rows: int, group: int, batch: int, cuts: list[int]) -> None:
    content = parquet(make_table(n_rows), row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "BATCH_ROWS", batch)
        whole = read(content, "parquet")
        in_parts = [r for start, end in parts_of(n_rows, cuts) for r in read(content, "parquet", "", start, end)]
    assert [record.position for record in whole] == list(range(n_rows))
    assert in_parts == whole


def test_parquet_rows() -> None:
    content = parquet(make_table(), row_group_size=7)
    assert parquet_rows(SourceFile(io.BytesIO(content))) == (50, 7)
    for bad in (b"", b"PAR1", content[:-1], content[: len(content) // 2], b"x" * 1000):
        with pytest.raises(InputError, match="not a readable Parquet file"):
            parquet_rows(SourceFile(io.BytesIO(bad)))


def test_truncated_parquet_is_one_damage() -> None:
    content = parquet(make_table(), row_group_size=7)
    for cut in (0, 1, 4, 100, len(content) // 2, len(content) - 1):
        assert [type(record) for record in read(content[:cut], "parquet", "", 3, 9)] == [Damage]
        assert one_damage(read(content[:cut], "parquet", "", 3, 9)).position == 3


@pytest.mark.parametrize(("start", "end", "lost"), [(0, None, (20, 39)), (25, 30, (25, 29)), (10, 30, (20, 29))])
def test_a_corrupt_row_group_costs_its_rows(start: int, end: int | None, lost: tuple[int, int]) -> None:
    content = bytearray(parquet(make_table(100), row_group_size=20, compression="zstd", use_dictionary=False))
    column = pq.ParquetFile(io.BytesIO(bytes(content))).metadata.row_group(1).column(1)
    first, size = column.data_page_offset, column.total_compressed_size
    content[first : first + size] = b"\xff" * size
    found = read(bytes(content), "parquet", "", start, end)
    damage = one_damage(found)
    assert damage.position == lost[0]
    assert f"rows {lost[0]} to {lost[1]} cannot be read" in damage.reason
    wanted = set(range(start, 100 if end is None else end)) - set(range(20, 40))
    assert [record.position for record in found if isinstance(record, Record)] == sorted(wanted)


def test_strings_that_are_not_utf8() -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    content = parquet(pa.table({"text": texts}))
    found = read(content, "parquet")
    assert found == [Record(0, {"text": "one"}, b""), Damage(1, "not UTF-8", b""), Record(2, {"text": "three"}, b"")]


def test_dates_that_python_has_not() -> None:
    days = pa.array([0, 10_000_000, None], pa.int32()).view(pa.date32())
    found = read(parquet(pa.table({"day": days})), "parquet")
    assert [getattr(record, "value", None) for record in found] == [{"day": date(1970, 1, 1)}, None, {"day": None}]
    assert one_damage(found).position == 1


NESTED = {
    "data": {"text": "deep", "lang": "en", "tags": ["a", "b"]},
    "data.text": "literal",
    "n": None,
    "other": 1,
}


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        (None, NESTED),
        (("data", "n"), {"data": NESTED["data"], "n": None}),
        (("missing", "other"), {"other": 1}),
        (("missing",), {}),
    ],
)
def test_parquet_columns(columns: tuple[str, ...] | None, record: dict[str, Any]) -> None:
    content = parquet(pa.Table.from_pylist([NESTED] * 3))
    assert values(read(content, "parquet", columns=columns)) == [record] * 3


def test_a_column_with_a_literal_dot() -> None:
    content = parquet(pa.Table.from_pylist([NESTED]))
    (record,) = values(read(content, "parquet", columns=("data.text",)))
    assert record["data.text"] == "literal"
