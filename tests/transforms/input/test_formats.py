"""Every format gives the same records however it is compressed or cut; damage costs what it hit, and is told."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import struct
import sys
import time
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.errors import InputError
from transforms.input import parquet as parquet_files
from transforms.input import raw_records
from transforms.input.delimited import Dialect
from transforms.input.formats import absolute, read_records
from transforms.input.forms import Form, FormOptions, guess_format
from transforms.input.parquet import parquet_rows
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize

ROWS: list[dict[str, Any]] = [
    {"id": "1", "text": "what a day"},
    {"id": "2", "text": 'she said "no", twice'},
    {"id": "3", "text": "café ☕ 😍"},
    {"id": "4", "text": ""},
    {"id": "5", "text": "tab\there"},
]
# With a checksum, as the command line tool writes it.
_ZSTANDARD = zstandard.ZstdCompressor(write_checksum=True)
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _ZSTANDARD.compress,
}
BOM = "\ufeff".encode()


def as_text(end: str = "\n") -> bytes:
    return "".join(row["text"] + end for row in ROWS).encode()


def as_jsonl(end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in ROWS).encode()


def as_csv(end: str = "\n", delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def as_tsv(end: str = "\n") -> bytes:
    return as_csv(end, "\t")


AS: dict[str, Callable[[str], bytes]] = {"text": as_text, "jsonl": as_jsonl, "csv": as_csv, "tsv": as_tsv}


def parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def form(kind: str, compression: str = "") -> Form:
    return Form(kind, (compression,) if compression else (), dialect=Dialect("\t" if kind == "tsv" else ","))


def read(
    content: bytes,
    kind: str,
    compression: str = "",
    start: int = 0,
    end: int | None = None,
    columns: tuple[str, ...] | None = None,
) -> list[Record | Damage]:
    return list(read_records(io.BytesIO(content), form(kind, compression), start, end, columns))


def values(found: list[Record | Damage]) -> list[Any]:
    assert all(isinstance(record, Record) for record in found), found
    return [record.value for record in found if isinstance(record, Record)]


def expected(kind: str) -> list[Any]:
    return [row["text"] for row in ROWS] if kind == "text" else ROWS


def one_damage(found: list[Record | Damage]) -> Damage:
    (damage,) = [record for record in found if isinstance(record, Damage)]
    return damage


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("tweets.txt", ("text", None)),
        ("a.b/tweets.text", ("text", None)),
        ("s3://bucket/x.JSONL", ("jsonl", None)),
        ("x.ndjson.zst", ("jsonl", "zst")),
        ("x.csv.zip", ("csv", "zip")),
        ("x.json.xz", ("jsonl", "xz")),
        ("x.feather", ("arrow", None)),
        ("data/tweets.js", ("jsonl", None)),
        ("data/account.js", (None, None)),
        ("x.json.gz", ("jsonl", "gz")),
        ("x.csv.bz2", ("csv", "bz2")),
        ("x.tsv.zstd", ("tsv", "zst")),
        ("x.parquet", ("parquet", None)),
        ("x.pq", ("parquet", None)),
        ("x.gz", (None, "gz")),
        ("x", (None, None)),
        ("jsonl", (None, None)),
        ("gz", (None, None)),
        ("dir.csv/x", (None, None)),
        ("x.docx", (None, None)),
    ],
)
def test_format_by_name(name: str, guess: tuple[str | None, str | None]) -> None:
    assert guess_format(name) == guess


def test_a_given_format_wins_over_the_name() -> None:
    for given_format, kind in (("text", "text"), (None, "csv")):
        (found,) = recognize(io.BytesIO(b"id,text"), "x.csv", FormOptions(given_format))
        assert found.kind == kind


@pytest.mark.parametrize(("path", "given_format"), [("x.docx", None), ("x", None), ("x.csv", "xml")])
def test_unknown_formats_are_refused_with_the_choices(path: str, given_format: str | None) -> None:
    with pytest.raises(InputError, match=r"text.*jsonl.*csv.*tsv.*parquet"):
        recognize(io.BytesIO(b"hello"), path, FormOptions(given_format))


@pytest.mark.parametrize(
    ("found", "splittable"),
    [
        (Form("text"), True),
        (Form("jsonl"), True),
        (Form("parquet"), True),
        (Form("jsonl", ("gz",)), False),
        (Form("text", encoding="utf-16-le"), False),
        (Form("csv"), False),
        (Form("json"), False),
    ],
)
def test_what_can_be_split(found: Form, splittable: bool) -> None:
    assert found.is_splittable is splittable


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        absolute("x/*.txt") == absolute("./x/*.txt") == absolute(f"file://{tmp_path}/x/*.txt") == f"{tmp_path}/x/*.txt"
    )
    assert absolute("gs://bucket/a/../b") == "gs://bucket/a/../b"


# --- all formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("kind", AS)
def test_every_format_and_compression(kind: str, compression: str, tmp_path: Path) -> None:
    content = AS[kind]("\n")
    path = tmp_path / (f"x.{kind}.{compression}" if compression else f"x.{kind}")
    path.write_bytes(COMPRESS[compression](content) if compression else content)
    with path.open("rb") as file:
        assert recognize(file, str(path)) == [form(kind, compression)]
        found = list(read_records(file, form(kind, compression)))
    assert values(found) == expected(kind)
    assert found == read(content, kind), "positions and raw bytes are those of the uncompressed content"


@pytest.mark.parametrize("kind", AS)
def test_crlf(kind: str) -> None:
    found = read(AS[kind]("\r\n"), kind)
    assert values(found) == expected(kind)
    assert not any(record.raw.endswith((b"\r", b"\n")) for record in found)


@pytest.mark.parametrize("kind", AS)
def test_byte_order_mark(kind: str) -> None:
    assert values(read(BOM + AS[kind]("\n"), kind)) == expected(kind)


@pytest.mark.parametrize("kind", AS)
def test_no_newline_at_the_end(kind: str) -> None:
    assert values(read(AS[kind]("\n").removesuffix(b"\n"), kind)) == expected(kind)


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines(kind: str, end: str) -> None:
    first, _, rest = AS[kind](end).partition(end.encode())
    content = first + end.encode() * 3 + rest + end.encode()
    if kind == "text":  # a line is a row, whatever is in it
        assert values(read(content, kind)) == [ROWS[0]["text"], "", "", *expected(kind)[1:], ""]
    else:
        assert values(read(content, kind)) == expected(kind)


@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("kind", AS)
def test_an_empty_file_has_no_records(kind: str, compression: str) -> None:
    assert read(COMPRESS[compression](b"") if compression else b"", kind, compression) == []
    assert read(b"", kind, compression) == []


@pytest.mark.parametrize("kind", AS)
def test_raw_bytes_are_at_the_position(kind: str) -> None:
    content = BOM + AS[kind]("\r\n")
    for record in read(content, kind):
        assert content[record.position :].removeprefix(BOM).startswith(record.raw.removeprefix(BOM))


@pytest.mark.parametrize(
    ("kind", "bad", "raw"),
    [
        ("text", b"na\xefve", b"na\xefve"),
        ("jsonl", b'{"id": "9", "text": "na\xefve"}', b'{"id": "9", "text": "na\xefve"}'),
        ("csv", b'9,"na\xefve\r\nand more"', b'9,"na\xefve\r\nand more"'),
        ("tsv", b"9\tna\xefve", b"9\tna\xefve"),
        ("text", b"\xed\xa0\xbd", b"\xed\xa0\xbd"),  # half of a surrogate pair, as some exporters write it
        ("csv", b"9,\xed\xa0\xbd", b"9,\xed\xa0\xbd"),
    ],
)
def test_rows_that_are_not_utf8(kind: str, bad: bytes, raw: bytes) -> None:
    content = AS[kind]("\n")
    found = read(content + bad + b"\n" + content.splitlines(keepends=True)[-1], kind)
    assert [isinstance(record, Damage) for record in found] == [False] * 5 + [True, False]
    damage = one_damage(found)
    assert (damage.position, damage.raw) == (len(content), raw)
    assert damage.reason.startswith("not UTF-8")


# --- JSON lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "not a JSON object but an array"),
        ('"text"', "not a JSON object but a string"),
        ("17", "not a JSON object but a number"),
        ("1.5", "not a JSON object but a number"),
        ("true", "not a JSON object but a boolean"),
        ("null", "not a JSON object but null"),
        ('{"text": "cut', "not JSON"),
        ("{'text': 'Python'}", "not JSON"),
        ("hello", "not JSON"),
        ('{"text": 1}{"text": 2}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text":' * 100_000, "not JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not JSON"),
    ],
    ids=lambda value: value[:20],
)
def test_lines_that_are_no_json_objects(line: str, reason: str) -> None:
    found = read(f'{{"a": 1}}\n{line}\n{{"b": 2}}'.encode(), "jsonl")
    assert [getattr(record, "value", None) for record in found] == [{"a": 1}, None, {"b": 2}]
    assert one_damage(found) == Damage(9, one_damage(found).reason, line.encode())
    assert one_damage(found).reason.startswith(reason)


def test_json_keeps_what_floats_would_lose() -> None:
    line = f'{{"id": {2**63 + 1}, "text": "\\ud83d\\ude0d \\u2028 \\u0000"}}\n'.encode()
    assert values(read(line, "jsonl")) == [{"id": 2**63 + 1, "text": "😍 \u2028 \0"}]


def test_only_newlines_end_a_line() -> None:
    content = "one\u2028two\x85three\x0bfour\rfive\nsix\n".encode()
    assert values(read(content, "text")) == ["one\u2028two\x85three\x0bfour\rfive", "six"]


# --- bounds --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_records, "MAX_RECORD_BYTES", 64)
    monkeypatch.setattr(raw_records, "RAW_KEPT", 16)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("compression", ["", *COMPRESS])
@pytest.mark.parametrize("length", [65, 66, 128, 200_000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_over_the_bound_is_one_damage(compression: str, length: int, end: bytes) -> None:
    content = b"one\n" + b"x" * length + end + (b"two\n" if end else b"")
    found = read(COMPRESS[compression](content) if compression else content, "text", compression)
    assert [getattr(record, "value", None) for record in found] == (["one", None, "two"] if end else ["one", None])
    assert one_damage(found) == Damage(4, one_damage(found).reason, b"x" * 16)
    assert "longer than" in one_damage(found).reason


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_at_the_bound_is_read(end: bytes) -> None:
    assert values(read(b"x" * 64 + end, "text")) == ["x" * 64]


@pytest.mark.usefixtures("small_bounds")
def test_raw_bytes_of_damage_are_bounded() -> None:
    assert one_damage(read(b"\xff" * 40, "text")).raw == b"\xff" * 16
    assert one_damage(read(b"1" * 40, "jsonl")).raw == b"1" * 16
    assert one_damage(read(b"a,b\n" + b"1" * 40, "csv")).raw == b"1" * 16


@pytest.mark.usefixtures("small_bounds")
def test_csv_over_the_bound() -> None:
    long_line = b"1," + b"x" * 80 + b"\n"
    many_lines = b'2,"' + b"y\n" * 40 + b'"\n'
    found = read(b"id,text\n" + long_line + b"3,hi\n" + many_lines + b"4,bye\n", "csv")
    assert [record.position for record in found if isinstance(record, Damage)][:2] == [8, 8 + len(long_line) + 5]
    assert {"id": "3", "text": "hi"} in [getattr(record, "value", None) for record in found]
    assert found[-1] == Record(found[-1].position, {"id": "4", "text": "bye"}, b"4,bye") or isinstance(
        found[-1], Damage
    )


@pytest.mark.usefixtures("small_bounds")
def test_a_long_line_inside_quotes_is_told_along_with_what_it_cut() -> None:
    """The record that it cut short, and each long line itself; the first of two was once lost."""
    long_line = b"x" * 80 + b"\n"
    content = b'id,text\n1,"begun\n' + long_line + b"2,good\n" + long_line + b"3,good\n"
    found = read(content, "csv")
    assert [record.position for record in found] == [8, 17, 17 + 81, 17 + 81 + 7, 17 + 81 + 7 + 81]
    assert [isinstance(record, Damage) for record in found] == [True, True, False, True, False]


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.count += len(line)
        return line


def test_parts_of_one_endless_line_do_not_each_read_to_its_end() -> None:
    """What a hostile file of one line would cost: its size times the number of parts."""
    part, n_parts = 1 << 16, 64
    content = b"x" * (part * n_parts)
    counts = []
    for index in range(n_parts):
        file = CountingFile(content)
        list(read_records(file, Form("text"), index * part, (index + 1) * part))
        counts.append(file.count)
    assert max(counts[1:]) <= 2 * part


def test_an_over_long_line_ends_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_records, "MAX_RECORD_BYTES", 1000)
    content = b"y" * 500_000 + b"\nlast\n"
    file = CountingFile(content)
    (damage,) = read_records(file, Form("text"), 0, 100)
    assert isinstance(damage, Damage)
    assert file.count <= 1001
    assert values(list(read_records(io.BytesIO(content), Form("text"), 400_000, len(content)))) == ["last"]


# --- CSV -----------------------------------------------------------------------------------------------------------


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


# --- compression ---------------------------------------------------------------------------------------------------

LINES = [f"line {index} {'☕' * (index % 5)}" for index in range(40)]
CONTENT = "".join(f"{line}\n" for line in LINES).encode()
MEMBERS = [CONTENT[:100], CONTENT[100:101], b"", CONTENT[101:400], CONTENT[400:]]


@pytest.mark.parametrize("compression", COMPRESS)
def test_several_members(compression: str) -> None:
    """As parallel compressors and appending loggers write them; their borders may lie inside a line."""
    content = b"".join(map(COMPRESS[compression], MEMBERS))
    assert values(read(content, "text", compression)) == LINES


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_thousand_members(compression: str) -> None:
    content = b"".join(COMPRESS[compression](b"%d\n" % index) for index in range(1000))
    assert values(read(content, "text", compression)) == [str(index) for index in range(1000)]


def test_skippable_zstandard_frames() -> None:
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"12345"
    frames = [skippable, *(COMPRESS["zst"](member) + skippable for member in MEMBERS)]
    assert values(read(b"".join(frames), "text", "zst")) == LINES


def test_highly_compressed_content_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_records, "MAX_RECORD_BYTES", 1000)
    content = b"first\n" + b"\0" * (8 << 20) + b"\nlast\n"
    for compression in COMPRESS:
        found = read(COMPRESS[compression](content), "text", compression)
        assert [getattr(record, "value", None) for record in found] == ["first", None, "last"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_off_anywhere(compression: str) -> None:
    """What could be read is given; the rest is one damage, at the position where reading ended."""
    members = [COMPRESS[compression](member) for member in MEMBERS]
    whole = read(CONTENT, "text")
    content = b"".join(members)
    borders = {sum(map(len, members[:index])) for index in range(len(members) + 1)}
    positions = [*(record.position for record in whole), len(CONTENT)]
    most = 0
    for cut in range(len(content)):
        if cut in borders:  # nobody can tell
            continue
        *records, damage = read(content[:cut], "text", compression)
        assert isinstance(damage, Damage), cut
        assert "cannot be read" in damage.reason
        # A line may have been cut by the end of what was readable.
        assert records == whole[: len(records)], cut
        assert damage.position == positions[len(records)], cut
        most = max(most, len(records))
    assert most > 5


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("compression", COMPRESS)
def test_records_before_a_cut_are_given(kind: str, compression: str) -> None:
    content = AS[kind]("\n")
    compressed = COMPRESS[compression](content[:70]) + COMPRESS[compression](content[70:])[:-6]
    *records, damage = read(compressed, kind, compression)
    assert len(records) >= 1
    assert records == read(content, kind)[: len(records)]
    assert isinstance(damage, Damage)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 40, b"garbage!", b"BZh9" + b"\xff" * 40, b"\x1f\x8b\x08" + b"\xff" * 40],
    ids=["ones", "words", "begun bzip2", "begun gzip"],
)
@pytest.mark.parametrize("compression", COMPRESS)
def test_a_damaged_member_behind_a_good_one(compression: str, garbage: bytes) -> None:
    """Python's bzip2 reader takes it for garbage to be ignored, and all that is behind it with it."""
    content = COMPRESS[compression](b"one\ntwo\n") + garbage + COMPRESS[compression](b"three\n")
    found = read(content, "text", compression)
    assert found[:2] == [Record(0, "one", b"one"), Record(4, "two", b"two")]
    assert one_damage(found) == found[-1]
    assert found[-1].position == 8


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_flipped_byte_in_the_middle(compression: str) -> None:
    noise = [f"{(index * 2654435761) % 2**32:08x}" for index in range(5000)]
    content = bytearray(COMPRESS[compression]("".join(f"{line}\n" for line in noise).encode()))
    # Where the bytes happen to decompress, the checksum tells.
    content[len(content) // 2 : len(content) // 2 + 64] = b"\xff" * 64
    *_, last = read(bytes(content), "text", compression)
    assert isinstance(last, Damage)


def test_a_plain_file_with_a_compressed_name() -> None:
    for compression in COMPRESS:
        (damage,) = read(CONTENT, "text", compression)
        assert isinstance(damage, Damage)
        assert damage.position == 0


# --- parts ---------------------------------------------------------------------------------------------------------

PIECES = [b"\n", b"\n", b"\r\n", b"\r", b"a", b" ", b"{}", b'{"text": "hi"}', "é😍".encode(), b"\xff", b"12345678", BOM]


def parts_of(size: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    return list(pairwise(edges))


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=40),
    cuts=st.lists(st.integers(1, 120), max_size=6),
    kind=st.sampled_from(["text", "jsonl"]),
)
def test_parts_give_every_line_once(pieces: list[bytes], cuts: list[int], kind: str) -> None:
    content = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_records, "MAX_RECORD_BYTES", 20)
        whole = read(content, kind)
        in_parts = [
            record for start, end in parts_of(len(content), cuts) for record in read(content, kind, "", start, end)
        ]
    assert in_parts == whole


