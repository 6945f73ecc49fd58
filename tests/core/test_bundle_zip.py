"""Bundles in archives: any that has the files, none that lies, and no bombs."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.archives import zip_of
from tests.core.bundles import (
    MEGA,
    assert_same,
    error_of,
    files_of,
)
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.bundle_files import CARD, CONFIG, VOCABULARY, WEIGHTS
from torchmoji_core.errors import InputError

# --- archives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED],
    ids=["stored", "deflated"],
)
@pytest.mark.parametrize("folder", ["", "folder/"])
def test_any_zip_of_the_files_will_do(
    directory: Path, bundle: Bundle, tmp_path: Path, compression: int, folder: str
) -> None:
    members = {f"{folder}{name}": content for name, content in files_of(directory).items()}
    (tmp_path / "made.zip").write_bytes(zip_of(members, compression))
    assert_same(load_bundle(tmp_path / "made.zip"), bundle)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "not a bundle"),
        ({"readme.txt": b"hello"}, "not a bundle"),
        ({CONFIG: b"{}"}, f"{VOCABULARY}, {WEIGHTS} missing"),
        ({f"a/b/{name}": b"{}" for name in (CONFIG, VOCABULARY, WEIGHTS)}, "not a bundle"),
        (dict.fromkeys((CONFIG, VOCABULARY, WEIGHTS), b"{}"), "format is None"),
    ],
    ids=["empty", "other content", "config only", "too deep", "empty files"],
)
def test_a_zip_of_something_else_is_refused(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    (tmp_path / "other.zip").write_bytes(zip_of(members))
    assert reason in error_of(lambda: load_bundle(tmp_path / "other.zip"))


def test_nothing_is_extracted(directory: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    files = files_of(directory)
    outside = {f"../{name}": b"outside" for name in ("x", "y.json")} | {f"{tmp_path}/absolute": b"outside"}
    (work / "good.zip").write_bytes(zip_of(outside | files))
    (work / "all_outside.zip").write_bytes(zip_of({f"../../{name}": content for name, content in files.items()}))
    before = sorted(tmp_path.rglob("*"))
    assert load_bundle("good.zip").fingerprint == bundle.fingerprint
    error_of(lambda: load_bundle("all_outside.zip"))
    assert sorted(tmp_path.rglob("*")) == before


@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    where=st.sampled_from(["anywhere", "directory", "headers"]),
    cut=st.one_of(st.none(), st.none(), st.floats(0, 1)),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_zip_is_noticed(
    tmp_path: Path,
    archive: bytes,
    bundle: Bundle,
    damage: list[tuple[float, int]],
    where: str,
    cut: float | None,
    compression: int,
) -> None:
    """Whatever bytes are changed: it is refused in one line, or what is read is what was written."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        # The card has no digest, and a checksum of the archive does not cover all that says where it is.
        content = bytearray(zip_of({name: file.read(name) for name in (CONFIG, VOCABULARY, WEIGHTS)}, compression))
    names = [start for start in range(len(content)) if content[start : start + 2] == b"PK"]
    for place, value in damage:
        if where == "anywhere":
            position = int(place * len(content))
        elif where == "directory":
            position = len(content) - 1 - int(place * 250)
        else:
            position = min(names[int(place * len(names))] + value % 60, len(content) - 1)
        content[position] = value
    if cut is not None:
        del content[int(cut * len(content)) :]
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    try:
        loaded = load_bundle(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.fingerprint == bundle.fingerprint


def test_a_member_name_that_is_no_text_is_refused(tmp_path: Path, archive: bytes) -> None:
    name = "vocabulary.jsön".encode()
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {member: file.read(member) for member in file.namelist()}
    content = zip_of(members | {name.decode(): b""}).replace(name, name[:-2] + b"\xff\xff")
    (tmp_path / "odd.zip").write_bytes(content)
    assert "zip" in error_of(lambda: load_bundle(tmp_path / "odd.zip"))


# --- what asks for more than it is worth --------------------------------------------------------------------------


def reforged(archive: bytes, **contents: bytes) -> dict[str, bytes]:
    """Members of an archive with other files, under their digests."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {name: file.read(name) for name in (CONFIG, VOCABULARY, WEIGHTS)}
    members |= {{"vocabulary": VOCABULARY, "weights": WEIGHTS}[name]: content for name, content in contents.items()}
    config = json.loads(members[CONFIG])
    config["sha256"] = {name: hashlib.sha256(members[name]).hexdigest() for name in (VOCABULARY, WEIGHTS)}
    return members | {CONFIG: json.dumps(config).encode()}


def claiming(archive: bytes, **dimensions: int) -> dict[str, bytes]:
    """The same with other dimensions in its configuration."""
    members = reforged(archive)
    config = json.loads(members[CONFIG])
    config["dimensions"] |= dimensions
    return members | {CONFIG: json.dumps(config).encode()}


def expanding(size: int) -> bytes:
    """A file of zeros that looks like weights, for compression."""
    return struct.pack("<Q", 2) + b"{}" + bytes(size)


BOMBS: dict[str, tuple[Callable[[bytes], dict[str, bytes]], str]] = {
    "weights": (lambda archive: reforged(archive, weights=expanding(70 * MEGA)), f"{WEIGHTS} has 73,400,330 bytes"),
    "weights of a model that would be huge": (
        lambda archive: claiming(archive, vocabulary=200_000, embedding=1000) | {WEIGHTS: expanding(70 * MEGA)},
        "expands to more than 200 times",
    ),
    "a header": (
        lambda archive: reforged(
            zip_of(claiming(archive, vocabulary=100_000)), weights=struct.pack("<Q", 65 << 10) + b" " * (65 << 10)
        ),
        "header is too large",
    ),
    "a vocabulary": (lambda archive: reforged(archive, vocabulary=b"[" + b"[]," * MEGA), f"{VOCABULARY} has 3,145,729"),
    "a configuration": (
        lambda archive: reforged(archive) | {CONFIG: b"[" + b"[]," * (2 * MEGA)}, f"{CONFIG} has 6,291,457 bytes",
    ),
    "a card": (lambda archive: reforged(archive) | {CARD: b"#" * (2 * MEGA)}, f"{CARD} has 2,097,152 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_one_line(archive: bytes, tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    members = make(archive)
    (tmp_path / "bomb.zip").write_bytes(zip_of(members))
    assert reason in error_of(lambda: load_bundle(tmp_path / "bomb.zip"))
    if "expands" not in reason:
        (tmp_path / "bomb").mkdir()
        for file, content in members.items():
            (tmp_path / "bomb" / file).write_bytes(content)
        assert reason in error_of(lambda: load_bundle(tmp_path / "bomb"))


def liar(archive: bytes, size: int) -> bytes:
    """Its list says 26 bytes of weights, behind which there are many more."""
    content = bytearray(zip_of(reforged(archive, weights=bytes(size)), zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        local = file.getinfo(WEIGHTS).header_offset
    for start in (local + 22, content.rfind(b"PK\1\2") + 24):
        content[start : start + 4] = struct.pack("<I", 26)
    return bytes(content)


LOAD_ALL = """
import re, sys
from pathlib import Path
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError
from safetensors.torch import load_file  # torch, before its memory is taken into account
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_bundle(path)
    except InputError:
        continue
    sys.exit(f"{path} was loaded")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say how much memory was used")
def test_bombs_take_little_memory(archive: bytes, tmp_path: Path) -> None:
    """A zip of 71 kB took 1.9 GB, by weights in bzip2, of which a piece of 4 kB is gigabytes."""
    (tmp_path / "bzip2.zip").write_bytes(zip_of(reforged(archive, weights=bytes(150 * MEGA)), zipfile.ZIP_BZIP2))
    for number, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.zip").write_bytes(zip_of(make(archive)))
    (tmp_path / "liar.zip").write_bytes(liar(archive, 150 * MEGA))
    command = [sys.executable, "-c", LOAD_ALL, str(tmp_path)]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-1000:]
    assert int(finished.stdout) < 100


