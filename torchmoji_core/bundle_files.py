"""Where the files of a bundle are: a directory, a .zip, or either behind a URI. Moves bytes, knows no model.

The caller says for each file how large it may be. That is compared with what a directory, an archive or a server
says of its size, before anything of it is read. Remote files are kept in a cache directory under the digest of their
content, so a cached file that was damaged is noticed and fetched again, and a remote bundle that was replaced is never
mixed with its predecessor.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, cast

from torchmoji_core.downloads import download
from torchmoji_core.durable import make_directories, replacing, write_atomically, write_if_absent
from torchmoji_core.errors import InputError, raise_shortage
from torchmoji_core.files import open_regular
from torchmoji_core.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION
from torchmoji_core.locations import is_remote, local_path

CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
WEIGHTS = "model.safetensors"
CARD = "MODEL_CARD.md"

_NAMES = (CONFIG, VOCABULARY, WEIGHTS, CARD)
_OPTIONAL = {CARD}
_MOST_LISTED = 1 << 20
"""Bytes of an archive's list of members, of which there are four: 20,000 would take 20 MB of memory."""
_IN_MEMORY = 64 << 20
"""Of a remote archive; what is larger goes to a temporary file."""


def cache_directory() -> Path:
    """Where remote files are kept: $TORCHMOJI_CACHE, or torchmoji/ in the user's cache directory."""
    if explicit := os.environ.get("TORCHMOJI_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchmoji"


def read_uri(uri: str, limit: int) -> bytes:
    """Read a whole file from a URI, as `download`.

    Raises:
        InputError: as it does.
    """
    file = io.BytesIO()
    download(uri, limit, file)
    return file.getvalue()


Content = bytes | Path
"""Of a file: itself, or for weights in a local directory their path, since those are mapped and not read."""


def digest_of(content: Content) -> str:
    """SHA-256, hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BundleFiles(Protocol):
    """The files of one bundle."""

    def read(self, name: str, limit: int, digest: str = "") -> Content:
        """One file.

        Args:
            name: one of a bundle's files.
            limit: the most bytes that it may have.
            digest: its SHA-256, where that is known; it is kept under that.

        Returns:
            Its content, or the path of weights in a local directory; nothing of an optional file that is not there.

        Raises:
            InputError: if it is larger, or cannot be read.
        """


@contextmanager
def open_bundle_files(location: str, limit: int) -> Iterator[BundleFiles]:
    """Open the place where a bundle is.

    Args:
        location: a directory, a .zip file, or a URI of either.
        limit: the most bytes that a remote .zip file may have.

    Raises:
        InputError: if the location does not exist, lacks a file, or holds something else.
    """
    if is_remote(location) and not location.split("?")[0].endswith(".zip"):
        yield _RemoteDirectory(location)
        return
    if is_remote(location):
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            download(location, limit, cast(IO[bytes], file))
            yield _Archive(cast(IO[bytes], file), location)
        return
    path = local_path(location)
    try:
        if path.is_dir():
            yield _Directory(path, location)
            return
        with open_regular(path) as file:
            yield _Archive(file, location)
    except FileNotFoundError:
        raise InputError(
            f"model {location}: no such directory or file; give a bundle, or leave the option out for the bundled model"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"model {location}: cannot be read ({reason})") from None


def _check_complete(names: Collection[str], location: str) -> None:
    missing = [name for name in _NAMES if name not in names and name not in _OPTIONAL]
    if missing:
        raise InputError(
            f"model {location}: not a bundle, {', '.join(missing)} missing; "
            "make one from a published checkpoint with python -m pipelines.convert"
        )


def _check_size(location: str, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise InputError(
            f"bundle {location}: {name} has {size:,} bytes, above the {limit:,} that it can need by what "
            f"{CONFIG} says of the model"
        )


class _Directory:
    def __init__(self, path: Path, location: str) -> None:
        self._path, self._location = path, location
        self._names = [name for name in _NAMES if (path / name).is_file()]
        _check_complete(self._names, location)

    def read(self, name: str, limit: int, digest: str = "") -> Content:
        if name not in self._names:
            return b""
        try:
            with open_regular(self._path / name) as file:
                _check_size(self._location, name, os.fstat(file.fileno()).st_size, limit)
                content = b"" if name == WEIGHTS else file.read(limit + 1)
                _check_size(self._location, name, len(content), limit)  # it may be growing
                return self._path / name if name == WEIGHTS else content
        except OSError as error:
            raise InputError(f"bundle {self._location}: {name} cannot be read ({error.strerror})") from None


class _Archive:
    """The known names only, at the top or in one folder; nothing is extracted to a path that the archive names."""

    def __init__(self, file: IO[bytes], location: str) -> None:
        self._location = location
        with self._errors():
            self._archive = zipfile.ZipFile(cast(IO[bytes], ShortReads(file)))
            self._members: dict[str, zipfile.ZipInfo] = {}
            for member in self._archive.infolist():
                folder, _, name = member.filename.rpartition("/")
                if name in _NAMES and "/" not in folder:
                    if name in self._members:
                        raise InputError(f"bundle {location}: {name} is in it twice; which one is meant?")
                    self._members[name] = member
        _check_complete(self._members, location)

    def read(self, name: str, limit: int, digest: str = "") -> Content:
        if name not in self._members:
            return b""
        member = self._members[name]
        _check_size(self._location, name, member.file_size, limit)
        # Content that does not compress becomes a little larger.
        _check_size(self._location, f"{name}, compressed,", member.compress_size, limit + limit // 8 + 4096)
        if member.file_size > max(MAX_EXPANDED_BYTES, MAX_EXPANSION * member.compress_size):
            raise InputError(
                f"bundle {self._location}: {name} expands to more than {MAX_EXPANSION} times its size, as no weights "
                "do but those made to exhaust a machine; if you trust it, unpack it yourself and give the directory"
            )
        with self._errors():
            return _content(self._archive, member)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:  # zipfile and its decompressors raise many kinds for a damaged file
            raise InputError(
                f"model {self._location}: neither a bundle directory nor a readable .zip of one ({error})"
            ) from None


class ShortReads:
    """An archive for zipfile, which would read the list of its members at once, whatever its size.

    Args:
        file: the archive.
        most: bytes of that list.
    """

    def __init__(self, file: IO[bytes], most: int = _MOST_LISTED) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, lambda: True
        self._file, self._most = file, most

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise zipfile.BadZipFile(f"its list of members takes more than {self._most >> 20} MiB")
        return self._file.read(size)


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """What a member holds, decompressed no further than the size that the archive says; zipfile checks its sum.

    Of the other methods zipfile decompresses pieces without a bound: 4 kB of bzip2 may become gigabytes.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"compression method {member.compress_type} is not read; compress it with deflate")
    with archive.open(member) as file:
        content = b"".join(iter(lambda: file.read(_MOST_LISTED), b""))
    if len(content) != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} is cut off")
    return content


