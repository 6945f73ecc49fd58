"""Local files as they are given: opened only if they are files, and their names as text. No Beam."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from torchmoji_core.errors import InputError

_URI = "file://"
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class NotRegularError(OSError):
    """What is there is no regular file, and no link to one."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a local file for reading, unless it is something that a read might wait for, or never come to the end of.

    Use it for every file that a user names, instead of `open(path, "rb")`. It looks before it opens, since opening
    alone has effects on a pipe or a device, and again at what it has opened, since another may be there by then.

    Args:
        path: its name; a link is followed.

    Returns:
        The file, buffered and seekable.

    Raises:
        NotRegularError: if it is a pipe, a socket, a device (a terminal, /dev/zero) or a directory.
        OSError: if it cannot be opened: not there, not permitted, links in a circle.
    """
    _check_regular(os.stat(path), path)  # noqa: PTH116
    return io.open(path, "rb", opener=_open_without_waiting)  # noqa: UP020 - the name by which all else opens files


def _open_without_waiting(path: str, flags: int) -> int:
    # Not blocking, or a pipe that has just taken the file's place would wait for a writer.
    descriptor = os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(descriptor), path)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_limited(what: str, path: str | os.PathLike[str], limit: int) -> bytes:
    """All of a file of `open_regular`.

    Args:
        what: what to call it in errors.
        path: its name.
        limit: the most bytes that it may have; compared before it is read, and again, since it may be growing.

    Raises:
        InputError: if it cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            is_larger = os.fstat(file.fileno()).st_size > limit
            content = b"" if is_larger else file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what}: cannot be read ({reason}); check the path and your access to it") from None
    if is_larger or len(content) > limit:
        raise InputError(f"{what}: has more than {limit:,} bytes; this is no such file")
    return content


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENXIO
        raise NotRegularError(
            code, f"{kind}, where only a regular file, or a link to one, can be read", os.fspath(path)
        )


def name_as_text(path: str) -> str:
    """A file's name as valid Unicode, for columns and JSON: two names never become the same text.

    Names are bytes, and Python has those that are no UTF-8 as lone surrogates, which no file format can hold. Such a
    name becomes its file URI, with all bytes but plain ones percent-encoded. All other names stay as they are, percent
    signs included: a path is absolute, or a URI of another scheme, so it never begins like a file URI.

    >>> name_as_text("/data/100%25 café.txt")
    '/data/100%25 café.txt'
    >>> name_as_text("/data/caf\\udce9.txt")
    'file:///data/caf%E9.txt'
    """
    if not path.startswith(_URI):
        try:
            path.encode()
            return path
        except UnicodeEncodeError:
            pass
    return _URI + quote(path.encode("utf-8", "surrogateescape"))


def as_text(name: str) -> str:
    """A name, or what `name_as_text` has made of one, as valid Unicode."""
    return name if name.isascii() else name_as_text(name)


def name_from_text(text: str) -> str:
    """The name that `name_as_text` was given.

    >>> name_from_text("file:///data/caf%E9.txt")
    '/data/caf\\udce9.txt'
    """
    if not text.startswith(_URI):
        return text
    return unquote_to_bytes(text.removeprefix(_URI)).decode("utf-8", "surrogateescape")
