"""Archives, JSON documents and Arrow's files of strangers: what they claim is bounded before it is believed."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from torchmoji_core.errors import InputError
from transforms.input import archives, arrow_ipc, raw_records
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize


def read(content: bytes, name: str) -> list[Record | Damage]:
    file = io.BytesIO(content)
    return [record for form in recognize(file, name) for record in read_records(file, form)]


# --- .zip ----------------------------------------------------------------------------------------------------------


def zipped(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def overlapping() -> bytes:
    """A list that names one member a hundred times."""
    content = zipped(("0.txt", bytes(range(256)) * 40))
    start = content.index(b"PK\1\2")
    entry, end = content[start : content.index(b"PK\5\6")], bytearray(content[content.index(b"PK\5\6") :])
    entries = b"".join(entry.replace(b"0.txt", b"%05d" % number) for number in range(100))
    struct.pack_into("<HHI", end, 8, 100, 100, len(entries))
    return content[:start] + entries + bytes(end)


def test_hostile_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="overlap"):
        read(overlapping(), "x.zip")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(InputError, match="more than 3 members"):
        read(zipped(*((f"{number}.txt", b"a") for number in range(4))), "x.zip")
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 10)
    with pytest.raises(InputError, match="list of members takes more"):
        read(zipped(("1.txt", b"a")), "x.zip")


def test_a_member_that_expands_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_EXPANDED_BYTES", 1 << 20)
    first, damage = read(zipped(("x.txt", b"good\n" + b" " * (8 << 20))), "x.zip")
    assert isinstance(first, Record) and first.value == "good"
    assert isinstance(damage, Damage) and "expanded" in damage.reason
    with pytest.raises(InputError, match="expanded"):  # Parquet is spooled before it is read
        read(zipped(("x.parquet", b"PAR1" + b" " * (8 << 20))), "x.zip")


def test_a_member_that_is_damaged() -> None:
    content = bytearray(zipped(("x.txt", b"".join(b"%d\n" % number for number in range(9999)))))
    content[4000] ^= 255
    assert isinstance(read(bytes(content), "x.zip")[-1], Damage)


# --- JSON ----------------------------------------------------------------------------------------------------------

MIB = 1 << 20
DOCUMENTS: dict[str, Callable[[], bytes]] = {
    "an endless string": lambda: b'[{"text": "' + b"x" * (40 * MIB),
    "an endless object": lambda: b"[{" + b'"a": 1, ' * (5 * MIB // 2),
    "brackets": lambda: b"[" * (8 * MIB),
    "objects in objects": lambda: b'[{"a":' * MIB,
    "a record above the bound": lambda: b'[{"text": "' + b"x" * (17 * MIB) + b'"},\n{"text": "good"}]',
    "nothing but commas": lambda: b"[" + b"," * (20 * MIB),
    "nothing but blanks": lambda: b"[" + b" " * (20 * MIB),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_documents(name: str) -> None:
    content = DOCUMENTS[name]()
    tracemalloc.start()
    count = 0
    for found in read_records(io.BytesIO(content), Form("json")):
        count += isinstance(found, Damage)
        assert isinstance(found, Damage) or found.value == {"text": "good"}
        assert len(found.raw) <= raw_records.RAW_KEPT
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1 <= count <= 3
    assert peak < 10 * raw_records.MAX_RECORD_BYTES


class Endless(io.RawIOBase):
    """An array of so many elements, made as it is read."""

    def __init__(self, elements: int) -> None:
        self._pieces = self._make(elements)
        self._ready = b""

    def _make(self, elements: int) -> Iterator[bytes]:
        yield b"[\n"
        for number in range(elements // 1000):
            yield b"".join(b'{"id": %d, "text": "so happy today"},\n' % (number * 1000 + each) for each in range(1000))
        yield b'{"id": -1, "text": "last"}]'

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, buffer: Any) -> int:
        self._ready = self._ready or next(self._pieces, b"")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def test_a_long_array_takes_no_more_memory_than_a_short_one() -> None:
    peaks = []
    for elements in (10_000, 60_000):
        tracemalloc.start()
        count = sum(1 for _ in read_records(Endless(elements), Form("json")))  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == elements + 1
    assert peaks[1] < peaks[0] + MIB


# --- Arrow ---------------------------------------------------------------------------------------------------------


def arrow(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    with ipc.new_stream(file, table.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def words(number: int) -> pa.Table:
    return pa.table({"text": [f"so happy {each}" for each in range(number)]})


def with_longs_changed(content: bytes, old: int, new: int) -> bytes:
    return content.replace(struct.pack("<q", old), struct.pack("<q", new))


def shared_value() -> bytes:
    """A text of 8 MiB, said a thousand times."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * (8 * MIB)]))
    return arrow(pa.table({"text": column}), compression="zstd")


