"""Of several who create a file, one has created it, and knows it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.object_store_server import Faults, ObjectStoreServer, mixed
from tests.transforms.creators import FILES, HANG_GUARD, create_at_once
from tests.transforms.storage.objects import FAULTY, contents, write
from transforms.storage import files as storage

RACE = """
import sys
from transforms.storage import files as storage
directory, writer = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(15):
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
    assert sum(map(len, outputs)) == 15
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
