"""The members of .zip files, each read as a file of its own."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from torchmoji_core.bundle_files import ShortReads
from torchmoji_core.errors import InputError
from torchmoji_core.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION
from torchmoji_core.names import shown
from transforms.input.compression import ExpansionError, Readable
from transforms.input.raw_records import DamagedFileError
from transforms.input.source_file import SourceFile, raise_unless_damage

MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 64 << 20
"""Of the list of members, which Python reads whole and makes an object of 500 bytes of each."""
_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those whose output Python bounds; the others may give gigabytes for a few bytes."""


def members(file: SourceFile) -> list[str]:
    """The names of an archive's files, in its order.

    Raises:
        InputError: if it is no sound archive, or has what cannot be read; with the remedy.
    """
    names = []
    archive = _open(file)
    for member in archive.infolist():
        if member.is_dir():
            continue
        name = shown(member.filename)
        if member.flag_bits & _ENCRYPTED:
            raise InputError(f"its member {name} is encrypted; unpack it with its password, and give the directory")
        if member.compress_type not in _METHODS:
            raise InputError(f"its member {name} is not compressed by deflate; unpack it, and give the directory")
        names.append(member.filename)
    if len(set(names)) < len(names):
        raise InputError("it has two members of one name; unpack it, and give the directory")
    return names


def open_member(file: SourceFile, name: str) -> Readable:
    """A member's content; its reads raise `compression.READ_ERRORS` where it is damaged or expands too far."""
    archive = _open(file)
    try:
        return io.BufferedReader(_Bounded(archive.open(name), archive.getinfo(name).compress_size), 1 << 17)
    except (KeyError, RuntimeError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from None


def _open(file: SourceFile) -> zipfile.ZipFile:
    size = file.seek(0, io.SEEK_END)
    try:
        archive = zipfile.ZipFile(ShortReads(file, MAX_DIRECTORY_BYTES))  # type: ignore[arg-type]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise_unless_damage(error)
        raise DamagedFileError(f"not a readable .zip file: {error}") from None
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise InputError(f"it has more than {MAX_MEMBERS:,} members; unpack it, and give the directory")
    if sum(member.compress_size for member in listed) > size:
        raise InputError("its members overlap, as none do but those made to exhaust a machine")
    return archive


class _Bounded(io.RawIOBase):
    """A member that may expand no further than other compressed files."""

    def __init__(self, member: Any, compressed: int) -> None:
        self._member = member
        self._left = max(MAX_EXPANDED_BYTES, MAX_EXPANSION * compressed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._member.read(min(len(buffer), 1 << 17))
        except (RuntimeError, NotImplementedError) as error:
            raise zipfile.BadZipFile(str(error)) from None
        self._left -= len(piece)
        if self._left < 0:
            raise ExpansionError
        buffer[: len(piece)] = piece
        return len(piece)
