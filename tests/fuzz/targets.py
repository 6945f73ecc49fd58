"""What is fuzzed: functions from bytes to nothing that raise where a promise is broken, with inputs to start from.

The caller lowers the bounds of the readers (`BOUNDS`), so that small inputs reach them.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import struct
from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pyarrow import ipc

from tests.reference.tokenizer_oracle import oracle_tokens
from torchmoji_core.errors import InputError
from torchmoji_core.token_rules import chunk_tokens
from torchmoji_core.tokenizer import Tokenizer, chunks
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary
from transforms.input import compression, forms, raw_records
from transforms.input.delimited import Dialect
from transforms.input.fields import FieldMapping, KeptField
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.parquet import parquet_rows
from transforms.input.parts import to_tweets
from transforms.input.posts import PostReader
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize
from transforms.input.source_file import SourceFile
from transforms.records import DeadLetter, Tweet

_RECORD_BYTES, _RAW_KEPT = 4096, 1024
BOUNDS = (
    (raw_records, "MAX_RECORD_BYTES", _RECORD_BYTES),
    (raw_records, "RAW_KEPT", _RAW_KEPT),
    (compression, "MAX_EXPANDED_BYTES", 1 << 20),
)
MAX_RECORDS = 50_000
MAX_ORACLE_CHARACTERS = 150
_COMPRESSIONS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("", bytes),
    (".gz", lambda content: gzip.compress(content, 1, mtime=0)),
    (".bz2", lambda content: bz2.compress(content, 1)),
    (".zst", zstandard.ZstdCompressor(level=1, write_checksum=True).compress),
]
FORMATS = tuple(forms.FORMATS)
_KINDS = ("string", "int64", "float64", "bool", "timestamp", "date", "json")


class Target(NamedTuple):
    """Something to fuzz."""

    run: Callable[[bytes], None]
    seeds: list[bytes]


# --- readers -------------------------------------------------------------------------------------------------------


def records(data: bytes) -> None:
    """Any bytes as a file of any format and compression.

    The first byte chooses the format, the second the compression, and whether the rest is compressed first.
    """
    if len(data) < 2:
        return
    kind = FORMATS[data[0] % len(FORMATS)]
    suffix, compress = (
        _COMPRESSIONS[data[1] % len(_COMPRESSIONS)] if kind not in ("parquet", "arrow") else _COMPRESSIONS[0]
    )
    payload = data[2:]
    content = compress(payload) if data[1] & 128 else payload
    plain = None if suffix and not data[1] & 128 else payload
    form = Form(kind, (suffix[1:],) if suffix else (), dialect=Dialect("\t" if kind == "tsv" else ","))
    found = list(islice(read_records(io.BytesIO(content), form), MAX_RECORDS))
    with contextlib.suppress(InputError):
        for seen in recognize(io.BytesIO(content), f"x.{kind}{suffix}"):
            list(islice(read_records(io.BytesIO(content), seen), MAX_RECORDS))
    for before, after in pairwise(found):
        assert before.position < after.position, (before, after)
    for record in found:
        assert len(record.raw) <= (_RAW_KEPT if isinstance(record, Damage) else _RECORD_BYTES + 1)
        assert isinstance(record, Record) or "\n" not in record.reason
        if plain is not None and kind not in ("parquet", "arrow"):
            assert plain[record.position :].startswith(record.raw)
    if kind in ("text", "jsonl") and not suffix:
        middle = len(content) // 2
        parts = [(0, middle), (middle, len(content))] if middle else [(0, None)]
        in_parts = [record for part in parts for record in read_records(io.BytesIO(content), form, *part)]
        assert in_parts == found or len(found) == MAX_RECORDS
    if kind == "parquet":
        _parquet_rows_are_all_told(content, found)
    reader = PostReader(_mapping("json"))
    assert len(list(to_tweets(iter(found), "x", reader))) == reader.counts["read"] >= len(found)


def _parquet_rows_are_all_told(content: bytes, found: list[Record | Damage]) -> None:
    try:
        rows, largest = parquet_rows(SourceFile(io.BytesIO(content)))
    except InputError:
        assert len(found) == 1 and isinstance(found[0], Damage)
        return
    assert 0 <= largest <= rows
    assert all(record.position < rows for record in found)
    if not any("cannot be read" in record.reason for record in found if isinstance(record, Damage)):
        assert len(found) == min(rows, MAX_RECORDS)


# --- fields --------------------------------------------------------------------------------------------------------


def values(data: bytes) -> None:
    """Any JSON object as a record with its text, id, time and one kept field of each type in turn."""
    source = io.BytesIO(data)
    kind = _KINDS[_byte(source) % len(_KINDS)]
    record = {name: _value(source, 0) for name in ("text", "id", "at", "kept")}
    for value in (record, {"data": record, "extra": record["kept"]}):
        (outcome,) = to_tweets(iter([Record(7, value, b"")]), "x.jsonl", PostReader(_mapping(kind)))
        if isinstance(outcome, DeadLetter):
            assert outcome.reason and len(outcome.reason) < 1000
            continue
        assert isinstance(outcome, Tweet)
        outcome.id.encode(), outcome.text.encode()  # no lone surrogates, which Parquet cannot hold
        field = KeptField("kept", kind)
        pa.array(outcome.extra, field.column.type)
        pa.array([outcome.timestamp], pa.timestamp("us", tz="UTC"))
        if kind == "json" and outcome.extra[0] is not None and not isinstance(record["kept"], str):
            json.loads(outcome.extra[0], parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _mapping(kind: str) -> FieldMapping:
    return FieldMapping(timestamp="at", keep=(KeptField("kept", kind),))


def _byte(source: io.BytesIO) -> int:
    return (source.read(1) or b"\0")[0]


def _value(source: io.BytesIO, depth: int) -> Any:
    """A JSON value that bytes stand for; when they end, null."""
    choice = _byte(source) % 12
    if choice == 0 or depth > 40:
        return None
    if choice <= 3:
        return _text(source.read(_byte(source)))
    if choice == 4:
        return "".join(chr(48 + byte % 10) for byte in source.read(_byte(source)))
    if choice == 5:
        return int.from_bytes(source.read(_byte(source)), "little", signed=True)
    if choice == 6:
        return struct.unpack("<d", source.read(8).ljust(8, b"\0"))[0]
    if choice == 7:
        return bool(_byte(source) & 1)
    if choice == 8:
        return int.from_bytes(source.read(5), "little", signed=True)
    if choice == 9:
        return [_value(source, depth + 1) for _ in range(_byte(source) % 8)]
    return {_text(source.read(_byte(source) % 8)): _value(source, depth + 1) for _ in range(_byte(source) % 8)}


# --- tokenizer -----------------------------------------------------------------------------------------------------

_WORDS = ["i", "you", "love", "don't", "a", "aa", "bb", ".", ",", "!!", "..", ":)", "<3"]
_VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *_WORDS])
_TOKENIZER = Tokenizer(_VOCABULARY)


def tokens(data: bytes) -> None:
    """Any text, lone surrogates included: cached, limited and uncached results are those of the oracle."""
    text = _text(data)
    found = _TOKENIZER.tokens(text)
    assert all(found)
    assert [token for chunk in chunks(text) for token in chunk_tokens(chunk)] == found
    limit = len(data) % 70
    assert _TOKENIZER.tokens(text, limit) == found[:limit]
    ids = _TOKENIZER.ids(text)
    assert ids == [_VOCABULARY.get(token, 1) for token in found]
    assert _TOKENIZER.ids(text, limit) == ids[:limit]
    assert _TOKENIZER.ids(text) == ids, "from the cache"
    if len(text) <= MAX_ORACLE_CHARACTERS:
        assert found == oracle_tokens(text)


def _text(data: bytes) -> str:
    """A text that bytes stand for; the first says in which encoding."""
    if data[:1] >= b"\xc0":
        return data[1:].decode("utf-16-le", "surrogatepass") if len(data) % 2 else data[1:].decode("latin-1")
    return data.decode("utf-8", "surrogateescape")


# --- where to start ------------------------------------------------------------------------------------------------

_ROWS = [
    {"id": "1", "text": "what a day", "at": "2024-03-21T08:58:32Z", "kept": {"a": [1, 2.5, None]}},
    {"id": "2", "text": 'she said "no", twice\n', "at": "1711011512", "kept": {"a": []}},
    {"id": "3", "text": "café ☕ 😍", "at": "Thu Mar 21 08:58:32 +0000 2024", "kept": None},
]


def _parquet(**options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_ROWS * 3), file, **options)
    return file.getvalue()


def _arrow(make: Callable[..., Any], compression: str | None) -> bytes:
    file = io.BytesIO()
    table = pa.Table.from_pylist(_ROWS * 3)
    table = table.append_column(
        "lang", pa.array(["en", "es"] * (len(table) // 2) + ["en"] * (len(table) % 2)).dictionary_encode()
    )
    with make(file, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def _record_seeds() -> list[bytes]:
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS).encode()
    content = {
        "text": b"one\ntwo\r\n\nthree",
        "jsonl": jsonl + b'\n[]\n{"text": NaN, "text": "twice"}\n{"text": "\\ud800\\u0000"}',
        "csv": b'id,text\n1,a\n2,"b ""c""\nd"\n\n3,"e\n',
        "tsv": b"id\ttext\r\n1\ta\r\n2\tb\n",
        "json": b"x.y = [\n" + jsonl.replace(b"}\n", b"}\n,") + b'{"text": [{"a": 1}]}, 5 ]\n{"text": "\xff"}',
    }
    seeds = []
    for kind, plain in content.items():
        for number, (_, compress) in enumerate(_COMPRESSIONS):
            head = bytes([FORMATS.index(kind)])
            seeds += [head + bytes([number | 128]) + plain, head + bytes([number]) + compress(plain)]
    head = bytes([FORMATS.index("parquet"), 0])
    variants: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "zstd", "row_group_size": 4},
        {"compression": "none", "use_dictionary": False, "store_schema": False},
        {"compression": "snappy", "data_page_version": "2.0", "write_statistics": False},
        {"compression": "none", "use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    ]
    arrow = bytes([FORMATS.index("arrow"), 0])
    compressions: list[str | None] = [None, "lz4", "zstd"]
    in_arrow = [
        arrow + _arrow(make, compression) for make in (ipc.new_file, ipc.new_stream) for compression in compressions
    ]
    return [*seeds, *(head + _parquet(**options) for options in variants), *in_arrow]


def _value_seeds() -> list[bytes]:
    text, number = b"\x01\x05hello", b"\x08\x20\x4e\x00\x00\x00"
    return [
        bytes([kind]) + text + number + at + kept
        for kind in range(len(_KINDS))
        for at in (b"\x01\x142024-03-21T08:58:32Z", b"\x06" + struct.pack("<d", 1.7e9), b"\x05\xff" + b"\x7f" * 255)
        for kept in (b"\x06" + struct.pack("<d", float("nan")), b"\x0a\x02\x01a\x09\x02\x08\x01\0\0\0\0\x07\x01", text)
    ]


_TEXTS = [
    "don't...:-) @ann sooooo good!!! 100% http://t.co/x?y=1 a.b@c.de #tag <3</3 ^_^ o_o :'( ™ ﬁ “wow…”",
    "www.x.y HTTPS://ſ.k İı K e\u0301\u0323\u0301 \u0660\u0661 x\\n\\\\r<br>y u.s.a. mr. prof. ##a @@b -_- >:)))",
    "aaabaaaaa!!!!a!!!!! " + "ha" * 150 + " " + "a!" * 150 + "@" + "b." * 100,
]
TARGETS = {
    "records": Target(records, _record_seeds()),
    "values": Target(values, _value_seeds()),
    "tokens": Target(
        tokens, [text.encode() for text in _TEXTS] + [b"\xff" + text.encode("utf-16-le") for text in _TEXTS]
    ),
}
