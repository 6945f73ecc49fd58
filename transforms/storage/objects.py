"""Files in object stores. Nothing depends on a connection that stays open, so every request can be made again:

* Reading is by ranges of a few megabytes, each whole or tried again, and each of the version that was there first. A
  stream over the whole object would be cut off by the store while the model is busy with what was read.
* Writing collects the content in a temporary local file, and closing uploads it. So an upload can be begun again, and a
  file that is not closed, because of an exception or because a worker is gone, leaves nothing behind at the store.

All raise FileNotFoundError, PermissionError or another OSError with a message of one line that begins with the URI.
"""

from __future__ import annotations

import io
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import IO, Any, BinaryIO, TypeVar, cast

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import AzureOptions, PipelineOptions, S3Options

from torchmoji_core import stores
from torchmoji_core.errors import ChangedError, panics_are_errors
from torchmoji_core.patience import TransientError, request_seconds, retrying
from torchmoji_core.stores import MissingBucketError, object_address
from transforms import metrics
from transforms.storage.listing import FileFacts, translate

_RANGE_BYTES = 4 << 20
_PART_BYTES = 8 << 20
"""Larger content is uploaded in parts, some at a time, which obstore removes if that fails."""
_PARTS_AT_A_TIME = 4
_KEYS_PER_REQUEST = 1000
_OPTIONS: dict[str, tuple[type[PipelineOptions], dict[str, str]]] = {
    "s3": (
        S3Options,
        {
            "s3_endpoint_url": "endpoint",
            "s3_region_name": "region",
            "s3_access_key_id": "access_key_id",
            "s3_secret_access_key": "secret_access_key",
            "s3_session_token": "session_token",
            "s3_verify": "verify",
            "s3_disable_ssl": "disable_ssl",
        },
    ),
    "gs": (PipelineOptions, {}),
    "az": (AzureOptions, {"blob_service_endpoint": "endpoint", "azure_managed_identity_client_id": "client_id"}),
}
"""Beam's, and what `stores.store` calls them."""
T = TypeVar("T")


def match(pattern: str) -> list[FileFacts]:
    """The objects that a glob matches."""
    if pattern.endswith("/"):
        pattern += "*"
    prefix = re.split(r"[\[*?]", pattern, maxsplit=1)[0]
    if prefix == pattern:
        named = metadata(pattern)
        return [named] if named else []
    matches = translate(pattern).fullmatch
    listed = _request(prefix, "list", lambda: [facts for facts in _list(prefix) if matches(facts.path)])
    # obstore drops the slash at the end of a place holder of a directory, which is no file and has no bytes.
    found = {facts.path: facts for facts in listed if facts.size_in_bytes}
    empty = (metadata(facts.path) for facts in listed if facts.path not in found)
    return [*found.values(), *filter(None, empty)]


def _list(prefix: str) -> Iterator[FileFacts]:
    """What begins with a prefix; obstore lists whole directories, but can begin within one."""
    at = stores.address(prefix)
    directory, slash, name = at.key.rpartition("/")
    before = None if name[:-1] in ("", ".", "..") else directory + slash + name[:-1]
    root = prefix.removesuffix(at.key)
    for page in _store(prefix).list(directory or None, offset=before, chunk_size=_KEYS_PER_REQUEST):
        for each in page:
            if each["path"].startswith(at.key):
                yield _facts(root + each["path"], each)
            elif each["path"] > at.key and at.kind != "az":
                return  # S3 and Google list in order


def _facts(path: str, of: Any) -> FileFacts:
    # Google tells fractions of seconds, and Azure no quotation marks, in listings only.
    version = f'"{tag.strip(chr(34))}"' if (tag := of["e_tag"]) else None
    return FileFacts(path, of["size"], float(int(of["last_modified"].timestamp())), version)


def metadata(path: str) -> FileFacts | None:
    """Size, time of the last change and version of an object; None if there is none."""
    key = stores.address(path).key
    if not key or key.endswith("/"):
        return None
    try:
        return _head(path)
    except MissingBucketError:
        raise
    except FileNotFoundError:
        return None


def _head(path: str) -> FileFacts:
    key = object_address(path).key
    return _request(path, "look-up", lambda: _facts(path, _store(path).head(key)))


def read(path: str) -> bytes:
    """All of an object, of one version of it."""
    key = object_address(path).key
    return _request(path, "read", lambda: bytes(_store(path).get(key).bytes()))


def reader(path: str, version: str | None = None) -> BinaryIO:
    """A seekable file over an object.

    Args:
        path: its URI.
        version: as it was listed with, for a `ChangedError` if another takes its place; None for any.
    """
    facts = _head(path)
    if version not in (None, facts.version):
        raise ChangedError.of(path)
    return io.BufferedReader(_RawReader(facts, version is not None), _RANGE_BYTES)


