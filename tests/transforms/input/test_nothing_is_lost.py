"""Whatever happens to a file, what is in it is a record or a damage: nothing is lost, nothing passes for another."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from torchmoji_core.errors import InputError
from transforms.input.delimited import Dialect
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize

IDS = [str(10**18 + number) for number in range(12)]
TEXTS = ["so happy", 'a "quote"', "one, two", "café ☕", "tab\there", "x" * 50]


def text_of(id_: str) -> str:
    return f"{TEXTS[int(id_) % len(TEXTS)]} {id_}"


def as_lines(kind: str) -> list[bytes]:
    """A file of records as lines, the first of CSV and TSV the header."""
    rows = [{"id": id_, "text": text_of(id_)} for id_ in IDS]
    if kind == "jsonl":
        return [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    if kind == "json":
        return [
            b"[\n",
            *(json.dumps(row).encode() + b",\n" for row in rows[:-1]),
            json.dumps(rows[-1]).encode() + b"\n]",
        ]
    if kind == "tsv":
        return [b"id\ttext\n", *(f"{row['id']}\t{row['text'].replace(chr(9), ' ')}\n".encode() for row in rows)]
    quoted = (f'{row["id"]},"{row["text"].replace(chr(34), chr(34) * 2)}"\n'.encode() for row in rows)
    return [b"id,text\n", *quoted]


def forms(kind: str) -> Form:
    return Form(kind, dialect=Dialect("\t" if kind == "tsv" else ","))


def in_latin_1(line: bytes) -> bytes:
    return line.decode().encode("latin-1", "replace")


KINDS = ["jsonl", "json", "csv", "tsv"]
DAMAGE: dict[str, Callable[[list[bytes], int, int], list[bytes]]] = {
    "cut": lambda lines, at, by: [*lines[:at], lines[at][: by % len(lines[at])]],
    "cut in the middle": lambda lines, at, by: [*lines[:at], lines[at][: by % len(lines[at])], *lines[at + 1 :]],
    "duplicated": lambda lines, at, by: [*lines[:at], *lines[at:], *lines[at:]],
    "interleaved": lambda lines, at, by: [*lines[:at], lines[at][:by] + lines[by % len(lines)], *lines[at:]],
    "re-encoded": lambda lines, at, by: [*lines[:at], in_latin_1(lines[at]), *lines[at + 1 :]],
    "a stray quote": lambda lines, at, by: [*lines[:at], lines[at].replace(b",", b',"', 1), *lines[at + 1 :]],
    "NULs": lambda lines, at, by: [*lines[:at], bytes(by), *lines[at:]],
}  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(KINDS), how=st.sampled_from(list(DAMAGE)), at=st.integers(1, 11), by=st.integers(1, 60))
def test_each_record_is_itself_or_told(kind: str, how: str, at: int, by: int) -> None:
    lines = as_lines(kind)
    content = b"".join(DAMAGE[how](lines, at, by))
    found = list(read_records(io.BytesIO(content), forms(kind)))
    good = [record.value for record in found if isinstance(record, Record)]
    damages = [record for record in found if isinstance(record, Damage)]
    assert all(isinstance(value, dict) for value in good)
    ids = [value.get("id") for value in good if isinstance(value, dict)]
    if kind != "json":
        rows = sum(bool(line.strip()) for line in content.split(b"\n")) - (kind != "jsonl")
        assert len(found) == rows, "each line is told"
    if how != "cut":  # what was cut off is nowhere
        lost = set(IDS) - set(ids)
        assert len(lost) <= len(damages) + 2  # a line without its end takes the next with it
        at_least = [] if kind == "json" and how in ("interleaved", "duplicated") else IDS[: max(0, at - 2)]
        assert set(at_least) <= set(ids)
    for before, after in pairwise(found):
        assert before.position < after.position
    covered = sum(len(record.raw) for record in found)
    assert covered >= len(content) - content.count(b"\n") - 8 * len(found) - len(lines[0]) - by
    # Nobody has the text of two.
    for value in good:
        text = value.get("text") if isinstance(value, dict) else None
        assert not isinstance(text, str) or sum(id_ in text for id_ in IDS) <= 1 or how == "interleaved", value


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 3000), make=st.sampled_from([ipc.new_file, ipc.new_stream]))
def test_arrow_that_is_cut_gives_what_is_there_and_says_so(cut: int, make: Callable[..., object]) -> None:
    file = io.BytesIO()
    table = pa.table({"id": IDS, "text": [text_of(id_) for id_ in IDS]})
    with make(file, table.schema) as writer:  # type: ignore[attr-defined]
        writer.write_table(table, max_chunksize=3)
    content = file.getvalue()
    found = list(read_records(io.BytesIO(content[:cut]), Form("arrow")))
    ids = [record.value["id"] for record in found if isinstance(record, Record)]  # type: ignore[index]
    assert ids == IDS[: len(ids)]
    is_file = make is ipc.new_file
    if 0 < cut < len(content) and (is_file or len(ids) % 3):
        assert isinstance(found[-1], Damage)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_bytes_are_recognizing_and_reading_ends(kind: str) -> None:
    for content in (
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        b"[" * 100,
        b'"' * 99,
        b"\n" * 100,
        b"{" * 9,
        b"\xff\xfe",
        b"\r" * 9,
    ):
        try:
            (form,) = recognize(io.BytesIO(content), f"x.{kind}")
        except InputError as error:
            assert "\n" not in str(error)
            continue
        list(read_records(io.BytesIO(content), form))
