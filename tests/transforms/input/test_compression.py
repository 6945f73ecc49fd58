"""Compressed files: members are read one after another, and what is before damage is given."""

from __future__ import annotations

import struct

import pytest

from tests.transforms.input.records import AS, COMPRESS, one_damage, read, values
from transforms.input import raw_records
from transforms.input.raw_records import Damage, Record

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
