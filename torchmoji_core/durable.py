"""What is written stays written, whatever happens to the power: bringing files and directories onto the disk.

A file survives a power cut when its content is on the disk, and the directory that holds its name, and the name of that
directory if it is new. Systems write all of that when they like, in any order, unless they are asked to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 16
"""A filesystem writes what several ask for at the same time together: 200 files take little longer than two."""
_WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_FOR_DIRECTORIES = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def sync(paths: Iterable[str | Path]) -> None:
    """Return when files and directories are on the disk: the content of files, the names in directories.

    Paths are opened again, after closing: a system reports an error of an earlier write to the first that asks.

    Raises:
        OSError: if one is not, so that it cannot be relied on. It is no error if the filesystem, or a right, does not
            allow that for directories: then nothing more can be done.
    """
    wanted = list(dict.fromkeys(os.fspath(path) or "." for path in paths))
    if len(wanted) == 1:
        _sync(wanted[0])
    elif wanted:
        with ThreadPoolExecutor(min(_THREADS, len(wanted))) as threads:
            list(threads.map(_sync, wanted))


def _sync(path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:
        if Path(path).is_dir():
            return  # one may put files into a directory that one may not read
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (error.errno in _NOT_FOR_DIRECTORIES and Path(path).is_dir()):
            raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


def reserve(path: str | Path) -> None:
    """Have the disk keep room for all of a file that will be written through a mapping.

    A page that then finds no room would end the process by a signal, without a word.

    Raises:
        OSError: if there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with Path(path).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def make_directories(path: str | Path) -> None:
    """Make a directory and those above it that are missing, to stay. Others may be making them at the same time.

    Raises:
        OSError: if that cannot be done.
    """
    path = Path(path)
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    sync(directory.parent for directory in missing)


def replace(temporary: str | Path, path: str | Path) -> None:
    """Give a closed file, or a directory whose files are on the disk, another name, to stay under it.

    Raises:
        OSError: if that cannot be done.
    """
    sync([temporary])
    Path(temporary).replace(path)
    sync([Path(path).parent])


def name_if_absent(temporary: str | Path, path: str | Path) -> bool:
    """Give a closed file another name, to stay, unless that is taken: of several at a time, one gets it.

    On a filesystem without hard links (FAT, some network and user-space ones) an empty file takes the name, and then
    the content its place. A process that dies between the two leaves the empty file.

    Returns:
        Whether it has got the name; the temporary one may still be there, too.

    Raises:
        OSError: if that cannot be done.
    """
    sync([temporary])
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        Path(temporary).replace(path)
    sync([Path(path).parent])
    return True


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Write a file, or a directory, that appears whole or not at all, to stay.

    Args:
        path: its name. A file of that name is replaced, and an empty directory.
        temporary: another name in the same directory, which what was killed may leave behind; None for one of its own.

    Yields:
        The temporary name. What is there at the end of the block takes the place; after an exception it is deleted.

    Raises:
        OSError: if that cannot be done; what was there before stays then.
    """
    temporary = temporary or unused_name(path)
    try:
        yield temporary
        if temporary.is_dir():
            sync(temporary.iterdir())
        replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by `replacing`; its directories are made.

    Raises:
        OSError: as it does.
    """
    make_directories(path.parent)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_if_absent(path: Path, content: bytes) -> bool:
    """Write a new file that appears whole or not at all, to stay; its directories are made.

    Returns:
        Whether it has got the name; what had it before, perhaps since a moment ago, stays.

    Raises:
        OSError: if that cannot be done.
    """
    if os.path.lexists(path):
        return False
    make_directories(path.parent)
    temporary = unused_name(path)
    try:
        temporary.write_bytes(content)
        return name_if_absent(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def unused_name(path: Path) -> Path:
    """A hidden name beside a path that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")
