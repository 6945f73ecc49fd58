"""A few rows in every format and compression, and what reading them gives."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from transforms.input.delimited import Dialect
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.raw_records import Damage, Record

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


def parts_of(size: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    return list(pairwise(edges))
