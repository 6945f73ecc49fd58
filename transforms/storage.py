"""Files on any of Beam's filesystems: the one place that reads, lists, writes, publishes and deletes them.

Every failure is an OSError with a message of one line. Publishing is atomic: where a filesystem has a rename, a file
is written under a temporary name first; where it has none, as object stores, an object appears whole when it is closed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

_SCHEMES_WITH_RENAME = (None, "file", "hdfs")
_TRIES = 10


@contextlib.contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
    """Filesystems raise what they like, of several lines, and ValueError or ImportError where an extra is missing."""
    try:
        yield
    except BeamIOError as error:
        causes = list((error.exception_details or {}).values())
        cause = causes[0] if causes else error
        if isinstance(cause, OSError) and not isinstance(cause, BeamIOError):
            raise cause from error
        raise OSError(f"{path}: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}") from error
    except (ValueError, ImportError) as error:
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


def can_rename(path: str) -> bool:
    """Whether files at a path can be renamed at once; object stores would copy them."""
    return FileSystems.get_scheme(path) in _SCHEMES_WITH_RENAME


def open_raw(path: str) -> BinaryIO:
    """Open a file for reading, seekable, without decompression."""
    with _one_line_errors(path):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]


def create(path: str) -> BinaryIO:
    """Open a file for writing from its beginning to its end, its directories made; nothing is compressed."""
    with _one_line_errors(path):
        for _ in range(_TRIES):
            # `remove_empty` of another process may take the new directory at once.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]
        return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]


def match(patterns: Iterable[str]) -> list[FileMetadata]:
    """The files that globs match, each once, sorted by path."""
    patterns = list(patterns)
    with _one_line_errors(", ".join(patterns)):
        results = FileSystems.match(patterns)
    found = {metadata.path: metadata for result in results for metadata in result.metadata_list}
    return [found[path] for path in sorted(found)]


def exists(path: str) -> bool:
    with _one_line_errors(path):
        return bool(FileSystems.exists(path))


def size(path: str) -> int:
    """Bytes of a file."""
    with _one_line_errors(path):
        # Not `match`: it would take brackets in a name for a glob.
        return int(FileSystems.get_filesystem(path).size(path))


def metadata(path: str) -> FileMetadata | None:
    """Size and time of the last change of a file; None if it is not there."""
    with _one_line_errors(path):
        filesystem = FileSystems.get_filesystem(path)
        return filesystem.metadata(path) if filesystem.exists(path) else None


def delete_directory(directory: str) -> None:
    """Delete a directory with all that is in it; it is no error if it is not there."""
    delete(file.path for file in match([f"{directory}/**"]))
    if can_rename(directory):
        delete([directory])


def delete(paths: Iterable[str]) -> None:
    """Delete files; what is not there, or what another process deletes just now, is no error."""
    for path in paths:
        with _one_line_errors(path):
            try:
                if FileSystems.exists(path):
                    FileSystems.delete([path])
            except OSError:
                if FileSystems.exists(path):
                    raise


def rename(source: str, destination: str) -> None:
    """Give a file another name, its directories made."""
    with _one_line_errors(destination):
        make_directory(destination.rpartition("/")[0])
        FileSystems.rename([source], [destination])


def make_directory(directory: str) -> None:
    """Make a directory with its parents, where filesystems have them; another worker may be making it just now."""
    try:
        if not FileSystems.exists(directory):
            FileSystems.mkdirs(directory)
    except OSError:
        if not FileSystems.exists(directory):
            raise


def read_bytes(path: str) -> bytes:
    """The whole content of a file."""
    with open_raw(path) as file, _one_line_errors(path):
        return file.read()


def publish(path: str, content: bytes, temporary: str) -> None:
    """Write a file that appears whole or not at all, replacing one of that name.

    Args:
        path: its name.
        content: all of it.
        temporary: another name on the same filesystem; it is not used where objects appear whole anyway.
    """
    first = temporary if can_rename(path) else path
    with create(first) as file, _one_line_errors(first):
        file.write(content)
    if first != path:
        rename(first, path)


def remove_empty(directory: str, deep: bool = True) -> None:
    """Delete a local directory if no file is in it; elsewhere an empty one does no harm.

    Another process may be putting a file there just now, so only what is empty when it is deleted goes.

    Args:
        directory: its path.
        deep: whether directories in it that are empty go first, as only who alone writes there may ask for.
    """
    if FileSystems.get_scheme(directory) is None:
        for path in [path for path, _, _ in os.walk(directory, topdown=False)] if deep else [directory]:
            with contextlib.suppress(OSError):
                Path(path).rmdir()
