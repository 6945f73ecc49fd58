"""CSV: a quote that is open or misplaced costs its row, and what is quoted comes back."""

from __future__ import annotations

import csv
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.input.records import one_damage, read, values
from transforms.input.raw_records import Damage, Record


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoted_newlines(end: str) -> None:
    content = f'id,text{end}1,"one{end}two{end}{end}four"{end}2,"a ""quote"""{end}'.encode()
    found = read(content, "csv")
    assert values(found) == [{"id": "1", "text": f"one{end}two{end}{end}four"}, {"id": "2", "text": 'a "quote"'}]
    assert [record.position for record in found] == [content.index(b"1,"), content.index(b"2,")]
    assert found[0].raw == f'1,"one{end}two{end}{end}four"'.encode()


def test_ragged_rows() -> None:
    found = read(b"id,text\n1,a\n2\n3,b,c\n4,d\n", "csv")
    assert [(record.position, getattr(record, "value", None)) for record in found] == [
        (8, {"id": "1", "text": "a"}),
        (12, None),
        (14, None),
        (20, {"id": "4", "text": "d"}),
    ]
    assert [record.reason for record in found if isinstance(record, Damage)] == [
        "record has 1 fields, the header 2",
        "record has 3 fields, the header 2",
    ]
    assert [record.raw for record in found if isinstance(record, Damage)] == [b"2", b"3,b,c"]


def test_a_misplaced_quote_costs_its_row() -> None:
    found = read(b'id,text\n1,"a" b\n2,c "d" e\n', "csv")
    assert one_damage(found).position == 8
    assert one_damage(found).raw == b'1,"a" b\n'
    assert found[1:] == [Record(16, {"id": "2", "text": 'c "d" e'}, b'2,c "d" e')]


def test_an_unterminated_quote_costs_its_line() -> None:
    found = read(b'id,text\n1,a\n2,"b\n3,c\n', "csv")
    assert found[0] == Record(8, {"id": "1", "text": "a"}, b"1,a")
    assert found[1:] == [
        Damage(12, one_damage(found).reason, b'2,"b\n'), Record(17, {"id": "3", "text": "c"}, b"3,c"),
    ]  # fmt: skip
    assert "not CSV" in one_damage(found).reason


def test_an_unterminated_quote_before_many_lines_takes_linear_time() -> None:
    """Copying the record for each of its lines took minutes for a megabyte."""
    content = b'id,text\n1,"b\n' + b"2,c\n" * 300_000
    started = time.process_time()
    first, *others = read(content, "csv")
    assert isinstance(first, Damage) and first.position == 8 and len(others) == 300_000
    assert time.process_time() - started < 30  # a guard against quadratic time, which would be many minutes


@pytest.mark.parametrize("header", [b'id,"text\n', b'id,"te"xt\n', b"id," + b"x" * 100 + b"\n"])
@pytest.mark.usefixtures("small_bounds")
def test_without_its_header_a_file_cannot_be_read(header: bytes) -> None:
    """The first row must not pass for the header and be lost."""
    found = read(header + b"1,a\n2,b\n", "csv")
    assert [type(record) for record in found] == [Damage]
    assert found[0].position == 0
    assert "header" in one_damage(found).reason


def test_columns_with_nul_bytes_and_lone_carriage_returns() -> None:
    found = read(b'id,text\n1,a\0b\n2,"c\rd"\n', "csv")
    assert values(found) == [{"id": "1", "text": "a\0b"}, {"id": "2", "text": "c\rd"}]


def test_old_mac_line_ends_are_told() -> None:
    found = read(b"id,text\r1,a\r2,b\r", "csv")
    assert [type(record) for record in found] == [Damage]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=8), tabs=st.booleans())
def test_whatever_a_csv_writer_quotes_comes_back(rows: list[tuple[str, str]], tabs: bool) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
    if tabs:  # whose fields span no lines
        rows = [tuple(" ".join(field.splitlines()) for field in row) for row in rows]
    writer.writerows([("id", "text"), *rows])
    found = read(file.getvalue().encode(), "tsv" if tabs else "csv")
    if not any(isinstance(record, Damage) and "look like rows" in record.reason for record in found):
        assert [tuple(row.values()) for row in values(found)] == rows
