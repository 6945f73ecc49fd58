"""Where things are, as users say it: a path, or a URI. The one place that knows that file:// is a path as well."""

from __future__ import annotations

import re
from urllib.parse import unquote

from torchmoji_core.errors import InputError

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