def test_a_line_longer_than_several_parts() -> None:
    content = b"a\n" + b"b" * 200_000 + b"\nc\n"
    edges = [0, 1, 2, 3, 70_000, 140_000, 200_002, 200_003, len(content)]
    in_parts = [record for edge in pairwise(edges) for record in read(content, "text", "", *edge)]
    assert in_parts == read(content, "text")
    assert len(in_parts) == 3


# --- Parquet -------------------------------------------------------------------------------------------------------


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
    assert parquet_rows(io.BytesIO(content)) == (50, 7)
    for bad in (b"", b"PAR1", content[:-1], content[: len(content) // 2], b"x" * 1000):
        with pytest.raises(InputError, match="not a readable Parquet file"):
            parquet_rows(io.BytesIO(bad))


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


def test_recursion_never_escapes() -> None:
    """Whatever depth the parser just stands, what comes behind it must stand, too."""
    from transforms.input.fields import FieldMapping, KeptField
    from transforms.input.posts import PostReader
    from transforms.input.read import to_tweets
    from transforms.records import DeadLetter, Tweet

    limit = sys.getrecursionlimit()
    for kind in ("json", "string", "int64", "timestamp"):
        mapping = FieldMapping(keep=(KeptField("k", kind),), timestamp="k")
        for depth in range(limit - 150, limit + 20):
            line = f'{{"text": "hi", "k": {"[" * depth}{"]" * depth}}}\n'.encode()
            (outcome,) = to_tweets(iter(read(line, "jsonl")), "x.jsonl", PostReader(mapping))
            assert isinstance(outcome, DeadLetter | Tweet)