def offsets_that_go_back() -> bytes:
    offsets = pa.py_buffer(struct.pack("<3i", 0, 1 << 30, 4))
    array = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcd")])
    return arrow(pa.table({"text": array}))


def test_hostile_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrow(words(777))
    files = {
        "rows that are not there": with_longs_changed(content, 777, 1 << 40),
        "a message of an exabyte": content[:4] + struct.pack("<i", 0x7FFFFFFF) + content[8:],
        "offsets that go back": offsets_that_go_back(),
        "buffers outside": with_longs_changed(content, len("".join(words(777)["text"].to_pylist())), 1 << 50),
        "nonsense": b"\xff\xff\xff\xff\x10\0\0\0" + b"\xff" * 500,
    }
    for name, hostile in files.items():
        found = list(read_records(io.BytesIO(hostile), Form("arrow")))
        assert found and isinstance(found[-1], Damage), name
        assert "\n" not in found[-1].reason
    for cut in range(0, len(content), 97):
        list(read_records(io.BytesIO(content[:cut]), Form("arrow")))
        changed = bytearray(content)
        changed[cut : cut + 4] = b"\xff\xff\xff\x7f"
        list(read_records(io.BytesIO(bytes(changed)), Form("arrow")))


def test_a_value_that_is_said_often_takes_its_memory_once() -> None:
    tracemalloc.start()
    found = sum(isinstance(record, Record) for record in read_records(io.BytesIO(shared_value()), Form("arrow")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 1000
    assert peak < 400 * MIB


def test_compressed_batches_that_expand_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrow(pa.table({"text": ["x" * (8 * MIB)]}), compression="zstd")
    assert len(read(content, "x.arrows")) == 1
    monkeypatch.setattr(arrow_ipc, "MAX_EXPANDED_BYTES", MIB)
    (damage,) = read(content, "x.arrows")
    assert isinstance(damage, Damage) and "expands to" in damage.reason


def test_one_text_that_is_no_utf_8_costs_its_row() -> None:
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    found = list(read_records(io.BytesIO(arrow(pa.table({"text": texts}))), Form("arrow")))
    assert [getattr(record, "value", None) for record in found] == [{"text": "one"}, None, {"text": "three"}]


TYPES = {
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    "view": pa.array(["a", "b", None, "a"], pa.string_view()),
    "large": pa.array(["a", "b", None, "a"], pa.large_string()),
    "binary": pa.array([b"a", b"b", None, b"a"]),
    "large binary": pa.array([b"a", b"b", None, b"a"], pa.large_binary()),
    "binary view": pa.array([b"a", b"b", None, b"a"], pa.binary_view()),
    "fixed-size binary": pa.array([b"a", b"b", None, b"a"], pa.binary(1)),
    "dictionary of binary": pa.array([b"a", b"b", None, b"a"]).dictionary_encode(),
    "runs": pa.RunEndEncodedArray.from_arrays([1, 2, 3, 4], ["a", "b", None, "a"]),
}


@pytest.mark.parametrize("name", TYPES)
def test_texts_of_every_type(name: str) -> None:
    table = pa.table({"text": TYPES[name], "in": pa.array([{"t": text} for text in ["a", "b", None, "a"]])})
    found = list(read_records(io.BytesIO(arrow(table)), Form("arrow")))
    assert [record.value for record in found if isinstance(record, Record)] == [
        {"text": text, "in": {"t": text}} for text in ["a", "b", None, "a"]
    ]


def test_nuls_that_pad_a_fixed_size_do_not_belong_to_the_text() -> None:
    table = pa.table({"id": pa.array([b"12\0\0", b"1234", b"\xff\0\0\0", None], pa.binary(4))})
    found = list(read_records(io.BytesIO(arrow(table)), Form("arrow")))
    assert [record.value["id"] for record in found] == ["12", "1234", b"\xff\0\0\0", None]  # type: ignore[union-attr,index]


def test_whole_decimals_are_numbers_with_all_their_digits() -> None:
    column = pa.array([1400000000000000001, None], pa.decimal128(38, 0))
    found = list(read_records(io.BytesIO(arrow(pa.table({"id": column, "in": [[1], None]}))), Form("arrow")))
    assert [record.value["id"] for record in found if isinstance(record, Record)] == [1400000000000000001, None]
    assert json.dumps([record.value for record in found if isinstance(record, Record)])
