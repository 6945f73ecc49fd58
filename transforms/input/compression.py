"""Compressed files as one stream of bytes, whatever compressed them, with bounds that hostile ones cannot pass."""

from __future__ import annotations

import bz2
import io
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import zstandard

from torchmoji_core.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION
from transforms.input.source_file import SourceFile

READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What is raised for damaged content of a compressed file, and may be for lack of memory: `raise_unless_damage`."""


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


_CODECS = {
    "gz": _Codec(partial(zlib.decompressobj, zlib.MAX_WBITS | 16), 4096, padding=b"\0"),
    "bz2": _Codec(bz2.BZ2Decompressor, 4096, (1 << 20,)),
    "zst": _Codec(zstandard.ZstdDecompressor().decompressobj, 512),
}
_CODECS["zstd"] = _CODECS["zst"]
COMPRESSIONS = tuple(_CODECS)


Readable: TypeAlias = SourceFile | io.BufferedReader


def decompress(file: SourceFile, compression: str | None) -> Readable:
    """A file's content; its reads raise `READ_ERRORS` where it is damaged or expands too far.

    Args:
        file: as it is stored.
        compression: one of `COMPRESSIONS`, or None for a plain file.
    """
    return file if compression is None else io.BufferedReader(_FrameReader(file, _CODECS[compression]), 1 << 17)


class _FrameReader(io.RawIOBase):
    """Decompresses frame after frame.

    Unlike the libraries' own readers it notices a truncated frame of zstandard, and a damaged one of bzip2 behind
    the first, where the rest of the file would pass for garbage to be ignored.
    """

    def __init__(self, file: SourceFile, codec: _Codec) -> None:
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
        self._ready = memoryview(self._frame.decompress(piece, *self._codec.limit))
        self._fresh = False
        self._bytes_out += len(self._ready)
        if self._frame.eof:
            # Step back, without copying: a hostile file may have millions of frames.
            self._bytes_in -= len(self._frame.unused_data)
            self._position -= len(self._frame.unused_data)
            self._frame = self._codec.new_frame()
            self._fresh = True
        return True

    def _next_piece(self) -> bytes:
        if self._position == len(self._compressed):
            self._compressed, self._position = self._file.read(1 << 16), 0
            if not self._compressed and not self._fresh:
                raise EOFError("compressed file ended before the end of its frame")
        piece = self._compressed[self._position : self._position + self._codec.piece]
        self._position += len(piece)
        self._bytes_in += len(piece)
        return piece
