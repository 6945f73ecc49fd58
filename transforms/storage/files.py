"""Files on disks, in object stores and on HDFS: the one place that reads, lists, writes, publishes and deletes them.

Every failure is an OSError with a message of one line. Publishing is atomic: where a filesystem has a rename, a file
is written under a temporary name first; where it has none, as object stores, an object appears whole when it is closed.
It also lasts: on local disks, `sync` brings a file onto the disk before it gets its name, and then the name. Object
stores and HDFS keep what they have taken.
Operations on object stores (`objects`) are tried again if the failure may pass; local files and HDFS are Beam's.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from torchmoji_core import durable
from torchmoji_core.errors import DISK, ChangedError, fault_of, first_line
from torchmoji_core.files import open_regular
from torchmoji_core.stores import is_object
from transforms.storage import listing, objects
from transforms.storage.listing import FileFacts, Listing

_TRIES = 10
T = TypeVar("T")


def is_full(error: OSError) -> bool:
    """Whether a disk, or the user's share of it, is full."""
    return fault_of(error) is DISK


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
        raise OSError(f"{path}: {first_line(cause)}") from error
    except (ValueError, ImportError) as error:
        raise OSError(f"{path}: {first_line(error)}") from error


def can_rename(path: str) -> bool:
    """Whether files at a path can be renamed at once; object stores would copy them."""
    return not is_object(path)


def settings(path: str) -> dict[str, str]:
    """What a library with its own access to object stores needs for the one of a path; see `objects.settings`."""
    return objects.settings(path) if is_object(path) else {}


def is_local(path: str) -> bool:
    """Whether a location is a path; file: URIs have become paths before they come here, see `locations.plain`."""
    return FileSystems.get_scheme(path) is None


def open_raw(path: str) -> BinaryIO:
    """Open a file for reading, seekable, without decompression. What is local must be a regular file.

    Raises:
        OSError: if it cannot be opened.
    """
    if is_object(path):
        return objects.reader(path)
    if is_local(path):
        return open_regular(path)
    with _one_line_errors(path):
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]


def open_listed(path: str, version: str | None) -> BinaryIO:
    """Open a file as `open_raw` does, if it is what was listed.

    Args:
        path: its name.
        version: as of the `FileFacts` that it was listed with; None for whatever is there.

    Raises:
        OSError: if it cannot be opened.
        ChangedError: if there is another version by now.
    """
    if is_object(path):
        return objects.reader(path, version)
    file = open_raw(path)
    try:
        check_unchanged(file, path, version)
    except BaseException:
        file.close()
        raise
    return file


def check_unchanged(file: BinaryIO, path: str, version: str | None) -> None:
    """Make sure, after reading, that a file of `open_listed` was of one version from the beginning to the end.

    Objects need no check: each request for a part of one names the version.

    Raises:
        ChangedError: if not.
    """
    if version is not None and is_local(path) and listing.version(os.fstat(file.fileno())) != version:
        raise ChangedError.of(path)


def create(path: str) -> BinaryIO:
    """Open a file for writing from its beginning to its end, its directories made; nothing is compressed.

    In an object store the file appears when it is closed; see `discard`. Until then its content takes local disk.
    """
    if is_object(path):
        return objects.writer(path)
    with _one_line_errors(path):
        return _despite_removals(lambda: FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED))


def _despite_removals(make: Callable[[], T]) -> T:
    """Call again where `remove_empty` of another process has taken a directory as soon as it was made."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
            return make()
    return make()


def discard(file: BinaryIO) -> None:
    """Close a file of `create` that is not complete, as a `with` block does after an exception.

    In an object store, nothing appears; on other filesystems the unfinished file stays until it is deleted.
    """
    if isinstance(file, objects.ObjectWriter):
        file.discard()
    else:
        file.close()


def match(patterns: Iterable[str]) -> list[FileFacts]:
    """The files that globs match, each once, sorted by path.

    Raises:
        OSError: if not all of them can be known.
    """
    found: dict[str, FileFacts] = {}
    for pattern in patterns:
        matched = find(pattern)
        for error in matched.unlisted.values():
            if not isinstance(error, NotADirectoryError):
                raise error
        found.update({file.path: file for file in matched.files})
    return [found[path] for path in sorted(found)]


def find(pattern: str) -> Listing:
    """What a glob matches, and what of it could not be listed.

    Raises:
        OSError: if its store cannot be listed.
    """
    if is_object(pattern):
        return Listing(objects.match(pattern))
    if is_local(pattern):
        return listing.list_local(f"{pattern}*" if pattern.endswith("/") else pattern)
    with _one_line_errors(pattern):
        return Listing([_facts_of_beam(found) for found in FileSystems.match([pattern])[0].metadata_list])


def _facts_of_beam(metadata: Any) -> FileFacts:
    """Beam's `FileMetadata`, which tells no version, as ours."""
    return FileFacts(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds or 0.0)


def exists(path: str) -> bool:
    """Whether there is a file, or where filesystems have them a directory."""
    return metadata(path) is not None


def metadata(path: str) -> FileFacts | None:
    """Size and time of the last change of a file, or where filesystems have them of a directory; None if it is gone.

    Raises:
        OSError: if that cannot be told.
    """
    if is_object(path):
        return objects.metadata(path)
    if is_local(path):
        try:
            return listing.facts(path, os.stat(path))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
    with _one_line_errors(path):
        # Not `match`: it would take brackets in a name for a glob.
        found = FileSystems.exists(path) and FileSystems.get_filesystem(path).metadata(path)
        return _facts_of_beam(found) if found else None


