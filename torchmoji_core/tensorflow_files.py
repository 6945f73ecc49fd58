"""TensorFlow's checkpoints without TensorFlow: float32 tensors of one data file, as its index describes them.

The index is a table of LevelDB's format: blocks of entries from a name to a protocol buffer, `BundleEntryProto`, and
behind them a footer that says where they are. It is a stranger's file. So blocks may not overlap, names and numbers are
bounded, no tensor may lie outside the data, and each block and tensor has a CRC-32C that must be right.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = bytes.fromhex("57fb808b247547db")
"""The end of an index."""
INDEX_SUFFIX, DATA_SUFFIX = ".index", ".data-00000-of-00001"
_FOOTER = 48
_LARGEST_INDEX = 1 << 20
_LONGEST_NAME = 256
_MOST_TENSORS = 1_000
_MOST_AXES = 2
_FLOAT = 1
_LANES = 4096


def read_tensors(index: bytes, data: bytes) -> dict[str, NDArray[np.float32]]:
    """All tensors of a checkpoint, by name.

    Args:
        index: the file NAME.index.
        data: the file NAME.data-00000-of-00001.

    Returns:
        Read-only views of the data, float32, of the shapes that the index gives.

    Raises:
        InputError: without a file's name, if it is damaged, or holds what a DeepMoji model does not.
    """
    if len(index) > _LARGEST_INDEX:
        raise InputError(f"its index has {len(index):,} bytes, that of a DeepMoji model 814")
    try:
        entries = dict(_entries(index))
        header = dict(_fields(entries.pop("", b"")))
        if header.get(1) != 1 or header.get(2, 0) != 0:
            raise InputError("not one data file of little-endian numbers; save it again, unsharded")
        tensors = {name: _tensor(name, entry, data) for name, entry in entries.items()}
    except (IndexError, struct.error, ValueError) as error:
        raise InputError(f"its index is damaged ({error}); download it again") from None
    if sum(tensor.nbytes for tensor in tensors.values()) > len(data):
        raise InputError("claims more weights than the file holds; download it again")
    for name, tensor in tensors.items():
        _check(tensor.tobytes(), dict(_fields(entries[name])).get(6), f"tensor {shown(name)}")
    return tensors


def _entries(index: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and entries of all blocks, in the order of the file."""
    footer = index[-_FOOTER:]
    at = 0
    for _ in range(2):  # a list of other blocks, of which there are none, comes first
        _, at = _varint(footer, at)
    begun, count = 0, 0
    for _, place in _block(index, footer[at:]):
        offset, _ = _varint(place, 0)
        if offset < begun:
            raise InputError("its index has blocks that overlap; download it again")
        begun = offset + 1
        for name, entry in _block(index, place):
            count += 1
            if count > _MOST_TENSORS + 1:
                raise InputError(f"has more than {_MOST_TENSORS:,} tensors")
            yield name.decode(), entry


def _block(index: bytes, place: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each name is given by how much of the last one it begins with, and its rest."""
    offset, at = _varint(place, 0)
    size, _ = _varint(place, at)
    content = _part(index, offset, size + 1)
    _check(content, int.from_bytes(_part(index, offset + size + 1, 4), "little"), "its index")
    if content[-1]:
        raise InputError("its index is compressed (snappy), which is not read; save it again without compression")
    (restarts,) = struct.unpack("<I", content[-5:-1])
    entries = _part(content, 0, size - 4 - 4 * restarts)
    name, at = b"", 0
    while at < len(entries):
        shared, at = _varint(entries, at)
        more, at = _varint(entries, at)
        length, at = _varint(entries, at)
        if shared > len(name) or shared + more > _LONGEST_NAME:
            raise InputError("its index is damaged (a name that is too long); download it again")
        name = name[:shared] + _part(entries, at, more)
        yield name, _part(entries, at + more, length)
        at += more + length


def _tensor(name: str, entry: bytes, data: bytes) -> NDArray[np.float32]:
    """The values of an entry of the index: float32, whole, inside the data."""
    fields = dict(_fields(entry))
    shape = fields.get(2, b"")
    if not isinstance(shape, bytes):
        raise ValueError("a shape")
    axes = [dict(_fields(axis)).get(1, 0) for number, axis in _fields(shape) if number == 2 and isinstance(axis, bytes)]
    sizes = [axis for axis in axes if isinstance(axis, int)]
    offset, size = fields.get(4, 0), fields.get(5, 0)
    if fields.get(1) != _FLOAT or fields.get(3, 0) != 0 or 7 in fields or len(sizes) > _MOST_AXES:
        raise InputError(f"tensor {shown(name)} is no float32 array of a DeepMoji model, or only a part of one")
    if not isinstance(offset, int) or not isinstance(size, int) or math.prod(sizes) * 4 != size:
        raise InputError(f"tensor {shown(name)} has another size than its shape; download the index again")
    if offset + size > len(data):
        raise InputError(
            f"tensor {shown(name)} ends at byte {offset + size:,} of a data file that has {len(data):,}; "
            "download the data again"
        )
    return np.frombuffer(data, "<f4", size // 4, offset).reshape(sizes)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: number, and an integer or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:  # bytes, or a message
            size, at = _varint(message, at)
            value = _part(message, at, size)
            at += size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value = int.from_bytes(_part(message, at, size), "little")
            at += size
        else:
            raise ValueError("a field of unknown kind")
        yield number, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """An integer of at most 64 bits, seven in a byte, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise ValueError("a number without an end")


def _part(content: bytes, at: int, size: int) -> bytes:
    if size < 0 or at + size > len(content):
        raise ValueError("it is cut off")
    return content[at : at + size]


def _check(content: bytes, expected: object, what: str) -> None:
    if masked_crc32c(content) != expected:
        raise InputError(f"{what} does not match its check sum (CRC-32C); download it again")


def masked_crc32c(content: bytes) -> int:
    """CRC-32C as LevelDB and TensorFlow store it: rotated, and a constant added."""
    value = crc32c(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """The check sum of Castagnoli's polynomial; of 51 MB in 0.8 s.

    Pieces of equal length are taken at the same time, a byte of each in a step. The register is linear in what came
    before. So 32 more pieces, of zeros behind a single bit, say what each bit of it becomes behind a piece.
    """
    table = _table()
    width = len(content) // _LANES
    head = len(content) - width * _LANES
    register = 0xFFFFFFFF
    for byte in content[:head]:
        register = register >> 8 ^ int(table[(register ^ byte) & 255])
    if width:
        pieces = np.frombuffer(content, np.uint8, offset=head).reshape(_LANES, width)
        steps = np.zeros((width, _LANES + 32), np.uint8)
        steps[:, :_LANES] = pieces.T
        registers = np.zeros(_LANES + 32, np.uint32)
        registers[_LANES:] = 1 << np.arange(32, dtype=np.uint32)
        for step in steps:
            registers = registers >> 8 ^ table[(registers & 255) ^ step]
        values = registers.tolist()
        of_bits = values[_LANES:]
        for piece in values[:_LANES]:
            after = piece
            for bit, value in enumerate(of_bits):
                if register >> bit & 1:
                    after ^= value
            register = after
    return register ^ 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    """What each byte makes of an empty register."""
    table: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1 ^ (table & 1) * np.uint32(0x82F63B78)).astype(np.uint32)
    return table
