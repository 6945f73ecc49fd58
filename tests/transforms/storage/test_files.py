"""Files on an object store: right under faults, and whole or not there."""

from __future__ import annotations

import gc
import io
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from tests.object_store_server import Faults, ObjectStoreServer, mixed
from tests.transforms.creators import HANG_GUARD
from tests.transforms.storage.objects import FAULTY, contents, paths, write
from torchmoji_core.errors import ChangedError
from transforms.input.inputs import list_files
from transforms.storage import files as storage


@pytest.mark.parametrize(("scheme", "seed"), [("s3", 1), ("gs", 3), ("gcs", 4)])
def test_every_operation_is_right_when_a_fifth_of_the_requests_fails(
    server: ObjectStoreServer, bucket: str, scheme: str, seed: int
) -> None:
    bucket = bucket.replace("s3://", f"{scheme}://")
    server.faults = mixed(FAULTY, seed)
    before = time.time()
    for number in range(10):
        storage.publish(f"{bucket}/in/{number}.txt", f"content {number}".encode(), f"{bucket}/in/_{number}")
    for number in range(10):
        path = f"{bucket}/in/{number}.txt"
        assert storage.read_bytes(path) == f"content {number}".encode()
        with storage.open_raw(path) as file:
            assert file.read(7) == b"content"
            assert file.seek(-1, io.SEEK_END) == 8
            assert file.read() == str(number).encode()
        assert storage.exists(path)
        assert not storage.exists(f"{path}.none")
        assert storage.metadata(path).size_in_bytes == 9
    assert paths(storage.match([f"{bucket}/in/*", f"{bucket}/in/3*"])) == [f"{bucket}/in/{n}.txt" for n in range(10)]
    metadata = storage.metadata(f"{bucket}/in/0.txt")
    assert metadata is not None
    assert metadata.size_in_bytes == 9
    assert before - 60 < metadata.last_updated_in_seconds < time.time() + 60
    assert storage.metadata(f"{bucket}/none") is None
    storage.rename(f"{bucket}/in/0.txt", f"{bucket}/moved/0.txt")
    storage.delete([f"{bucket}/in/{number}.txt" for number in range(2, 10)] + [f"{bucket}/none"])
    assert sum(server.injected.values()) > 10
    assert contents(server, bucket) == {"in/1.txt": b"content 1", "moved/0.txt": b"content 0"}


