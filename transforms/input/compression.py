"""Compressed files as one stream of bytes, whatever compressed them, with bounds that hostile ones cannot pass."""

from __future__ import annotations

import bz2
import io
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import zstandard

from torchmoji_core.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION
from transforms.input.source_file import SourceFile

READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError, zipfile.BadZipFile)
"""Raised for damaged content of a compressed file, and perhaps for lack of memory: see `raise_unless_damage`."""


class ExpansionError(OSError):
    """A file expands too far."""

    def __init__(self) -> None:
        super().__init__(
            f"it has expanded to {MAX_EXPANSION} times its size and more, as no data do but those made to exhaust "
            "a machine; if you trust the file, decompress it yourself and read what comes out"
        )


class _Codec(NamedTuple):
    """How frames of a compression are read, no more than about 16 MiB at a time."""

    new_frame: Callable[[], Any]
    piece: int
    """Compressed bytes to give at once where the decompressor cannot be told how much to return: by format, 4 kB of
    gzip hold at most 4 MiB, 512 bytes of zstandard 128 blocks of 128 KiB."""
    limit: tuple[int, ...] = ()
    """How much to return, where the decompressor can be told; 40 bytes of bzip2 may hold 46 MB."""
    padding: bytes = b""
    """What may stand between frames."""


LONG_WINDOW_BYTES = 1 << 31
"""What zstandard takes for its window at most, and only where it is asked for; else 128 MiB, as its command does."""
_XZ_MEMORY = 256 << 20
"""xz -9 takes 65 MiB."""
_CODECS = {
    "gz": _Codec(partial(zlib.decompressobj, zlib.MAX_WBITS | 16), 4096, padding=b"\0"),
    "bz2": _Codec(bz2.BZ2Decompressor, 4096, (1 << 20,)),
    "xz": _Codec(partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _XZ_MEMORY), 4096, (1 << 20,), b"\0"),
    "zst": _Codec(zstandard.ZstdDecompressor().decompressobj, 512),
}
_LONG_WINDOW = _Codec(zstandard.ZstdDecompressor(max_window_size=LONG_WINDOW_BYTES).decompressobj, 512)
ZIP = "zip"
COMPRESSIONS = {**{name: name for name in _CODECS}, "zstd": "zst", ZIP: ZIP}
"""By the suffixes of names."""
_MAGIC = {
    "gz": (b"\x1f\x8b\x08",),
    "bz2": tuple(
        b"BZh%d" % size + block for size in range(1, 10) for block in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
    ),
    "xz": (b"\xfd7zXZ\0",),
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60))),
    ZIP: (b"PK\x03\x04", b"PK\x05\x06"),
}
_IN_MEMORY = 16 << 20


Readable: TypeAlias = SourceFile | io.BufferedReader


def compression_of(beginning: bytes) -> str | None:
    """The compression by which a file begins, whatever its name is; None for none."""
    return next((name for name, magic in _MAGIC.items() if beginning.startswith(magic)), None)


def decompress(content: Readable, compression: str, long_window: bool = False) -> Readable:
    """The content of a compressed file; its reads raise `READ_ERRORS` where it is damaged or expands too far.

    Args:
        content: as it is stored.
        compression: one of `COMPRESSIONS` without `ZIP`, which `archives` reads.
        long_window: whether zstandard may take 2 GiB of memory for its window.
    """
    codec = _LONG_WINDOW if long_window and compression == "zst" else _CODECS[compression]
    return io.BufferedReader(_FrameReader(content, codec), 1 << 17)


def seekable(content: Readable) -> SourceFile:
    """Content in which any position can be read: what is decompressed is spooled to a temporary file.

    Raises:
        Exception: of `READ_ERRORS`, if it cannot be read to its end.
    """
    if isinstance(content, SourceFile):
        return content
    spooled = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - gone with its last reference
    while piece := content.read(1 << 20):
        spooled.write(piece)
    spooled.seek(0)
    return SourceFile(spooled)  # type: ignore[arg-type]


class _FrameReader(io.RawIOBase):
    """Decompresses frame after frame.

    Unlike the libraries' own readers it notices a truncated frame of zstandard, and a damaged one of bzip2 behind
    the first, where the rest of the file would pass for garbage to be ignored.
    """

    def __init__(self, file: Readable, codec: _Codec) -> None:
        self._file = file
        self._codec = codec
        self._frame = codec.new_frame()
        self._fresh = True
        self._compressed = b""
        self._position = 0
        self._ready = memoryview(b"")
        self._bytes_in = self._bytes_out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._decompress_piece():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress_piece(self) -> bool:
        """Decompress a little more; False at the end of the file."""
        if self._bytes_out > max(MAX_EXPANDED_BYTES, MAX_EXPANSION * self._bytes_in):
            raise ExpansionError
        piece = self._next_piece() if getattr(self._frame, "needs_input", True) else b""
        if self._fresh:
            piece = piece.lstrip(self._codec.padding) if self._codec.padding else piece
            if not piece:
                return self._position > 0
        self._ready = memoryview(self._decompress(piece))
        self._fresh = False
        self._bytes_out += len(self._ready)
        if self._frame.eof:
            # Step back, without copying: a hostile file may have millions of frames.
            self._bytes_in -= len(self._frame.unused_data)
            self._position -= len(self._frame.unused_data)
            self._frame = self._codec.new_frame()
            self._fresh = True
        return True

    def _decompress(self, piece: bytes) -> bytes:
        try:
            return self._frame.decompress(piece, *self._codec.limit)  # type: ignore[no-any-return]
        except zstandard.ZstdError as error:
            if "too much memory" not in str(error):
                raise
            raise zstandard.ZstdError(
                "it was compressed with a window of more than 128 MiB: give --long_window, which takes up to 2 GiB of "
                "memory, or rewrite it with: zstd -d --long=31"
            ) from None

    def _next_piece(self) -> bytes:
        if self._position == len(self._compressed):
            self._compressed, self._position = self._file.read(1 << 16), 0
            if not self._compressed and not self._fresh:
                raise EOFError("compressed file ended before the end of its frame")
        piece = self._compressed[self._position : self._position + self._codec.piece]
        self._position += len(piece)
        self._bytes_in += len(piece)
        return piece
