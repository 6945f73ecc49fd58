"""Where the files of a bundle are: a directory, a .zip, or either behind a URI. Moves bytes, knows no model.

Remote files are kept in a cache directory under the digest of their content, so a cached file that was damaged is
noticed and fetched again, and a remote bundle that was replaced is never mixed with its predecessor.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from torchmoji_core.errors import InputError

CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
WEIGHTS = "model.safetensors"
CARD = "MODEL_CARD.md"

# The most that is read of each file, in bytes: a bound on what a hostile archive or server can make us hold.
_LIMITS = {CONFIG: 16 << 20, VOCABULARY: 1 << 30, WEIGHTS: 8 << 30, CARD: 1 << 20}
_OPTIONAL = {CARD}


def cache_directory() -> Path:
    """Where remote files are kept: $TORCHMOJI_CACHE, or torchmoji/ in the user's cache directory."""
    if explicit := os.environ.get("TORCHMOJI_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchmoji"


def is_remote(location: str) -> bool:
    """Whether a location is a URI other than file://."""
    return "://" in location and not location.startswith("file://")


def read_uri(uri: str, limit: int = 8 << 30) -> bytes:
    """Read a whole file from a path or any URI that smart_open reads; no decompression.

    Raises:
        InputError: if it cannot be read, or is larger than `limit` bytes.
    """
    import smart_open

    try:
        with smart_open.open(uri, "rb", compression="disable") as file:
            content = file.read(limit + 1)
    except ImportError as error:
        raise InputError(f"{uri}: {str(error).splitlines()[0]}; install this package's extra for that store") from None
    except Exception as error:  # every store has errors of its own, and all of them mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{uri}: cannot be read ({reason}); check the address and your access to it") from None
    if len(content) > limit:
        raise InputError(f"{uri}: larger than {limit} bytes; that is no such file")
    return content


Content = bytes | Path
"""Of a file: itself, or for weights in a local directory their path, since those are mapped and not read."""


def digest_of(content: Content) -> str:
    """SHA-256, hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bundle_files(location: str, names: Collection[str]) -> dict[str, Content]:
    """The files of a bundle by name.

    Args:
        location: a directory, a .zip file, or a URI of either.
        names: which files; optional ones that are not there are left out.

    Raises:
        InputError: if the location does not exist, lacks a file, or holds something else.
    """
    if is_remote(location):
        if location.split("?")[0].endswith(".zip"):
            return _read_zip(io.BytesIO(read_uri(location, sum(_LIMITS.values()))), location, names)
        return _read_remote_directory(location.rstrip("/"), names)
    path = local_path(location)
    try:
        return _read_local(path, location, names)
    except OSError as error:
        raise InputError(f"model {location}: cannot be read ({error.strerror or error})") from None


def local_path(location: str) -> Path:
    """A path, or the path of a file:// URI.

    Raises:
        InputError: if it begins with the home of a user who is not there.
    """
    if location.startswith("file://"):
        return Path(unquote(location.removeprefix("file://")))
    try:
        return Path(location).expanduser()
    except RuntimeError as error:
        raise InputError(f"{location}: {error}") from None


def _read_local(path: Path, location: str, names: Collection[str]) -> dict[str, Content]:
    if path.is_dir():
        return _collect({name: path / name for name in _LIMITS if (path / name).is_file()}, location, names)
    if not path.exists():
        raise InputError(
            f"model {location}: no such directory or file; give a bundle, or leave the option out for the bundled model"
        )
    with path.open("rb") as file:
        return _read_zip(file, location, names)


def _collect(paths: Mapping[str, Path], location: str, names: Collection[str]) -> dict[str, Content]:
    _check_complete(paths, location)
    files: dict[str, Content] = {}
    for name in paths.keys() & names:
        path = paths[name]
        try:
            if path.stat().st_size > _LIMITS[name]:
                raise InputError(f"bundle {location}: {name} is larger than {_LIMITS[name]} bytes")
            files[name] = path if name == WEIGHTS else path.read_bytes()
        except OSError as error:
            raise InputError(f"bundle {location}: {name} cannot be read ({error.strerror})") from None
    return files


def _check_complete(names: Mapping[str, object], location: str) -> None:
    missing = [name for name in _LIMITS if name not in names and name not in _OPTIONAL]
    if missing:
        raise InputError(
            f"model {location}: not a bundle, {', '.join(missing)} missing; "
            "make one from a published checkpoint with python -m pipelines.convert"
        )


def _read_zip(file: BinaryIO, location: str, names: Collection[str]) -> dict[str, Content]:
    """Read the known names only, at the top or in one folder; nothing is extracted to a path the archive names."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {}
            for member in archive.infolist():
                folder, _, name = member.filename.rpartition("/")
                if name in _LIMITS and "/" not in folder:
                    members[name] = member
            _check_complete(members, location)
            files: dict[str, Content] = {}
            for name in members.keys() & names:
                with archive.open(members[name]) as file_in_archive:
                    content = file_in_archive.read(_LIMITS[name] + 1)
                if len(content) > _LIMITS[name]:
                    raise InputError(f"bundle {location}: {name} is larger than {_LIMITS[name]} bytes")
                files[name] = content
            return files
    except InputError:
        raise
    except Exception as error:  # zipfile and its decompressors raise many kinds for a damaged file
        raise InputError(f"model {location}: neither a bundle directory nor a readable .zip of one ({error})") from None


def _read_remote_directory(location: str, names: Collection[str]) -> dict[str, Content]:
    config = read_uri(f"{location}/{CONFIG}", _LIMITS[CONFIG])
    try:
        digests = dict(json.loads(config)["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"model {location}: its {CONFIG} is not that of a bundle") from None
    files: dict[str, Content] = {CONFIG: config}
    for name in digests.keys() & names:
        files[name] = _read_cached(f"{location}/{name}", str(digests.get(name)), _LIMITS[name])
    return files


def _read_cached(uri: str, digest: str, limit: int) -> bytes:
    """Read through the cache; one that cannot be read or written, or has no home, is done without."""
    path = None
    if len(digest) == 64 and digest.isalnum():
        with suppress(RuntimeError):
            path = cache_directory() / digest
    if path is not None:
        with suppress(OSError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content
    content = read_uri(uri, limit)
    if path is not None and hashlib.sha256(content).hexdigest() == digest:
        with suppress(OSError):
            write_atomically(path, content)
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, creating its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bundle_files(files: Mapping[str, bytes], target: Path) -> None:
    """Write a new bundle as a directory, or as one .zip file.

    Raises:
        InputError: if the target exists and is not an empty directory, or cannot be written.
    """
    try:
        if target.suffix == ".zip":
            if target.exists():
                raise InputError(f"{target} exists already; give a new name, a bundle is never overwritten")
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            write_atomically(target, buffer.getvalue())
            return
        if (target.is_dir() and any(target.iterdir())) or target.is_file():
            raise InputError(
                f"{target} exists already and is not empty; give a new name, a bundle is never overwritten"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            temporary.chmod(0o755)
            temporary.replace(target)  # replaces an empty directory, fails on any other
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
