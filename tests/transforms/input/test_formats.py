"""Every format gives the same records however it is compressed or cut; damage costs what it hit, and is told."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.input.records import AS, BOM, COMPRESS, ROWS, expected, form, one_damage, parts_of, read, values
from torchmoji_core.errors import InputError
from transforms.input import raw_records
from transforms.input.formats import absolute, read_records
from transforms.input.forms import Form, FormOptions, guess_format
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize

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
        ("data/tweets-part12.js", ("jsonl", None)),
        ("like.js", ("jsonl", None)),
        ("note-tweet-part1.js.gz", ("jsonl", "gz")),
        ("data/tweet-headers.js", (None, None)),
        ("tweetdeck.js", (None, None)),
        ("like.min.js", (None, None)),
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


def test_recursion_never_escapes() -> None:
    """Whatever depth the parser just stands, what comes behind it must stand, too."""
    from transforms.input.fields import FieldMapping, KeptField
    from transforms.input.parts import to_tweets
    from transforms.input.posts import PostReader
    from transforms.records import DeadLetter, Tweet

    limit = sys.getrecursionlimit()
    for kind in ("json", "string", "int64", "timestamp"):
        mapping = FieldMapping(keep=(KeptField("k", kind),), timestamp="k")
        for depth in range(limit - 150, limit + 20):
            line = f'{{"text": "hi", "k": {"[" * depth}{"]" * depth}}}\n'.encode()
            (outcome,) = to_tweets(iter(read(line, "jsonl")), "x.jsonl", PostReader(mapping))
            assert isinstance(outcome, DeadLetter | Tweet)


# --- bounds --------------------------------------------------------------------------------------------------------


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


# --- parts ---------------------------------------------------------------------------------------------------------


PIECES = [b"\n", b"\n", b"\r\n", b"\r", b"a", b" ", b"{}", b'{"text": "hi"}', "é😍".encode(), b"\xff", b"12345678", BOM]


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
