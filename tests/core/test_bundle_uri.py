"""Bundles from behind URIs: fetched once, kept, and checked each time."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.bundles import (
    MakeBundle,
    assert_same,
    change_config,
    error_of,
    flip_a_byte,
)
from torchmoji_core.bundle import Bundle, load_bundle, load_tokenizer
from torchmoji_core.bundle_files import CONFIG, VOCABULARY, WEIGHTS

# --- remote bundles -----------------------------------------------------------------------------------------------


class Server:
    """A web server on this machine, and what was asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        requests = self.requests

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def asked(self) -> list[str]:
        """The files asked for since the last call."""
        asked = sorted(path.rpartition("/")[2] for path in self.requests)
        self.requests.clear()
        return asked

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves tmp_path/www; the cache is tmp_path/cache."""
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    yield server
    server.close()


def test_a_remote_directory_is_cached(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    bundle.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), bundle)
    assert server.asked() == [CONFIG, WEIGHTS, VOCABULARY]
    assert_same(load_bundle(f"{server.address}/model/"), bundle)
    assert server.asked() == [CONFIG]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_remote_zip_is_read(bundle: Bundle, server: Server) -> None:
    bundle.save(server.root / "model.zip")
    assert_same(load_bundle(f"{server.address}/model.zip"), bundle)
    assert_same(load_bundle(f"{server.address}/model.zip?version=1"), bundle)


def test_a_damaged_cache_is_noticed(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    bundle.save(server.root / "model")
    load_bundle(f"{server.address}/model")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    server.asked()
    assert_same(load_bundle(f"{server.address}/model"), bundle)
    assert server.asked() == [CONFIG, WEIGHTS, VOCABULARY]
    load_bundle(f"{server.address}/model")
    assert server.asked() == [CONFIG]


def test_a_replaced_remote_bundle_is_not_mixed_with_the_cached_one(
    make_bundle: MakeBundle, bundle: Bundle, server: Server
) -> None:
    bundle.save(server.root / "model")
    load_bundle(f"{server.address}/model")
    shutil.rmtree(server.root / "model")
    other = make_bundle(seed=2)
    other.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), other)


def test_a_tokenizer_is_loaded_without_fetching_the_weights(bundle: Bundle, server: Server) -> None:
    bundle.save(server.root / "model")
    assert load_tokenizer(f"{server.address}/model")[1] == bundle.maxlen
    assert server.asked() == [CONFIG, VOCABULARY]


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Bundle, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "file" / "cache"))
    bundle.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), bundle)


def spoil_remote(name: str, root: Path) -> None:
    if name == "no config":
        (root / CONFIG).unlink()
    elif name == "no weights":
        (root / WEIGHTS).unlink()
    elif name == "damaged weights":
        flip_a_byte(root / WEIGHTS)
    elif name == "a web page":
        (root / CONFIG).write_text("<!doctype html>\n<title>Sign in</title>")
    elif name == "digests that are paths":
        change_config(root, sha256={VOCABULARY: "../" * 20 + "0000", WEIGHTS: "/" * 64})
    elif name == "digests that are none":
        change_config(root, sha256="abc")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no config", "404"),
        ("no weights", "404"),
        ("damaged weights", "does not match the SHA-256"),
        ("a web page", "not that of a bundle"),
        ("digests that are paths", "does not match the SHA-256"),
        ("digests that are none", "not that of a bundle"),
    ],
)
def test_a_bad_remote_directory_is_refused_in_one_line(
    bundle: Bundle, server: Server, tmp_path: Path, name: str, reason: str
) -> None:
    bundle.save(server.root / "model")
    spoil_remote(name, server.root / "model")
    assert reason in error_of(lambda: load_bundle(f"{server.address}/model"))
    for path in (tmp_path / "cache").glob("*"):  # and what is kept is what it is called
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_missing_remote_zip_is_refused_in_one_line(server: Server) -> None:
    assert "404" in error_of(lambda: load_bundle(f"{server.address}/model.zip"))


def test_a_remote_zip_that_is_none_is_refused_in_one_line(server: Server) -> None:
    (server.root / "model.zip").write_text("<!doctype html>\n")
    assert "zip" in error_of(lambda: load_bundle(f"{server.address}/model.zip"))


def test_a_server_that_is_gone_is_refused_in_one_line(server: Server) -> None:
    server.close()
    message = error_of(lambda: load_bundle(f"{server.address}/model"))
    assert "cannot be read" in message
