"""Recognizes the encoding of a text file, and gives any as UTF-8, the only one that readers of formats know."""

from __future__ import annotations

import codecs
import io
from typing import Any

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from transforms.input.compression import Readable

UTF_8 = "utf-8"
BOM = codecs.BOM_UTF8
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_WITH_MARK = ("utf-16", "utf-32")
_PIECE = 1 << 16
_DAMAGED = "torchmoji.damaged"
_NOT_UTF_8 = "\udcff"
"""Becomes a byte that no UTF-8 has, so that its record cannot be read."""


def check_encoding(name: str) -> str:
    """The usual name of an encoding.

    Raises:
        InputError: if Python has none of that name for texts.
    """
    try:
        found = codecs.lookup(name)
        if found._is_text_encoding and found.incrementaldecoder is not None:
            found.incrementaldecoder(_DAMAGED).decode(b"")  # some cannot go on behind damage
            return found.name
    except (LookupError, ValueError):
        pass
    raise InputError(
        f"--encoding {shown(name)} is unknown; give the name of one that Python has, such as utf-8, cp1252 (Windows), "
        "latin-1, mac-roman, shift_jis, gb18030, euc-kr, koi8-r"
    )


def detect(beginning: bytes, given: str | None) -> str:
    """The encoding of a text.

    Args:
        beginning: the first bytes of the file.
        given: what it is in where it has no byte order mark; None for UTF-8, or what its NULs tell.

    Raises:
        InputError: if the order of its bytes is neither given nor told.
    """
    for mark, name in _BOMS:
        if beginning.startswith(mark):
            return name
    if given in _WITH_MARK and beginning:
        by_nulls = _by_nulls(beginning) or ""
        if by_nulls.startswith(given):
            return by_nulls
        raise InputError(
            f"--encoding {given} needs a byte order mark, and it has none; give --encoding {given}-le or {given}-be, "
            "or the encoding that it is in"
        )
    return given or _by_nulls(beginning) or UTF_8


def _by_nulls(beginning: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: of what all texts have, such as spaces and ends of lines, most bytes are NUL."""
    fours, twos = len(beginning) // 4, len(beginning) // 2
    nulls = [beginning[index : fours * 4 : 4].count(0) for index in range(4)]
    if fours and nulls[2] == nulls[3] == fours and nulls[0] * 2 < fours:
        return "utf-32-le"
    if fours and nulls[0] == nulls[1] == fours and nulls[3] * 2 < fours:
        return "utf-32-be"
    first, second = beginning[: twos * 2 : 2].count(0), beginning[1 : twos * 2 : 2].count(0)
    if second > 1 and second * 5 >= twos and second > 8 * first:
        return "utf-16-le"
    if first > 1 and first * 5 >= twos and first > 8 * second:
        return "utf-16-be"
    return None


def as_utf_8(content: Readable, encoding: str, newline: str = "\n") -> Readable:
    """Content as UTF-8 with newlines; what cannot be decoded becomes bytes that are no UTF-8.

    Args:
        content: as it is stored.
        encoding: of it.
        newline: what ends its lines if that is another character.
    """
    if encoding == UTF_8 and newline == "\n":
        return content
    return io.BufferedReader(_Transcoder(content, encoding, newline), 1 << 17)


class _Transcoder(io.RawIOBase):
    def __init__(self, content: Readable, encoding: str, newline: str) -> None:
        self._content, self._newline = content, newline
        errors = "surrogateescape" if encoding == UTF_8 else _DAMAGED
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._ready = memoryview(b"")
        self._is_at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._is_at_end:
            piece = self._content.read(_PIECE)
            self._is_at_end = not piece
            text = self._decoder.decode(piece, final=self._is_at_end)
            if self._newline != "\n":
                text = text.replace(self._newline, "\n")
            self._ready = memoryview(text.encode(UTF_8, "surrogateescape"))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _mark_damage(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _NOT_UTF_8, error.end


codecs.register_error(_DAMAGED, _mark_damage)


def not_decoded(encoding: str, reason: str = "") -> str:
    """Why a record is damage, if its bytes are not of the file's encoding."""
    said = f"not {encoding.upper() if encoding == UTF_8 else encoding}{reason}"
    if encoding != UTF_8:
        return f"{said}; give the file's own --encoding"
    return f"{said}; if the file is in another encoding, name it, for instance --encoding cp1252 (Windows) or latin-1"


def is_utf_16_among_utf_8(raw: bytes | bytearray) -> bool:
    """Whether a line of UTF-8 has the NULs of a line that was joined to it in UTF-16."""
    return b"\0" in raw and len(raw) >= 8 and raw.count(0) * 5 >= len(raw) * 2
