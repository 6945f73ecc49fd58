"""What all object stores have in common: their operations, files over them, and one policy for failures that pass.

A store (`s3.S3Store`, `beam_store.BeamStore`) makes every failure either a `TransientError`, which `retrying` tries
again, or another OSError, which is raised at once because trying again would not help. The policy is a loop here,
and not each library's own, because they bound the number of tries, not the time; what they retry inside a request is
left to them. Nothing depends on a connection that stays open or on a request that goes on where another stopped:

* Reading is by ranges of a few megabytes, each whole or tried again. A stream over the whole object would be cut off by
  the store while the model is busy with what was read.
* Writing collects the content in a temporary local file, and closing uploads it. So an upload can be begun again, and a
  file that is not closed, because of an exception or because a worker is gone, leaves nothing behind at the store.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar, cast

from apache_beam.utils.retry import FuzzedExponentialIntervals

from torchmoji_core.errors import UnavailableError
from torchmoji_core.patience import retry_seconds
from transforms.listing import FileFacts

RANGE_BYTES = 4 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
"""Seconds; pauses double from one to the other, each shortened by up to a half at random."""

_logger = logging.getLogger(__name__)
T = TypeVar("T")


class TransientError(OSError):
    """A failure that may pass: throttling, a server's error, a lost connection, an answer cut off or too late."""


def retrying(path: str, operation: str, call: Callable[[], T]) -> T:
    """Call until it gives no `TransientError`.

    Raises:
        UnavailableError: in one line, when `retry_seconds` have passed since the first failure.
        OSError: what the call raises otherwise.
    """
    failing_since = None
    for tries, pause in enumerate(FuzzedExponentialIntervals(_FIRST_PAUSE, 10_000, max_delay_secs=_LONGEST_PAUSE), 1):
        try:
            return call()
        except TransientError as error:
            # Not from the first call: a long upload that fails at its end is worth a second one.
            failing_since = failing_since or time.monotonic()
            if time.monotonic() + pause > failing_since + retry_seconds():
                raise UnavailableError(
                    f"{path}: {operation} failed {tries} times in {retry_seconds():g} seconds, at last with: {error}"
                ) from error
            _logger.warning("%s: %s failed (%s), next try in %.1f s", path, operation, error, pause)
        time.sleep(pause)
    raise AssertionError("more tries than fit into any time")


class ObjectStore(ABC):
    """Operations on objects by URI. Each tries again by itself and is one that may be done twice.

    All raise FileNotFoundError, PermissionError or another OSError with a message of one line that begins with the URI.
    """

    def settings(self) -> dict[str, str]:
        """What others need to reach the store, by the names that the Rust library object_store has for it."""
        return {}

    @abstractmethod
    def match(self, pattern: str) -> list[FileFacts]:
        """The objects that a glob matches."""

    @abstractmethod
    def metadata(self, path: str) -> FileFacts | None:
        """Size and time of the last change; None if there is no such object."""

    @abstractmethod
    def open(self, path: str, version: str | None = None) -> StoredObject:
        """An object to read ranges of.

        Args:
            path: its URI.
            version: as it was listed with, for a `ChangedError` if another takes its place; None for any.
        """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All of an object, of one version of it."""

    @abstractmethod
    def upload(self, local: Path, path: str) -> None:
        """Make a local file the content of an object, which is replaced at once or not at all."""

    @abstractmethod
    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Make an object unless there is one of that name; whether it was made.

        Not made is also what a try again says of an object that was made when the answer was lost.
        """

    @abstractmethod
    def copy(self, source: str, destination: str) -> None:
        """Copy an object inside the store."""

    @abstractmethod
    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects; what is not there is no error."""


class StoredObject(ABC):
    """One object being read."""

    size: int

    @abstractmethod
    def read_range(self, start: int, end: int) -> bytes:
        """Bytes [start, end), all of them."""


def reader(stored: StoredObject) -> BinaryIO:
    """A seekable file over an object."""
    return io.BufferedReader(_RawReader(stored), RANGE_BYTES)


class _RawReader(io.RawIOBase):
    def __init__(self, stored: StoredObject) -> None:
        super().__init__()
        self._stored, self._position = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stored.size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} is before the file's beginning")
        self._position = base + offset
        return self._position

    def _read(self, count: int) -> bytes:
        end = min(self._position + count, self._stored.size)
        if end <= self._position:
            return b""
        content = self._stored.read_range(self._position, end)
        self._position = end
        return content

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._read(len(view))
        view[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._read(self._stored.size)


class ObjectWriter(io.BufferedIOBase):
    """A file for writing that becomes an object when it is closed, and only then.

    Leaving its `with` block by an exception, dropping it, and `discard` publish nothing, and an object of that
    name stays as it was.
    """

    def __init__(self, store: ObjectStore, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path
        self._local = tempfile.NamedTemporaryFile(prefix="torchmoji-")  # noqa: SIM115

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
            self._local.flush()
            self._store.upload(Path(self._local.name), self._path)
        finally:
            self.discard()

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


def writer(store: ObjectStore, path: str) -> BinaryIO:
    """A file over an object to be."""
    return cast(BinaryIO, ObjectWriter(store, path))
