"""What a file is read as: contents win over names, and what is not read ends in one line that says what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import feather, ipc

from tests.archives import zip_of
from torchmoji_core.errors import InputError
from transforms.input.formats import read_records
from transforms.input.forms import Form, FormOptions
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize

ROWS = [{"id": str(number), "text": f"so happy {number} ☕"} for number in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = pa.Table.from_pylist(ROWS)


def read(content: bytes, name: str, **options: Any) -> list[Record | Damage]:
    file = io.BytesIO(content)
    forms = recognize(file, name, FormOptions(**options))
    return [record for form in forms for record in read_records(file, form)]


def values(found: list[Record | Damage]) -> list[Any]:
    assert all(isinstance(record, Record) for record in found), found
    return [record.value for record in found if isinstance(record, Record)]


def in_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(TABLE, file)
    return file.getvalue()


def in_arrow(make: Callable[..., Any] = ipc.new_file, table: pa.Table = TABLE, **options: Any) -> bytes:
    file = io.BytesIO()
    with make(file, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def in_feather() -> bytes:
    file = io.BytesIO()
    feather.write_feather(TABLE, file)
    return file.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "zip": lambda content: zip_of({"x.jsonl": content}),
}
WHOLE: dict[str, tuple[str, bytes]] = {
    "JSON lines": ("x.jsonl", LINES.encode()),
    "JSON lines in .json": ("x.json", LINES.encode()),
    "JSON lines in .txt": ("x.txt", LINES.encode()),
    "an array": ("x.json", json.dumps(ROWS).encode()),
    "an array in .jsonl": ("x.jsonl", json.dumps(ROWS).encode()),
    "an array, indented": ("x.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode()),
    "an array, an element a line": ("x.json", f"[\n{LINES.rstrip().replace(chr(10), ',' + chr(10))}\n]\n".encode()),
    "documents, indented": ("x.json", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()),
    "the archive of an account": ("tweets.js", f"window.YTD.tweets.part0 = {json.dumps(ROWS, indent=2)}".encode()),
    "JavaScript": ("x.js", f"var tweets = {json.dumps(ROWS)};\n".encode()),
    "a mark in the middle": ("x.jsonl", LINES.replace("\n", "\n\ufeff").removesuffix("\ufeff").encode()),
    "Parquet": ("x.parquet", in_parquet()),
    "Parquet called .csv": ("x.csv", in_parquet()),
    "Parquet in gzip": ("x.parquet.gz", gzip.compress(in_parquet())),
    "an Arrow file": ("x.arrow", in_arrow()),
    "an Arrow stream": ("x.arrows", in_arrow(ipc.new_stream)),
    "two Arrow streams": ("x.arrows", in_arrow(ipc.new_stream, TABLE[:2]) + in_arrow(ipc.new_stream, TABLE[2:])),
    "Feather": ("x.feather", in_feather()),
    "Feather in zstandard": ("x.feather.zst", zstandard.compress(in_feather())),
    "gzip in gzip": ("x.jsonl.gz", gzip.compress(gzip.compress(LINES.encode()))),
    "plain though .gz": ("x.jsonl.gz", LINES.encode()),
    "zip in gzip": ("x.jsonl.gz", gzip.compress(PACKED["zip"](LINES.encode()))),
    "gzip in zip": ("x.zip", zip_of({"x.jsonl.gz": gzip.compress(LINES.encode())})),
    "Parquet in zip": ("x.zip", zip_of({"x.parquet": in_parquet()})),
    "a member of any name": ("x.jsonl.zip", zip_of({"data": LINES.encode()})),
    **{f"{name} without its suffix": ("x.jsonl", pack(LINES.encode())) for name, pack in PACKED.items()},
    **{f"{name} with its suffix": (f"x.jsonl.{name}", pack(LINES.encode())) for name, pack in PACKED.items()},
    **{
        f"JSON lines in {encoding}": ("x.jsonl", LINES.encode(encoding))
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_right_as_it_is(name: str) -> None:
    path, content = WHOLE[name]
    assert values(read(content, path)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
def test_wide_encodings_in_every_format_of_text(name: str, encoding: str) -> None:
    between = "\t" if name == "x.tsv" else ","
    text = f"id{between}text\r\n1{between}so happy\r\n2{between}how sad\r\n"
    text = text.removeprefix("id,text\r\n") if name == "x.txt" else text
    found = values(read(text.encode(encoding), name))
    expected = text.split("\r\n")[:-1] if name == "x.txt" else [
        {"id": "1", "text": "so happy"}, {"id": "2", "text": "how sad"},
    ]  # fmt: skip
    assert found == expected


def test_other_encodings_are_named() -> None:
    content = "Tweet\nI can’t wait\nso happy\n".encode("cp1252")
    damage, record = read(content, "x.csv")
    assert isinstance(damage, Damage) and "--encoding cp1252" in damage.reason
    assert isinstance(record, Record)
    assert values(read(content, "x.csv", encoding="cp1252")) == [{"Tweet": "I can’t wait"}, {"Tweet": "so happy"}]
    assert values(read("\ufeffja\nnaïve\n".encode(), "x.txt", encoding="latin-1")) == ["ja", "naïve"], "a mark wins"
    for name in ("base64", "nonsense", ""):
        with pytest.raises(InputError, match="--encoding"):
            FormOptions(encoding=name)


def test_bytes_that_are_none_of_the_encoding_cost_their_line() -> None:
    one, other = "so happy\n".encode("utf-16-le"), "☕\n".encode("utf-16-le")
    found = read(b"\xff\xfe" + one + b"\x00\xd8" + one + other, "x.txt")
    assert [type(record) for record in found] == [Record, Damage, Record]
    assert "utf-16-le" in found[1].reason  # type: ignore[union-attr]


def test_lines_in_utf_16_among_lines_in_utf_8() -> None:
    found = read(b"so happy\n" * 20 + "what a long day\n".encode("utf-16-le"), "x.txt")
    assert [record.value for record in found if isinstance(record, Record)][:20] == ["so happy"] * 20
    assert any(isinstance(record, Damage) and "UTF-16" in record.reason for record in found)
    assert not any("\0" in str(record.value).strip("\0") for record in found if isinstance(record, Record))


def test_lines_that_end_with_carriage_returns() -> None:
    assert values(read(b"id,text\r1,so happy\r2,how sad\r", "x.csv"))[1] == {"id": "2", "text": "how sad"}


def test_members_are_files_of_their_own() -> None:
    content = zip_of({
        "a/one.csv": b"text;id\nhi, you;1\n", "two.jsonl": b'{"text": "two"}\n', "__MACOSX/._two.jsonl": b"x",
        "README": b"y", "a/": b"", "LICENSE.txt": b"z",
    })  # fmt: skip
    found = read(content, "x.zip")
    assert values(found) == [{"text": "hi, you", "id": "1"}, {"text": "two"}]
    assert [record.position for record in found] == ["a/one.csv:8", "two.jsonl:0"]
    assert [form.describe() for form in recognize(io.BytesIO(content), "x.zip")] == [
        "CSV, semicolons between columns, in zip", "JSON lines, in zip",
    ]  # fmt: skip


def encrypted() -> bytes:
    content = bytearray(zip_of({"x.csv": b"text\nhi\n"}))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


REFUSED: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "encrypted zip": ("x.zip", encrypted(), {}, "encrypted; unpack it"),
    "zip of bzip2": ("x.zip", zip_of({"x.csv": b"a"}, zipfile.ZIP_BZIP2), {}, "not compressed by deflate"),
    "zip in zip": ("x.zip", zip_of({"y.zip": zip_of({"x.csv": b"text\nhi\n"})}), {}, "a .zip file itself"),
    "zip without a format": ("x.zip", zip_of({"README": b"hello"}), {}, "tell no format"),
    "damaged zip": ("x.zip", zip_of({"x.csv": b"text\nhi\n"})[:-9], {}, "not a readable .zip file"),
    "workbook": ("x.xlsx", zip_of({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), {}, "save it as CSV"),
    "SQLite": ("x.csv", b"SQLite format 3\0" + bytes(100), {}, "export"),
    "tar": ("x.tar.gz", gzip.compress(b"x" * 257 + b"ustar" + bytes(250)), {}, "tar archive"),
    "Feather 1": ("x.feather", b"FEA1" + bytes(100), {}, "write_feather"),
    "pointer of Git LFS": ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid x\n", {}, "git lfs pull"),
    "a page": ("x.csv", b"\n<!DOCTYPE html>\n<html>404</html>\n", {}, "a page in HTML: .* --format text"),
    "a page as text": ("x.txt", b"<html><body>404</body></html>\n", {}, "a page in HTML"),
    "XML": ("x.xml", b"<?xml version='1.0'?>\n<posts/>\n", {}, "it is XML"),
    "a store's error": ("x.csv", b"<Error><Code>NoSuchKey</Code></Error>", {}, "error message of an object store"),
    "rows without names": ("x.txt", b"1\tgood\tso happy\n2\tbad\tso sad\n", {}, "its lines have 2 tab.*--format tsv"),
    "no name": ("x", b"hello", {}, "--format"),
    "packed too often": ("x.txt", gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"a"))))), {},
                         "decompress it"),
    "a column twice": ("x.csv", b"id,text,id,text\n1,a,2,b\n", {}, "column text is there twice"),
    "a column twice in Parquet": ("x.parquet", b"", {}, ""),
    "no header": ("x.csv", b"1467810001,hi\n1467810002,ho\n", {}, "--no_header"),
    "too few names": ("x.csv", b"1467810001,hi\n", {"columns": ("a",), "no_header": True}, "names each|name each"),
}  # fmt: skip
del REFUSED["a column twice in Parquet"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_in_one_line_with_the_remedy(name: str) -> None:
    path, content, options, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        read(content, path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [ipc.new_file, ipc.new_stream])
def test_a_column_that_is_there_twice_is_refused_in_arrow(make: Callable[..., Any]) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InputError, match="column text is there twice"):
        read(in_arrow(make, table), "x.arrow")
    file = io.BytesIO()
    pq.write_table(table, file)
    with pytest.raises(InputError, match="column text is there twice"):
        read(file.getvalue(), "x.parquet")


ADVICE: dict[str, tuple[str, bytes, dict[str, Any], dict[str, Any], int]] = {
    "--format": ("x.docx", b"so happy\n", {}, {"format": "text"}, 1),
    "--columns": ("x.csv", b"id,text,id,text\n1,a,2,b\n", {}, {"columns": ("id", "text", "user", "bio")}, 1),
    "--no_header": ("x.csv", b"1467810001,hi\n1467810002,ho\n", {}, {"columns": ("id", "text"), "no_header": True}, 2),
    "--no_header alone": ("x.csv", b"1467810001,hi\n", {}, {"no_header": True}, 1),
    "each": ("x.csv", b"1467810001,hi\n", {"columns": ("a",)}, {"columns": ("a", "b"), "no_header": True}, 1),
    "--encoding cp1252": ("x.txt", "can’t\n".encode("cp1252"), {}, {"encoding": "cp1252"}, 1),
    "--encoding": ("x.csv", "1467810001,café\n".encode("latin-1"), {}, {"encoding": "latin-1", "no_header": True}, 1),
    "rows": (
        "x.txt",
        b"good\tso happy\nbad\tso sad\n",
        {},
        {"format": "tsv", "columns": ("a", "b"), "no_header": True},
        2,
    ),
    "whole lines": ("x.txt", b"<html> is\n", {}, {"format": "text"}, 1),
    "zip": ("x.zip", zip_of({"README": b"hello"}), {}, {"format": "text"}, 1),
}


@pytest.mark.parametrize("advice", ADVICE)
def test_what_a_message_advises_helps(advice: str) -> None:
    path, content, before, after, rows = ADVICE[advice]
    try:
        said = next(record.reason for record in read(content, path, **before) if isinstance(record, Damage))
    except InputError as error:
        said = str(error)
    for name in after:
        assert f"--{name}" in said or name in ("no_header", "columns")
    assert len(values(read(content, path, **after))) == rows


def test_long_windows_of_zstandard() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = compressor.compress(LINES.encode()) + compressor.flush()
    (damage,) = read(content, "x.jsonl.zst")
    assert isinstance(damage, Damage)
    assert "--long_window" in damage.reason and "zstd -d --long=31" in damage.reason
    assert values(read(content, "x.jsonl.zst", long_window=True)) == ROWS


def test_a_form_is_told_in_a_few_words() -> None:
    assert Form("jsonl").describe() == "JSON lines"
    (form,) = recognize(io.BytesIO(gzip.compress("text;id\ncafé;1\n".encode("cp1252"))), "x.csv.gz", FormOptions(
        encoding="cp1252"
    ))  # fmt: skip
    assert form.describe() == "CSV, semicolons between columns, cp1252, in gz"


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("café\n", "utf-8", "text, cp1252 as --encoding says, although it looks like UTF-8"),
        ("café\n", "cp1252", "text, cp1252"),
        ("cafe\n", "utf-8", "text, cp1252"),
    ],
)
def test_a_plan_doubts_an_encoding_if_the_file_looks_like_utf_8(text: str, encoding: str, said: str) -> None:
    (form,) = recognize(io.BytesIO(text.encode(encoding)), "x.txt", FormOptions(encoding="cp1252"))
    assert form.describe() == said
