"""Where things are, as users say it: a path, or a URI. The one place that knows that file:// is a path as well."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown

_FILE_URI = re.compile(r"file:(?://(?P<host>[^/]*)|(?!//))(?P<path>/.*)", re.DOTALL | re.IGNORECASE)


def plain(location: str) -> str:
    """A location, or for a file: URI the path that it stands for.

    >>> plain("file:///data/so%20many.txt"), plain("file://localhost/data"), plain("s3://bucket/key"), plain("a%20b")
    ('/data/so many.txt', '/data', 's3://bucket/key', 'a%20b')

    Raises:
        InputError: for a file: URI of another machine, or without an absolute path.
    """
    if location[:5].lower() != "file:":
        return location
    match = _FILE_URI.fullmatch(location)
    if match is None or match["host"] not in (None, "", "localhost"):
        raise InputError(f"{location}: is no file on this machine; the form is file:///PATH, or just the path")
    return unquote(match["path"], errors="surrogateescape")


def is_remote(location: str) -> bool:
    """Whether a location is a URI other than file:."""
    return "://" in plain(location)


def local_path(location: str | Path) -> Path:
    """A path, or the path of a file: URI.

    Raises:
        TypeError: for what is no path.
        InputError: if it begins with the home of a user who is not there, or is no file of this machine.
    """
    if not isinstance(location, (str, Path)):
        raise TypeError(f"a path is a str or a Path, not {shown(location)}")
    location = str(location)
    if is_remote(location):
        raise InputError(f"{location}: a path on this machine is needed here; copy from or to elsewhere yourself")
    try:
        return Path(plain(location)).expanduser()
    except RuntimeError as error:
        raise InputError(f"{location}: {error}") from None