class _RemoteDirectory:
    def __init__(self, location: str) -> None:
        self._location = location.rstrip("/")

    def read(self, name: str, limit: int, digest: str = "") -> Content:
        if name in _OPTIONAL:
            return b""
        uri = f"{self._location}/{name}"
        return _read_cached(uri, digest, limit) if digest else read_uri(uri, limit)


def _read_cached(uri: str, digest: str, limit: int) -> bytes:
    """Read through the cache; one that cannot be read or written, or has no home, is done without."""
    path = None
    if len(digest) == 64 and digest.isalnum():
        with suppress(RuntimeError):
            path = cache_directory() / digest
    if path is not None:
        with suppress(OSError), open_regular(path) as file:
            content = file.read(limit)
            if hashlib.sha256(content).hexdigest() == digest:
                return content
    content = read_uri(uri, limit)
    if path is not None and hashlib.sha256(content).hexdigest() == digest:
        with suppress(OSError):
            write_atomically(path, content)
    return content


def check_output(target: Path) -> None:
    """Make sure, before the work starts, that a new bundle can be written.

    Raises:
        InputError: if there is something already, or nothing can be written there.
        OSError: if the disk is full.
    """
    if os.path.lexists(target):
        raise InputError(f"--output {target} exists already; give a new name")
    check_writable(f"--output {target}", target, "give another")


def check_writable(what: str, target: Path, remedy: str) -> None:
    """Make sure, before the work starts, that a file or directory can be made.

    Args:
        what: what it is called in the error.
        target: what is to be made, with the directories above it.
        remedy: what to do if it cannot, beside a look at the rights.

    Raises:
        InputError: if nothing can be written there.
        OSError: if the disk is full.
    """
    above = next(path for path in target.absolute().parents if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise_shortage(error)
        raise InputError(
            f"{what}: cannot be written ({error.strerror}); {remedy}, or check the rights of {above}"
        ) from None


def write_bundle_files(files: Mapping[str, bytes], target: Path) -> None:
    """Write a new bundle as a directory, or as one .zip file.

    Raises:
        InputError: if the target exists and is not an empty directory, or cannot be written.
    """
    try:
        if target.suffix == ".zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            if not write_if_absent(target, buffer.getvalue()):
                raise InputError(f"{target} exists already; give a new name, a bundle is never overwritten")
            return
        if (target.is_dir() and any(target.iterdir())) or target.is_file():
            raise InputError(
                f"{target} exists already and is not empty; give a new name, a bundle is never overwritten"
            )
        make_directories(target.parent)
        with replacing(target) as temporary:
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