def delete_directory(directory: str) -> None:
    """Delete a directory with all that is in it; it is no error if it is not there."""
    if can_rename(directory):
        delete([directory])
    else:
        delete(file.path for file in match([f"{glob.escape(directory)}/**"]))


def delete(paths: Iterable[str]) -> None:
    """Delete files; what is not there, or what another process deletes just now, is no error."""
    in_stores = []
    for path in paths:
        if is_object(path):
            in_stores.append(path)
        elif is_local(path):
            _delete_local(Path(path))
        else:
            with _one_line_errors(path):
                if FileSystems.exists(path):
                    FileSystems.delete([path])
    objects.delete(in_stores)


def _delete_local(path: Path) -> None:
    # Beam would take the name for a glob.
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    else:
        # NotADirectoryError: what should be its directory is a file, so it is not there either.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def rename(source: str, destination: str) -> None:
    """Give a file another name, its directories made. In an object store it is copied, and then deleted.

    The name is on the disk once its `directories` are (`sync`).
    """
    if is_object(destination):
        objects.copy(source, destination)
        objects.delete([source])
        return
    with _one_line_errors(destination):
        make_directory(destination.rpartition("/")[0], lasting=False)
        FileSystems.rename([source], [destination])


def make_directory(directory: str, lasting: bool = True) -> None:
    """Make a directory with its parents, where filesystems have them; another worker may be making it just now.

    Args:
        directory: its path.
        lasting: whether their names are to be on the disk on return; of many at once, `sync` brings them there cheaper.
    """
    if is_local(directory) and lasting:
        _despite_removals(lambda: durable.make_directories(directory))
        return
    if not can_rename(directory):
        return
    try:
        if not FileSystems.exists(directory):
            FileSystems.mkdirs(directory)
    except OSError:
        if not FileSystems.exists(directory):
            raise


def sync(paths: Iterable[str]) -> None:
    """Return when files, and what directories say of theirs, are on the disk and survive a power cut.

    It is called before anything says that a file counts, or deletes what the file replaces: for the file when it is
    closed, for its directory when it has its name.

    Raises:
        OSError: if that cannot be done.
    """
    durable.sync(path for path in paths if is_local(path))


def directories(path: str, top: str) -> list[str]:
    """The directory of a file and those above it, up to `top`: what `sync` needs for its name to be on the disk.

    >>> directories("out/date=2026-01-31/part-1.parquet", "out")
    ['out/date=2026-01-31', 'out']
    """
    found = []
    while len(path) > len(top) and "/" in path:
        path = path.rpartition("/")[0]
        found.append(path or "/")
    return found


def read_bytes(path: str) -> bytes:
    """The whole content of a file."""
    if is_object(path):
        return objects.read(path)
    with open_raw(path) as file, _one_line_errors(path):
        return file.read()


def publish(path: str, content: bytes, temporary: str, lasting: bool = True) -> None:
    """Write a file that appears whole or not at all, replacing one of that name.

    Args:
        path: its name.
        content: all of it.
        temporary: another name on the same filesystem; it is not used where objects appear whole anyway.
        lasting: whether it is to be on the disk on return; not needed of what is worth nothing after a power cut.
    """
    if not can_rename(path):
        _write(path, content)
        return
    _write(temporary, content)
    if lasting and is_local(path):
        make_directory(path.rpartition("/")[0])
        durable.replace(temporary, path)
    else:
        rename(temporary, path)


def _write(path: str, content: bytes) -> None:
    with create(path) as file, _one_line_errors(path):
        file.write(content)


def create_if_absent(path: str, content: bytes, temporary: str) -> bool:
    """Write a file that appears whole, to stay, if none of that name is there: of several writers, one succeeds.

    Args:
        path: its name.
        content: all of it, which no other writer has. If the name is taken, this tells whether by an earlier try of
            this writer, whose answer was lost.
        temporary: another name on the same filesystem, of this writer alone; not used where objects appear whole.

    Returns:
        Whether the file that is there is this writer's.

    Raises:
        OSError: if that cannot be known, so that the file may be there by now.
    """
    if is_object(path):
        return objects.put_if_absent(path, content)
    make_directory(path.rpartition("/")[0])
    try:
        _write(temporary, content)
        created = _name_if_absent(temporary, path)
    finally:
        delete([temporary])
    with contextlib.suppress(FileNotFoundError):
        return created or read_bytes(path) == content
    return False  # it was another's, and has been deleted


def _name_if_absent(temporary: str, path: str) -> bool:
    if is_local(path):
        return durable.name_if_absent(temporary, path)
    try:
        rename(temporary, path)  # HDFS replaces nothing
    except OSError:
        if not exists(path):
            raise
        return False
    return True


def remove_empty(directory: str, deep: bool = True) -> None:
    """Delete a local directory if no file is in it; elsewhere an empty one does no harm.

    Another process may be putting a file there just now, so only what is empty when it is deleted goes.

    Args:
        directory: its path.
        deep: whether empty directories in it are deleted first; only if nothing else writes there.
    """
    if is_local(directory):
        for path in [path for path, _, _ in os.walk(directory, topdown=False)] if deep else [directory]:
            with contextlib.suppress(OSError):
                Path(path).rmdir()
