"""Whole files from behind URIs, in bounded time and of bounded size, whatever a server does.

A server may be silent, send a byte a second (of its headers, too), send without an end, redirect in a circle, or break
off. Timeouts of libraries bound the time between two bytes and no more, and those of stores differ. So a download runs
in a thread, and the waiting thread looks at what has come: it may take twice $TORCHMOJI_REQUEST_SECONDS, and a second
more for each 32 KiB that have come. A thread that is given up ends with its connection, or with the process.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from torchmoji_core import stores
from torchmoji_core.errors import InputError, UnavailableError, first_line, panics_are_errors, shortened
from torchmoji_core.patience import TransientError, request_seconds

SLOWEST = 32 << 10
"""Bytes a second; a slower download is given up."""
_PIECE = 64 << 10
_FRUITLESS_TRIES = 4
"""How often in a row a download is gone on with that gets no further."""
FIRST_PAUSE = 0.25
"""Seconds before a download is gone on with; twice as long before each further try."""
_TOO_MANY_REQUESTS = 429
_FAILURES = {"ConnectionError", "ProtocolError", "Timeout", "TimeoutError", "ChunkedEncodingError", "TransientError"}
"""Names of what is raised where a network fails; importing the libraries takes time."""


def download(uri: str, limit: int, file: IO[bytes]) -> None:
    """Read a whole file over http(s), from an object store, or from what else smart_open reads; no decompression.

    One that breaks off is gone on with where it was if the server can do that and has the same file still, and begun
    again otherwise.

    Args:
        uri: where it is.
        limit: the most bytes that it may have; compared with what the server says of it before it is read.
        file: what it is written into, seekable.

    Raises:
        InputError: if it cannot be read, is larger, or takes too long.
    """
    work = _Download(uri, limit, file)
    try:
        seconds = request_seconds()
        if _is_http(uri):
            import requests  # noqa: F401 - takes time, which is not the server's fault
        elif not stores.is_object(uri):
            import smart_open  # noqa: F401
    except OSError as error:
        raise _failure(uri, error) from None
    begun = time.monotonic()
    thread = threading.Thread(target=work.run, args=(seconds,), name="download", daemon=True)
    thread.start()
    while thread.is_alive():
        left = begun + 2 * seconds + work.received / SLOWEST - time.monotonic()
        if left <= 0:
            work.is_given_up = True
            raise InputError(
                f"{uri}: cannot be read (no more than {work.received:,} bytes have come in "
                f"{time.monotonic() - begun:.3g} seconds); check the server and the network, or give it more time by "
                "the environment variable TORCHMOJI_REQUEST_SECONDS"
            ) from UnavailableError("too slow")
        thread.join(left)
    if work.error is not None:
        raise _failure(uri, work.error) from UnavailableError(uri) if _may_pass(work.error) else None


def _may_pass(error: BaseException) -> bool:
    """Whether the server or the network has failed, and not said that there is no such file for us."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status == _TOO_MANY_REQUESTS
    if "Connection refused" in str(error):  # nobody listens there: the address may be wrong
        return False
    return not _FAILURES.isdisjoint(each.__name__ for each in type(error).__mro__)


def _is_http(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _failure(uri: str, error: BaseException) -> BaseException:
    if isinstance(error, (InputError, MemoryError)):
        return error
    reason = shortened(first_line(_cause(error)).removeprefix(f"{uri}: "))
    return InputError(f"{uri}: cannot be read ({reason}); check the address and your access to it")


def _cause(error: BaseException) -> BaseException:
    """What has failed; `requests` puts it into an error that repeats the address."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    return inner if isinstance(inner, BaseException) else error


class _Download:
    """What a thread does, and how far it is."""

    def __init__(self, uri: str, limit: int, file: IO[bytes]) -> None:
        self._uri, self._limit, self._file = uri, limit, file
        self._version = ""
        """The server's name for the content that is being read, where it has one."""
        self.received = 0
        """Bytes, of the try that got furthest."""
        self.error: BaseException | None = None
        self.is_given_up = False

    def run(self, seconds: float) -> None:
        try:
            if _is_http(self._uri):
                self._again(lambda: self._try_http(seconds), self._may_go_on)
            elif stores.is_object(self._uri):
                self._again(self._try_store, lambda error: isinstance(error, TransientError))
            else:
                self._read_other()
        except BaseException as error:  # for the thread that waits
            self.error = error

    def _again(self, attempt: Callable[[], None], may_pass: Callable[[Exception], bool]) -> None:
        """Try until nothing fails that may pass, or several times in a row nothing further has come."""
        fruitless = 0
        while True:
            before = self.received
            try:
                return attempt()
            except Exception as error:
                fruitless = 0 if self.received > before else fruitless + 1
                if not may_pass(error) or fruitless == _FRUITLESS_TRIES or self.is_given_up:
                    raise
            time.sleep(FIRST_PAUSE * 2**fruitless)

    def _try_store(self) -> None:
        """From a store; obstore goes on by itself where it was, a few times."""
        from obstore.exceptions import BaseError

        at = stores.object_address(self._uri)
        self._file.seek(0)
        self._file.truncate()
        try:
            with panics_are_errors():
                answer = stores.store(at).get(at.key)
                self._check(answer.meta["size"])
                pieces = iter(answer.stream(_PIECE))
                self._copy(lambda _: next(pieces, b""))
        except (BaseError, FileNotFoundError) as error:
            raise stores.explain(self._uri, error) from None

    def _read_other(self) -> None:
        """Over ftp, sftp, hdfs and the like."""
        import smart_open

        with smart_open.open(self._uri, "rb", compression="disable") as source:
            self._copy(source.read)

    def _may_go_on(self, error: Exception) -> bool:
        """Whether a server that has sent something has broken off."""
        import requests
        import urllib3

        broken = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
        refused = (requests.HTTPError, requests.TooManyRedirects)
        return bool(self.received) and isinstance(error, broken) and not isinstance(error, refused)

    def _try_http(self, seconds: float) -> None:
        import requests

        headers = {"Accept-Encoding": "identity"}
        position = self._file.tell() if self._version else 0
        if position:
            headers |= {"Range": f"bytes={position}-", "If-Range": self._version}
        with requests.get(self._uri, headers=headers, stream=True, timeout=(min(seconds, 10), seconds)) as answer:
            answer.raise_for_status()
            goes_on = re.match(rf"bytes {position}-", answer.headers.get("Content-Range", ""), re.IGNORECASE)
            if not (position and answer.status_code == requests.codes.partial_content and goes_on):
                position = 0
            self._file.seek(position)
            self._file.truncate()
            self._version = _version(answer.headers)
            length = answer.headers.get("Content-Length", "")
            end = position + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
            self._check(end or 0)
            # Not to wait until a whole piece has come; old versions of urllib3 cannot do that.
            self._copy(getattr(answer.raw, "read1", answer.raw.read))
            if end is not None and self._file.tell() < end:
                raise ConnectionError(f"the connection was closed {end - self._file.tell():,} bytes before the end")

    def _copy(self, read: Any) -> None:
        while not self.is_given_up and (piece := read(_PIECE)):
            self._file.write(piece)
            self.received = max(self.received, self._file.tell())
            self._check(self._file.tell())

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise InputError(f"{self._uri}: larger than {self._limit} bytes; that is no such file")


def _version(headers: Any) -> str:
    """What a server can be asked to go on with: a strong entity tag, or else the time of the last change."""
    tag = headers.get("ETag", "")
    return tag if re.fullmatch('"[^"]*"', tag) else headers.get("Last-Modified", "")
