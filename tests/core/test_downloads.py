"""Whatever a server does, a download ends: with the whole file, or with one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from torchmoji_core.bundle import Bundle, load_bundle, load_tokenizer
from torchmoji_core.bundle_files import read_uri
from torchmoji_core.checkpoints import read_checkpoint
from torchmoji_core.downloads import download
from torchmoji_core.errors import InputError, is_outage

Behaviour = Callable[[socket.socket, bytes, int], None]
"""Answers a request: the connection, what was asked, how many were asked before."""
CONTENT = bytes(range(256)) * 2_000
PATIENCE = 60.0
"""Seconds after which a test has failed that should have ended long before."""


class Server:
    """A server on this machine that does what it is told to; connections are closed when the test ends."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.requests: list[bytes] = []
        self.ended = threading.Event()
        self._behaviour = behaviour
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            for number in count():
                connection, _ = self._listening.accept()
                threading.Thread(target=self._answer, args=(connection, number), daemon=True).start()

    def _answer(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            self.requests.append(request)
            self._behaviour(connection, request, number)

    def close(self) -> None:
        self.ended.set()
        self._listening.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Behaviour], Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    servers: list[Server] = []

    def start(behaviour: Behaviour) -> Server:
        servers.append(Server(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def headers(length: int | None = None, status: str = "200 OK", **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def silent(connection: socket.socket, request: bytes, number: int) -> None:
    connection.recv(1)  # until the other side gives up


def drip(start: bytes) -> Behaviour:
    """A byte every few milliseconds, so that no wait for the next one is long."""

    def answer(connection: socket.socket, request: bytes, number: int) -> None:
        connection.sendall(start)
        while not threading.Event().wait(0.02):
            connection.sendall(b"x")

    return answer


def endless(connection: socket.socket, request: bytes, number: int) -> None:
    connection.sendall(headers())
    while True:
        connection.sendall(bytes(1 << 16))


def redirect(connection: socket.socket, request: bytes, number: int) -> None:
    connection.sendall(headers(0, "302 Found", Location=f"/{number}"))


def say(answer: bytes) -> Behaviour:
    return lambda connection, request, number: connection.sendall(answer)


def fetch(uri: str) -> bytes:
    return read_uri(uri, 1 << 20)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


HOSTILE: dict[str, tuple[Behaviour, str]] = {
    "silent": (silent, "timed out"),
    "silent behind its headers": (
        lambda connection, request, number: (connection.sendall(headers(99)), silent(connection, request, number))[1],
        "timed out",
    ),
    "a byte now and then": (drip(headers(1 << 20)), "no more than [0-9]+ bytes .* TORCHMOJI_REQUEST_SECONDS"),
    "a byte of its headers now and then": (drip(b"HTTP/1.1 200 OK\r\nX: "), "no more than 0 bytes have come in"),
    "a byte of its first line now and then": (drip(b"HTTP/1."), "no more than 0 bytes have come in"),
    "endless": (endless, "larger than 1048576 bytes"),
    "too much, as it says": (say(headers(1 << 40)), "larger than 1048576 bytes"),
    "too much by far": (say(headers(10**18 - 1)), "larger than 1048576 bytes"),
    "redirects for ever": (redirect, "redirects"),
    "a redirect to nowhere": (say(headers(0, "302 Found", Location="http://127.0.0.1:1/")), "cannot be read"),
    "a redirect to a file": (say(headers(0, "302 Found", Location="file:///etc/passwd")), "cannot be read"),
    "garbage": (say(os.urandom(50_000)), "cannot be read"),
    "lines of garbage": (say(b"a\n\x1b[31mb\r\n" * 10_000), "cannot be read"),
    "headers without an end": (say(headers()[:-2] + b"X: y\r\n" * 100_000), "cannot be read"),
    "nothing": (lambda connection, request, number: None, "cannot be read"),
    "an error": (say(headers(0, "503 Slow\x1b[31m Down")), "503"),
    "a bad chunk": (say(headers(Transfer_Encoding="chunked") + b"zz\r\n"), "cannot be read"),
    "fewer bytes than it says, always": (say(headers(99) + b"x"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_is_one_line(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    behaviour, message = HOSTILE[name]
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", "0.4")
    server = serve(behaviour)
    assert re.search(message, error_of(lambda: fetch(f"{server.address}/model.zip")))


LOADERS: dict[str, Callable[[str], object]] = {
    "bundle": load_bundle,
    "tokenizer": load_tokenizer,
    "zip": lambda address: load_bundle(f"{address}/x.zip"),
    "checkpoint": lambda address: read_checkpoint(f"{address}/x.bin"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_is_loaded_a_silent_server_is_one_line(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", "0.2")
    server = serve(drip(b"HTTP/1.1 200 OK\r\n"))
    assert "have come in" in error_of(lambda: LOADERS[name](server.address))


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (404, False), (403, False)])
def test_what_a_server_says_tells_whether_to_try_again(
    serve: Callable[[Behaviour], Server], status: int, passes: bool
) -> None:
    server = serve(lambda connection, request, number: connection.sendall(b"HTTP/1.1 %d No\r\n\r\n" % status))
    with pytest.raises(InputError) as caught:
        download(f"{server.address}/model.zip", 1000, io.BytesIO())
    assert is_outage(caught.value) == passes


def test_where_nobody_listens_the_address_may_be_wrong() -> None:
    with pytest.raises(InputError) as caught:
        download("http://127.0.0.1:9/model.zip", 1000, io.BytesIO())
    assert not is_outage(caught.value)


def test_a_wait_that_is_none_is_one_line(serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", "soon")
    assert "must be a positive number of seconds" in error_of(lambda: fetch("http://127.0.0.1:1/x"))


# --- connections that break ----------------------------------------------------------------------------------------


def breaking(content: list[bytes], ranges: bool = True, most: int = 100_000, **more: str) -> Behaviour:
    """Sends `most` bytes in each answer and breaks off; the content is another at each request, the last one stays."""

    def answer(connection: socket.socket, request: bytes, number: int) -> None:
        body = content[min(number, len(content) - 1)]
        tag = f'"{hash(body)}"'
        start = re.search(rb"range: bytes=(\d+)-", request, re.IGNORECASE)
        same = f"If-Range: {tag}\r\n".encode() in request
        if start and ranges and same:
            first = int(start[1])
            span = f"bytes {first}-{len(body) - 1}/{len(body)}"
            connection.sendall(headers(len(body) - first, "206 Partial Content", ETag=tag, Content_Range=span))
            body = body[first:]
        else:
            connection.sendall(headers(len(body), ETag=tag, **more))
        connection.sendall(body[:most])

    return answer


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", str(PATIENCE))
    monkeypatch.setattr("torchmoji_core.downloads.FIRST_PAUSE", 0.001)


def test_a_download_goes_on_where_it_broke_off(serve: Callable[[Behaviour], Server], patient: None) -> None:
    server = serve(breaking([CONTENT]))
    assert fetch(server.address) == CONTENT
    starts = [re.search(rb"range: bytes=(\d+)-", request, re.IGNORECASE) for request in server.requests]
    assert [start and int(start[1]) for start in starts] == [None, *range(100_000, len(CONTENT), 100_000)]


def test_a_file_that_was_replaced_is_begun_again(serve: Callable[[Behaviour], Server], patient: None) -> None:
    other = CONTENT[::-1]
    server = serve(breaking([CONTENT, other]))
    assert fetch(server.address) == other


def test_a_server_without_ranges_is_asked_again(serve: Callable[[Behaviour], Server], patient: None) -> None:
    whole = breaking([CONTENT], ranges=False, most=len(CONTENT))
    broken = breaking([CONTENT], ranges=False)
    server = serve(lambda connection, request, number: (broken if number < 2 else whole)(connection, request, number))
    assert fetch(server.address) == CONTENT
    assert len(server.requests) == 3


def test_a_server_that_always_breaks_off_at_the_same_byte_is_given_up(
    serve: Callable[[Behaviour], Server], patient: None
) -> None:
    server = serve(breaking([CONTENT], ranges=False))
    assert re.search("before the end|IncompleteRead", error_of(lambda: fetch(server.address)))
    assert len(server.requests) == 5


def test_a_shorter_file_leaves_nothing_of_the_longer_one(serve: Callable[[Behaviour], Server], patient: None) -> None:
    server = serve(breaking([CONTENT, CONTENT[:50_000]]))
    file = io.BytesIO()
    download(server.address, 1 << 20, file)
    assert file.getvalue() == CONTENT[:50_000]


def test_a_bundle_is_loaded_over_connections_that_break(
    serve: Callable[[Behaviour], Server], patient: None, bundle: Bundle, tmp_path: Path
) -> None:
    bundle.save(tmp_path / "saved")

    def answer(connection: socket.socket, request: bytes, number: int) -> None:
        name = request.split()[1].decode().rpartition("/")[2]
        breaking([(tmp_path / "saved" / name).read_bytes()], most=5_000)(connection, request, 0)

    server = serve(answer)
    assert load_bundle(server.address).fingerprint == bundle.fingerprint
    assert len(server.requests) > 4