def test_an_archive_that_says_less_than_it_holds_is_read_no_further(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "liar.zip").write_bytes(liar(archive, MEGA))
    assert "Bad CRC-32" in error_of(lambda: load_bundle(tmp_path / "liar.zip"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_would_be_decompressed_without_a_bound_is_refused(
    directory: Path, tmp_path: Path, compression: int
) -> None:
    (tmp_path / "made.zip").write_bytes(zip_of(files_of(directory), compression))
    assert "compress it with deflate" in error_of(lambda: load_bundle(tmp_path / "made.zip"))


def test_an_archive_of_tens_of_thousands_of_members_is_refused(archive: bytes, tmp_path: Path) -> None:
    members = reforged(archive) | {f"{number}": b"" for number in range(25_000)}
    (tmp_path / "many.zip").write_bytes(zip_of(members, zipfile.ZIP_STORED))
    assert "list of members" in error_of(lambda: load_bundle(tmp_path / "many.zip"))


def test_an_archive_with_a_file_twice_is_refused(archive: bytes, tmp_path: Path) -> None:
    members = reforged(archive)
    (tmp_path / "twice.zip").write_bytes(zip_of({f"a/{CONFIG}": b"{}"} | members))
    assert f"{CONFIG} is in it twice" in error_of(lambda: load_bundle(tmp_path / "twice.zip"))
