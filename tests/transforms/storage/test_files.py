"""Files on an object store: right under faults, whole or not there, and one clear message when it is no use."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from tests.object_store_server import Faults, ObjectStoreServer, mixed
from tests.transforms.creators import FILES, HANG_GUARD, create_at_once
from torchmoji_core.errors import ChangedError
from transforms.input.read import list_files
from transforms.storage import files as storage
from transforms.storage.listing import FileFacts

FAULTY = 0.2


@pytest.fixture(scope="module")
def running() -> Iterator[ObjectStoreServer]:
    with ObjectStoreServer() as server:
        yield server


@pytest.fixture
def server(running: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> ObjectStoreServer:
    running.use(monkeypatch)
    running.faults = Faults()
    return running


@pytest.fixture
def bucket(server: ObjectStoreServer) -> str:
    """URI of a new bucket."""
    name = f"bucket{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return f"s3://{name}"


def contents(server: ObjectStoreServer, bucket: str) -> dict[str, bytes]:
    return server.contents(bucket.partition("://")[2])


def fill(server: ObjectStoreServer, bucket: str, keys: list[str]) -> None:
    client = server.client()
    for key in keys:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=key.encode())


def write(path: str, content: bytes) -> None:
    with storage.create(path) as file:
        file.write(content)


def paths(found: list[FileFacts]) -> list[str]:
    return [metadata.path for metadata in found]


@pytest.mark.parametrize(("scheme", "seed"), [("s3", 1), ("s3", 2), ("gs", 3), ("gcs", 4)])
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


# --- written by one of many ----------------------------------------------------------------------------------------

RACE = """
import sys
from transforms.storage import files as storage
directory, writer = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(30):
    if storage.create_if_absent(f"{directory}/{number}", writer.encode(), f"{directory}/_tmp/{writer}-{number}"):
        print(number)
"""


@pytest.fixture(params=["local", "without links", "s3", "gs"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    if request.param == "without links":
        monkeypatch.setattr(os, "link", refuse)
    if request.param in ("local", "without links"):
        return str(tmp_path / "new" / "directory")
    return bucket.replace("s3://", f"{request.param}://")


def files_of(place: str) -> dict[str, bytes]:
    found = storage.match([f"{place}/**"])
    return {file.path.removeprefix(f"{place}/"): storage.read_bytes(file.path) for file in found}


def test_of_several_threads_one_creates_a_file(server: ObjectStoreServer, place: str) -> None:
    server.faults = mixed(FAULTY, 20)
    won = create_at_once(place)
    server.faults = Faults()
    assert len(won) == FILES
    assert files_of(place) == dict(won), "all of one writer's content, and nothing temporary"


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_of_several_processes_one_creates_a_file(place: str) -> None:
    writers = ["a", "b"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, place, writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for writer in writers
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=HANG_GUARD)[0].split() for process in processes]
    won = {name: writer.encode() for writer, names in zip(writers, outputs, strict=True) for name in names}
    assert sum(map(len, outputs)) == 30
    assert files_of(place) == won


def test_who_creates_a_file_knows_it_although_the_answer_was_lost(server: ObjectStoreServer, bucket: str) -> None:
    server.faults = Faults(lost=0.5, only="PUT", seed=3)
    for number in range(10):
        assert storage.create_if_absent(f"{bucket}/{number}", b"mine", f"{bucket}/_tmp")
    assert server.injected["lost"] > 1
    assert not storage.create_if_absent(f"{bucket}/0", b"theirs", f"{bucket}/_tmp")
    assert set(contents(server, bucket).values()) == {b"mine"}


def test_a_file_that_is_there_stays(place: str) -> None:
    write(f"{place}/file", b"old")
    assert not storage.create_if_absent(f"{place}/file", b"new", f"{place}/_new")
    assert files_of(place) == {"file": b"old"}


# --- names ---------------------------------------------------------------------------------------------------------


def test_globs_match_as_on_other_filesystems(server: ObjectStoreServer, bucket: str) -> None:
    fill(server, bucket, ["a.json", "dir/b.json", "dir/c.txt", "dir/deep/d.json", "dir/", "[x].json", "[x]/in.json"])
    assert paths(storage.match([f"{bucket}/*.json"])) == [f"{bucket}/[x].json", f"{bucket}/a.json"]
    assert paths(storage.match([f"{bucket}/dir/*"])) == [f"{bucket}/dir/b.json", f"{bucket}/dir/c.txt"]
    assert paths(storage.match([f"{bucket}/dir/"])) == paths(storage.match([f"{bucket}/dir/*"]))
    assert paths(storage.match([f"{bucket}/dir/**.json"])) == [f"{bucket}/dir/b.json", f"{bucket}/dir/deep/d.json"]
    assert paths(storage.match([f"{bucket}/a.json", f"{bucket}/none"])) == [f"{bucket}/a.json"]
    assert storage.metadata(f"{bucket}/[x].json").size_in_bytes == len("[x].json")
    assert [file.path for file in list_files(f"{bucket}/[x].json").files] == [f"{bucket}/[x].json"]
    assert [file.path for file in list_files(f"{bucket}/[a].json").files] == [f"{bucket}/a.json"]
    storage.delete_directory(f"{bucket}/[x]")
    assert set(contents(server, bucket)) == {"a.json", "dir/b.json", "dir/c.txt", "dir/deep/d.json", "dir/", "[x].json"}


def test_place_holders_of_directories_are_no_files(server: ObjectStoreServer, bucket: str) -> None:
    fill(server, bucket, ["a.json", "dir/in.json", "both"])
    for key in ("empty.json", "dir/", "other/", "both/"):
        server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"")
    found = [file.path for file in list_files(f"{bucket}/*").files]
    assert found == [f"{bucket}/{name}" for name in ("a.json", "both", "empty.json")]
    assert not storage.exists(f"{bucket}/other/")
    assert storage.metadata(f"{bucket}/other") is None


@pytest.mark.parametrize("key", ["dir//in.json", "dir/../in.json", "dir/./in.json"])
def test_names_that_obstore_does_not_take_are_said_in_one_line(
    server: ObjectStoreServer, bucket: str, key: str
) -> None:
    """Not passed over, and not taken for others."""
    fill(server, bucket, [key, "zz.json"])
    with pytest.raises(OSError, match=r"^s3://bucket.*dir/.*rename that object") as error:
        storage.match([f"{bucket}/dir/**"])
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match=r"names that are empty, \. or \.\. cannot be used between slashes"):
        storage.read_bytes(f"{bucket}/{key}")
    assert paths(storage.match([f"{bucket}/zz*"])) == [f"{bucket}/zz.json"]


def test_more_objects_than_a_page_are_listed_and_deleted(server: ObjectStoreServer, bucket: str) -> None:
    keys = [f"many/{number:04}" for number in range(1_203)]
    fill(server, bucket, [*keys, "many-others/stays"])
    server.faults = mixed(FAULTY, 12)
    found = storage.match([f"{bucket}/many/*"])
    assert paths(found) == [f"{bucket}/{key}" for key in keys]
    assert {metadata.size_in_bytes for metadata in found} == {9}
    server.faults = Faults()
    assert len(storage.match([f"{bucket}/many/12[0]*", f"{bucket}/many/00[0]*"])) == 13
    assert len(server.requests) == 2, "each begins where it may match, and ends where it may not any more"
    server.faults = mixed(FAULTY, 12)
    storage.delete_directory(f"{bucket}/many")
    server.faults = Faults()
    assert set(contents(server, bucket)) == {"many-others/stays"}


# --- what is no use to try again -----------------------------------------------------------------------------------

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
