"""What is no use to try again, or is no use any more, is one clear message."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.object_store_server import Faults, ObjectStoreServer
from tests.transforms.creators import HANG_GUARD
from tests.transforms.storage.objects import write
from transforms.storage import files as storage

OPERATIONS: list[Callable[[str], object]] = [
    storage.read_bytes,
    storage.open_raw,
    storage.metadata,
    lambda path: storage.match([f"{path}*"]),
    lambda path: write(path, b"content"),
    lambda path: write(path, bytes(9 << 20)),
    lambda path: storage.delete([path]),
]
NAMES = ["read_bytes", "open_raw", "metadata", "match", "write", "write-large", "delete"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_a_server_that_always_fails_ends_in_one_clear_error(
    server: ObjectStoreServer, bucket: str, operation: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "1")
    server.faults = Faults(errors=1.0)
    with pytest.raises(
        OSError, match=r"failed \d+ times in 1 seconds, at last with: .*(500|503|SlowDown|Internal)"
    ) as e:
        operation(f"{bucket}/object")
    assert str(e.value).startswith(f"{bucket}/object")
    assert "\n" not in str(e.value)


def test_a_server_that_never_answers_ends_in_one_clear_error(
    server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "1")
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", "0.5")
    server.faults = Faults(hangs=1.0, hang_seconds=5)
    with pytest.raises(OSError, match=r"read failed \d+ times in 1 seconds, at last with: no answer in time"):
        storage.read_bytes(f"{bucket}/object")


def test_a_server_that_is_not_there_ends_in_one_clear_error(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="at last with: Connection refused"):
        storage.read_bytes(f"{bucket}/object")


# Not of what asks for metadata: a store says of a missing bucket there what it says of a missing object.
@pytest.mark.parametrize("operation", OPERATIONS[:2] + OPERATIONS[3:], ids=NAMES[:2] + NAMES[3:])
def test_a_bucket_that_does_not_exist_is_said_at_once(
    server: ObjectStoreServer, operation: Callable[[str], object]
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^s3://no-such-bucket/object.*(does not exist|not found) at http://127"
    ):
        operation("s3://no-such-bucket/object")
    assert len(server.requests) == 1


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_credentials_that_are_refused_are_said_at_once(
    refusing: ObjectStoreServer, operation: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing.use(monkeypatch)
    refusing.faults = Faults()
    with pytest.raises(PermissionError, match=r"^s3://bucket/object.*access is denied.*check the credentials"):
        operation("s3://bucket/object")
    assert len(refusing.requests) == 1


@pytest.fixture(scope="module")
def refusing() -> Iterator[ObjectStoreServer]:
    with ObjectStoreServer(check_credentials=True) as server:
        yield server


def test_missing_credentials_are_said_at_once(
    server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match=r"no credentials .*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes(f"{bucket}/object")
    assert server.requests == []


@pytest.mark.parametrize("path", ["s3://", "s3:///key", "s3://bucket", "s3://bucket/"])
def test_a_uri_without_bucket_or_key_is_said_at_once(server: ObjectStoreServer, path: str) -> None:
    with pytest.raises(OSError, match=re.escape("the form is s3://bucket/key")):
        storage.read_bytes(path)
    with pytest.raises(OSError, match=re.escape("the form is s3://bucket/key")):
        write(path, b"content")
    assert server.requests == []


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
def test_a_time_that_is_none_is_refused(bucket: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", value)
    with pytest.raises(OSError, match="TORCHMOJI_REQUEST_SECONDS must be a positive number of seconds"):
        storage.exists(f"{bucket}/object")


def test_a_signal_does_not_wait_for_a_silent_server(
    server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(number: int, frame: object) -> None:
        raise InterruptedError

    def send_when_held() -> None:
        server.is_holding.wait(HANG_GUARD)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    server.held, server.faults = "/object", Faults()
    server.is_holding.clear()
    thread = threading.Thread(target=send_when_held)
    thread.start()
    try:
        with pytest.raises(InterruptedError):
            storage.publish(f"{bucket}/object", b"content", "")
        assert server.requests == ["PUT"]
    finally:
        server.held = ""
        signal.signal(signal.SIGUSR1, before)
        thread.join()


@pytest.mark.parametrize(
    ("location", "endpoint", "message"),
    [
        ("s3://no bucket/key", "http://127.0.0.1:9", "'no bucket' is no name of a bucket"),
        ("s3://me:secret@host/key", "http://127.0.0.1:9", "is no name of a bucket"),
        ("s3://bucket/key", "nonsense", "Invalid endpoint: nonsense|nonsense: no address of a store"),
        ("gs://bucket/key", "127.0.0.1 9", "no address of a store; the form is https://host:port"),
        ("abfss://container/key", "http://127.0.0.1:9", "Account must be specified; check AZURE_STORAGE_CONNECTION"),
        ("azfs://account", "http://127.0.0.1:9", "the form is azfs://account/container/key"),
    ],
)
def test_an_address_that_is_none_is_said_in_one_line(
    location: str, endpoint: str, message: str, monkeypatch: pytest.MonkeyPatch, server: ObjectStoreServer
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    with pytest.raises(OSError, match=message) as error:
        storage.read_bytes(location)
    assert "\n" not in str(error.value)
