"""Azure's blobs, against Azurite: `make test-azure` installs it and runs this."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import os
import random
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import annotate, verify
from tests.pipelines.conftest import Finished, corpus, run_main
from tests.tiny import tiny_bundle
from tests.transforms.creators import FILES, create_at_once
from torchmoji_core.errors import ChangedError
from transforms.storage import files as storage

pytestmark = pytest.mark.azure
__all__ = ["run_main"]  # a fixture

AZURITE = Path(__file__).parents[3] / ".venv/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite."""
START_SECONDS = 60


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.environ.get("AZURITE", str(AZURITE)), "--silent", "--inMemoryPersistence", "--disableTelemetry"]
    with subprocess.Popen([*command, "--blobPort", str(port)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
        process.terminate()


def connection_string(endpoint: str, key: str = KEY) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"


@pytest.fixture
def container(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a new one; obstore makes none."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(endpoint))
    name = f"container-{uuid.uuid4().hex[:12]}"
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "".join(f"{key}:{value}\n" for key, value in headers.items())
    to_sign = "PUT" + "\n" * 12 + f"{signed}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()
    return name


@pytest.fixture(params=["az://{}", "abfss://{}@devstoreaccount1.dfs.core.windows.net", "azfs://devstoreaccount1/{}"])
def place(request: pytest.FixtureRequest, container: str) -> str:
    return request.param.format(container)


def write(path: str, content: bytes) -> None:
    with storage.create(path) as file:
        file.write(content)


def test_every_operation_is_right(place: str) -> None:
    large = random.Random(0).randbytes(20 << 20)
    for name, content in (("in/a.txt", b"first"), ("in/b.txt", b""), ("in/large", large), ("other", b"x")):
        write(f"{place}/{name}", content)
    assert storage.read_bytes(f"{place}/in/a.txt") == b"first"
    assert storage.read_bytes(f"{place}/in/b.txt") == b""
    with storage.open_raw(f"{place}/in/large") as file:
        assert file.seek(15_000_000) == 15_000_000
        assert file.read(1000) == large[15_000_000:15_001_000]
        file.seek(0)
        assert file.read() == large
    assert [file.path for file in storage.match([f"{place}/in/*.txt"])] == [f"{place}/in/a.txt", f"{place}/in/b.txt"]
    (listed,) = storage.match([f"{place}/in/a*"])
    assert listed == storage.metadata(f"{place}/in/a.txt"), "as listed, so as looked up"
    assert [file.path for file in storage.match([f"{place}/in/lar*"])] == [f"{place}/in/large"]
    assert storage.metadata(f"{place}/in/large").size_in_bytes == len(large)
    assert not storage.exists(f"{place}/in")
    storage.rename(f"{place}/in/a.txt", f"{place}/moved/a.txt")
    storage.delete([f"{place}/in/a.txt", f"{place}/in/large", f"{place}/none"])
    assert [file.path for file in storage.match([f"{place}/**"])] == [
        f"{place}/in/b.txt", f"{place}/moved/a.txt", f"{place}/other",
    ]  # fmt: skip


def test_what_was_replaced_is_not_read(place: str) -> None:
    write(f"{place}/object", b"a" * (9 << 20))
    (file,) = storage.match([f"{place}/o*"])
    with storage.open_listed(file.path, file.version) as opened:
        assert opened.read(10) == b"a" * 10
        write(f"{place}/object", b"b" * (9 << 20))
        with pytest.raises(ChangedError, match="changed while it was read"):
            opened.read()


def test_of_several_threads_one_creates_a_file(place: str) -> None:
    won = create_at_once(place)
    assert len(won) == FILES
    assert {name: storage.read_bytes(f"{place}/{name}") for name, _ in won} == dict(won)
    assert storage.create_if_absent(f"{place}/0", dict(won)["0"], ""), "an answer that was lost"


@pytest.mark.parametrize(
    "operation",
    [storage.read_bytes, lambda path: storage.match([f"{path}*"]), lambda path: write(path, b"content")],
)
def test_a_container_that_does_not_exist_and_a_key_that_is_wrong_are_said_in_one_line(
    container: str, endpoint: str, operation: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"^az://none/object.*none does not exist at http://127"):
        operation("az://none/object")
    wrong = base64.b64encode(b"wrong" * 12).decode()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(endpoint, wrong))
    with pytest.raises(PermissionError, match=r"access is denied.*AZURE_STORAGE_CONNECTION_STRING") as error:
        operation(f"az://{container}/object")
    assert "\n" not in str(error.value)


def test_a_corpus_is_annotated(place: str, tmp_path: Path, run_main: Callable[..., Finished]) -> None:
    tiny_bundle(["happy", "day"], seed=7).save(tmp_path / "model")
    corpus(tmp_path / "in", 3, 20)
    for file in (tmp_path / "in").iterdir():
        write(f"{place}/in/{file.name}", file.read_bytes())
    arguments = (
        "--input",
        f"{place}/in/*",
        "--model",
        str(tmp_path / "model"),
        "--output",
        f"{place}/out",
        "--progress",
        "off",
    )
    for _ in range(2):
        finished = run_main(annotate.main, *arguments)
        assert finished.status == 0, finished.err
    assert storage.exists(f"{place}/out/_delta_log/{0:020}.json"), finished.err
    verified = run_main(verify.main, f"{place}/out")
    assert verified.status == 0, verified.out
    parts = [file.path for file in storage.match([f"{place}/out/**"]) if "/part-" in file.path]
    assert sum(pq.read_metadata(storage.open_raw(part)).num_rows for part in parts) == 60
