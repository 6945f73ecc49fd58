"""Object stores through Beam's own filesystems: gs:// with the extra gcp, and whatever else Beam knows (azfs://).

Their libraries retry single requests already, Google's for two minutes; what comes through is judged by its status, or
by its kind where it has none.
"""

from __future__ import annotations

import functools
import http.client
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from transforms import metrics
from transforms.listing import FileFacts
from transforms.object_store import ObjectStore, StoredObject, TransientError, retrying

_PIECE_BYTES = 1 << 20
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NETWORK_LIBRARIES = ("urllib3", "requests")
_NETWORK_ERRORS = {"TransportError", "ServiceRequestError", "ServiceResponseError"}  # of google.auth, and azure.core
T = TypeVar("T")


class BeamStore(ObjectStore):
    """Objects of any of Beam's filesystems that have no directories."""

    def match(self, pattern: str) -> list[FileFacts]:
        found = _request(pattern, "list", lambda: FileSystems.match([pattern])[0].metadata_list)
        return [facts_of_beam(metadata) for metadata in found if not metadata.path.endswith("/")]

    def metadata(self, path: str) -> FileFacts | None:
        def look_up() -> FileFacts | None:
            filesystem = FileSystems.get_filesystem(path)
            return facts_of_beam(filesystem.metadata(path)) if filesystem.exists(path) else None

        return _request(path, "look-up", look_up)

    def open(self, path: str, version: str | None = None) -> StoredObject:
        metadata = self.metadata(path)
        if metadata is None:
            raise FileNotFoundError(f"{path}: not found")
        return _BeamObject(path, metadata.size_in_bytes)

    def read(self, path: str) -> bytes:
        stored = self.open(path)
        return stored.read_range(0, stored.size) if stored.size else b""

    def upload(self, local: Path, path: str) -> None:
        def upload_once() -> None:
            with local.open("rb") as content:
                target = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
                try:
                    while piece := content.read(_PIECE_BYTES):
                        target.write(piece)
                        metrics.get_on()
                except BaseException:
                    # Closing would publish what is there; Google's writer can be told not to.
                    getattr(target, "terminate", lambda: None)()
                    raise
                target.close()

        _request(path, "upload", upload_once)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        raise OSError(f"{path}: Beam's filesystem for this store cannot write only what is absent")

    def copy(self, source: str, destination: str) -> None:
        _request(source, "copy", lambda: FileSystems.get_filesystem(source).copy([source], [destination]))

    def delete(self, paths: Sequence[str]) -> None:
        def delete(path: str) -> None:
            if FileSystems.exists(path):
                FileSystems.delete([path])

        for path in paths:
            _request(path, "delete", functools.partial(delete, path))


def facts_of_beam(metadata: Any) -> FileFacts:
    """Beam's `FileMetadata`, which tells no version, as ours."""
    return FileFacts(metadata.path, metadata.size_in_bytes, metadata.last_updated_in_seconds or 0.0)


class _BeamObject(StoredObject):
    """Keeps a file open until a read fails; the next try opens it anew and goes on where the other stopped."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self.size = path, size
        self._file: BinaryIO | None = None

    def read_range(self, start: int, end: int) -> bytes:
        return _request(self._path, "read", lambda: self._read_once(start, end))

    def _read_once(self, start: int, end: int) -> bytes:
        file, self._file = self._file, None
        if file is None:
            file = FileSystems.open(self._path, compression_type=CompressionTypes.UNCOMPRESSED)
        file.seek(start)
        content = bytearray()
        while len(content) < end - start:
            more = file.read(end - start - len(content))
            if not more:
                raise TransientError(f"{len(content)} bytes came where {end - start} were asked for")
            content += more
        self._file = file
        return bytes(content)


def _request(path: str, operation: str, call: Callable[[], T]) -> T:
    def translated() -> T:
        try:
            return call()
        except TransientError:
            raise
        except Exception as error:  # every store has errors of its own
            raise _translate(path, error) from error

    return retrying(path, operation, translated)


def _translate(path: str, error: Exception) -> OSError:
    causes = list(_causes(error))
    # Beam says only "operation failed"; the reason is what it wraps.
    cause = next((each for each in causes if not isinstance(each, BeamIOError)), error)
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if any(type(each).__name__ == "RetryError" for each in causes):
        return OSError(f"{path}: {reason}")  # Google's client has tried for as long as it is told to
    status = next((status for status in map(_status, causes) if status), None)
    if status in _TRANSIENT_STATUSES or (status is None and any(map(_is_network, causes))):
        return TransientError(reason)
    if status == 404:
        return FileNotFoundError(f"{path}: not found ({reason})")
    if status in (401, 403):
        return PermissionError(
            f"{path}: access is denied ({reason}); check the credentials (for gs:// GOOGLE_APPLICATION_CREDENTIALS, or "
            "gcloud auth application-default login) and what they may do in this bucket"
        )
    return OSError(f"{path}: {reason}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it comes from, the outermost first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            details = each.exception_details if isinstance(each, BeamIOError) else None
            waiting += [*(details or {}).values(), each.__cause__, each.__context__]


def _status(error: Any) -> int | None:
    """The HTTP status that an error has, as the libraries of the stores keep it."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return int(status)
    return None


def _is_network(error: BaseException) -> bool:
    return (
        isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)
        or type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES
        or type(error).__name__ in _NETWORK_ERRORS
    )