class _RawReader(io.RawIOBase):
    def __init__(self, facts: FileFacts, as_listed: bool) -> None:
        super().__init__()
        self._facts, self._as_listed, self._position = facts, as_listed, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._facts.size_in_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the file's beginning")
        self._position = base + offset
        return self._position

    def _read(self, count: int) -> bytes:
        """So many bytes, or as many as there are."""
        from obstore.exceptions import PreconditionError

        path, start = self._facts.path, self._position
        end = min(start + count, self._facts.size_in_bytes)
        if end <= start:
            return b""
        key = object_address(path).key

        def get() -> bytes:
            options = {"range": (start, end), "if_match": self._facts.version}
            try:
                content = bytes(_store(path).get(key, options=options).bytes())
            except PreconditionError:
                if self._as_listed:
                    raise ChangedError.of(path) from None
                raise OSError(f"{path}: was replaced by another file while it was read; read it again") from None
            if len(content) != end - start:
                raise TransientError(f"{len(content)} bytes came where {end - start} were asked for")
            return content

        content = _request(path, "read", get)
        self._position = end
        return content

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._read(len(view))
        view[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._read(self._facts.size_in_bytes)


class ObjectWriter(io.BufferedIOBase):
    """A file for writing that becomes an object when it is closed, and only then.

    Leaving its `with` block by an exception, dropping it, and `discard` publish nothing, and an object of that
    name stays as it was.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._key, self._path = object_address(path).key, path
        self._local = tempfile.TemporaryFile(prefix="torchmoji-")  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._local.tell()

    def write(self, content: Any) -> int:
        return self._local.write(content)

    def close(self) -> None:
        """Upload.

        Raises:
            OSError: if that failed for good. Nothing is published then, and closing again is no second attempt.
        """
        if self.closed:
            return
        try:
            in_parts = self._local.tell() > _PART_BYTES
            _request(self._path, "upload", lambda: self._upload(in_parts))
        finally:
            self.discard()

    def _upload(self, in_parts: bool) -> None:
        self._local.seek(0)
        _store(self._path, uploading=True).put(
            self._key,
            _pieces(self._local) if in_parts else self._local.read(),
            use_multipart=in_parts,
            chunk_size=_PART_BYTES,
            max_concurrency=_PARTS_AT_A_TIME,
        )

    def discard(self) -> None:
        """Close without publishing."""
        super().close()
        self._local.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # IOBase's own would close, and so publish whatever there is.
        if hasattr(self, "_local"):
            self.discard()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PART_BYTES):
        metrics.get_on()
        yield piece


def writer(path: str) -> BinaryIO:
    """A file over an object to be, which is replaced at once or not at all."""
    return cast(BinaryIO, ObjectWriter(path))


def put_if_absent(path: str, content: bytes) -> bool:
    """Make an object unless there is one of that name.

    Args:
        path: its URI.
        content: all of it, which no other writer has.

    Returns:
        Whether the object that is there has this content: an answer that was lost is no reason to think otherwise.
    """
    from obstore.exceptions import AlreadyExistsError

    key = object_address(path).key

    def put() -> bool:
        try:
            _store(path, uploading=True).put(key, content, mode="create")
        except AlreadyExistsError:
            try:
                return bytes(_store(path).get(key).bytes()) == content
            except FileNotFoundError:
                raise TransientError("another was there, and is gone") from None
        return True

    return _request(path, "upload", put)


def copy(source: str, destination: str) -> None:
    """Copy an object inside its bucket."""
    keys = object_address(source).key, object_address(destination).key
    if stores.address(source)[:3] != stores.address(destination)[:3]:
        raise OSError(f"{destination}: is in another bucket than {source}; objects are copied inside one")
    _request(source, "copy", lambda: _store(source).copy(*keys))


def delete(paths: Iterable[str]) -> None:
    """Delete objects; what is not there is no error."""
    buckets: dict[stores.Address, list[str]] = {}
    for path in paths:
        buckets.setdefault(object_address(path)._replace(key=""), []).append(path)
    for of_one in buckets.values():
        for first in range(0, len(of_one), _KEYS_PER_REQUEST):
            _delete(of_one[first : first + _KEYS_PER_REQUEST])


def _delete(paths: list[str]) -> None:
    keys = [object_address(path).key for path in paths]
    try:
        _request(paths[0], "delete", lambda: _store(paths[0]).delete(keys))
    except MissingBucketError:
        raise
    except FileNotFoundError:  # of one of them, on Google's and Azure's; the others may be there still
        for path in paths if len(paths) > 1 else ():
            _delete([path])


def settings(path: str) -> dict[str, str]:
    """What other users of the Rust library object_store, such as delta-rs, need for the store of an object."""
    made = _store(path)
    found = {name: str(value) for name, value in made.config.items() if name not in ("bucket", "container_name")}
    if (provider := made.credential_provider) is not None:
        found |= {name: str(value) for name, value in provider().items() if value and name != "expires_at"}
    return found | {"allow_http": "true", "timeout": f"{request_seconds():g}s"}


def _store(path: str, uploading: bool = False) -> Any:
    at, settings = stores.address(path), {}
    # What the running pipeline, or a worker's, has given to Beam's filesystems.
    if (options := FileSystems._pipeline_options) is not None:
        view, names = _OPTIONS[at.kind]
        given = options.view_as(view)
        settings = {name: str(value) for option, name in names.items() if (value := getattr(given, option))}
    return stores.store(at, settings, uploading)


def _request(path: str, operation: str, call: Callable[[], T]) -> T:
    """Call, with every error of obstore's as an OSError, again while it is transient."""
    from obstore.exceptions import BaseError

    def translated() -> T:
        try:
            with panics_are_errors():
                return _interruptible(call)
        except (TransientError, PermissionError, MissingBucketError):
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise stores.explain(path, error) from error

    return retrying(path, operation, translated)


def _interruptible(call: Callable[[], T]) -> T:
    """Call, beside the main thread: its signals would wait until obstore comes back from a server that is silent."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="object store", daemon=True).start()
    return answer.result()