@pytest.mark.parametrize(
    "faults",
    [
        mixed(FAULTY, 4),
        Faults(resets=0.5, only="GET", seed=5),
        Faults(truncations=0.5, only="GET", seed=6),
        Faults(errors=0.4, only="PUT", seed=7),
        Faults(lost=0.4, only="PUT POST", seed=2),
        Faults(lost=0.4, only="POST", seed=5),
        Faults(hangs=0.15, slow=0.3, seed=10),
    ],
    ids=["mixed", "resets", "truncations", "errors-writing", "answers-lost", "completion-lost", "hangs"],
)
def test_a_large_object_survives_faults(
    server: ObjectStoreServer, bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMOJI_REQUEST_SECONDS", "2" if faults.hangs else "20")
    content = random.Random(0).randbytes(20 << 20)
    server.faults = faults
    with storage.create(f"{bucket}/large") as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
    with storage.open_raw(f"{bucket}/large") as file:
        assert b"".join(iter(lambda: file.read(1_000_000), b"")) == content
    assert storage.read_bytes(f"{bucket}/large") == content
    assert sum(server.injected.values()) > 0
    assert set(contents(server, bucket)) == {"large"}


def test_parquet_is_read_and_written_in_place(server: ObjectStoreServer, bucket: str) -> None:
    table = pa.table({"number": range(100_000), "text": [f"row {n}" for n in range(100_000)]})
    server.faults = mixed(FAULTY, 10)
    with storage.create(f"{bucket}/part.parquet") as file, pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table, row_group_size=10_000)
    with storage.open_raw(f"{bucket}/part.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3).equals(table.slice(30_000, 10_000))
    assert sum(server.injected.values()) > 0


def test_an_empty_file_can_be_written_and_read(bucket: str) -> None:
    write(f"{bucket}/empty", b"")
    assert storage.metadata(f"{bucket}/empty").size_in_bytes == 0
    assert storage.read_bytes(f"{bucket}/empty") == b""
    with storage.open_raw(f"{bucket}/empty") as file:
        assert file.read() == b""


def test_a_range_begins_where_the_reader_seeks(server: ObjectStoreServer, bucket: str) -> None:
    content = random.Random(1).randbytes(10 << 20)
    write(f"{bucket}/object", content)
    with storage.open_raw(f"{bucket}/object") as file:
        for start in (9 << 20, 0, 5_000_001, len(content)):
            file.seek(start)
            assert file.tell() == start
            assert file.read(100) == content[start : start + 100]


# --- whole, or not there -------------------------------------------------------------------------------------------


def fail_inside_with(path: str) -> None:
    with pytest.raises(ZeroDivisionError), storage.create(path) as file:
        file.write(b"half of it")
        raise ZeroDivisionError


def drop_without_closing(path: str) -> None:
    file = storage.create(path)
    file.write(b"half of it")
    del file
    gc.collect()


def discard(path: str) -> None:
    file = storage.create(path)
    file.write(b"half of it")
    storage.discard(file)
    file.close()


def discard_a_large_one(path: str) -> None:
    with pytest.raises(ZeroDivisionError), storage.create(path) as file:
        file.write(bytes(20 << 20))
        raise ZeroDivisionError


@pytest.mark.parametrize("abandon", [fail_inside_with, drop_without_closing, discard, discard_a_large_one])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_that_is_not_finished_is_not_published(
    server: ObjectStoreServer, bucket: str, abandon: Callable[[str], None], old: bytes | None
) -> None:
    if old is not None:
        write(f"{bucket}/object", old)
    abandon(f"{bucket}/object")
    assert contents(server, bucket) == ({} if old is None else {"object": old})
    assert server.unfinished_uploads(bucket.removeprefix("s3://")) == []


@pytest.mark.parametrize("size", [10, 20 << 20])
def test_an_upload_that_fails_for_good_publishes_nothing(
    server: ObjectStoreServer, bucket: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "1")
    file = storage.create(f"{bucket}/object")
    file.write(bytes(size))
    server.faults = Faults(errors=1.0, only="PUT")
    with pytest.raises(OSError, match=rf"^{bucket}/object: upload failed \d+ times in 1 seconds, at last with: .*"):
        file.close()
    file.close()
    server.faults = Faults()
    assert contents(server, bucket) == {}
    assert server.unfinished_uploads(bucket.removeprefix("s3://")) == []


def test_publishing_replaces_at_once(bucket: str) -> None:
    """A reader that never stops sees the whole old or the whole new content, never a mixture, never nothing."""
    versions = [bytes([number]) * (200_000 + 50_000 * number) for number in range(1, 9)]
    path = f"{bucket}/object"
    storage.publish(path, versions[0], f"{bucket}/temporary")
    seen: list[bytes] = []
    changed = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(storage.read_bytes(path))
            try:
                with storage.open_raw(path) as file:
                    seen.append(file.read())
            except OSError as error:
                changed.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    for version in itertools.cycle(versions):
        storage.publish(path, version, f"{bucket}/temporary")
        if (len(set(seen)) > 3 and len(seen) > 2 * len(versions)) or not thread.is_alive():
            break
    done.set()
    thread.join(HANG_GUARD)
    assert len(set(seen)) > 3
    assert set(seen) <= set(versions)
    assert all("was replaced by another file while it was read" in message for message in changed)


def test_an_object_replaced_while_it_is_read_is_an_error_not_a_mixture(bucket: str) -> None:
    write(f"{bucket}/object", b"a" * (9 << 20))
    with storage.open_raw(f"{bucket}/object") as file:
        assert file.read(10) == b"a" * 10
        write(f"{bucket}/object", b"b" * (9 << 20))
        with pytest.raises(OSError, match="was replaced by another file while it was read"):
            file.read()


def test_an_object_that_is_not_what_was_listed_is_not_read(bucket: str) -> None:
    """Not even if it was replaced between two parts of it, by one of the same size."""
    write(f"{bucket}/object.txt", b"a" * (9 << 20))
    (file,) = list_files(f"{bucket}/*").files
    assert file.version
    with storage.open_listed(file.path, file.version) as opened:
        assert opened.read(10) == b"a" * 10
        write(f"{bucket}/object.txt", b"b" * (9 << 20))
        with pytest.raises(ChangedError, match=r"object\.txt\" changed while it was read"):
            opened.read()
    with pytest.raises(ChangedError):
        storage.open_listed(file.path, file.version)


# --- settings, and other filesystems -------------------------------------------------------------------------------


def test_options_of_beam_hold(server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{bucket}/object", b"content")
    options = PipelineOptions(
        [f"--s3_endpoint_url={os.environ['AWS_ENDPOINT_URL']}", "--s3_access_key_id=a", "--s3_secret_access_key=b"]
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    FileSystems.set_options(options)
    try:
        assert storage.read_bytes(f"{bucket}/object") == b"content"
    finally:
        FileSystems.set_options(None)


def test_a_profile_holds_where_boto3_is_installed(
    server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(f"{bucket}/object", b"content")
    (tmp_path / "config").write_text(
        f"[profile work]\nregion = eu-west-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    )
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert storage.read_bytes(f"{bucket}/object") == b"content"
    known = {"region": "eu-west-1", "access_key_id": "a", "secret_access_key": "b"}
    assert known.items() <= storage.settings(f"{bucket}/object").items(), "what delta-rs needs, which has no profiles"


def test_without_boto3_the_environment_holds(
    server: ObjectStoreServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_REGION", "us-east-1")  # so that no store of another test is used
    write(f"{bucket}/object", b"content")
    assert storage.read_bytes(f"{bucket}/object") == b"content"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PermissionError, match=r"no credentials .*set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes(f"{bucket}/object")


def test_local_files_are_beams_own(tmp_path: Path) -> None:
    """No wrapper on the way, and the operating system's errors as they are."""
    path = str(tmp_path / "directory" / "file")
    write(path, b"content")
    with storage.open_raw(path) as file, FileSystems.open(path, "application/octet-stream") as beams:
        assert type(file) is type(beams)
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        storage.open_raw(str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_a_directory_with_brackets_in_its_name_is_not_taken_for_empty(tmp_path: Path) -> None:
    directory = tmp_path / "[2024]"
    write(str(directory / "file"), b"content")
    storage.remove_empty(str(directory))
    assert (directory / "file").read_bytes() == b"content"
    storage.delete([str(directory / "file")])
    storage.remove_empty(str(directory))
    assert not directory.exists()


def test_a_filesystem_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(OSError, match=r"^nonsense://bucket/object: Unable to get filesystem") as error:
        storage.read_bytes("nonsense://bucket/object")
    assert "\n" not in str(error.value)
