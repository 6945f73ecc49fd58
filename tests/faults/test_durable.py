"""A power cut right after a command, and a disk that is so full that no lock can be written to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines.data_set.liveness import process_key, this_process
from tests.faults.conftest import Annotator, remount
from tests.pipelines.conftest import corpus

pytestmark = pytest.mark.faults

IMAGE_MB = 64


@contextmanager
def mounted(image: Path, directory: Path, options: str = "loop") -> Iterator[None]:
    """A file system in a file; skipped where none can be mounted."""
    directory.mkdir(exist_ok=True)
    command = ["mount", "-o", options, str(image), str(directory)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        pytest.skip(f"no file system can be mounted here: {finished.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file with an empty ext4 file system."""
    path = tmp_path / "disk.img"
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root makes and mounts file systems")
    with path.open("wb") as file:
        file.truncate(IMAGE_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    return path


def after_a_power_cut(annotator: Annotator, image: Path, *commands: tuple[str, ...]) -> None:
    """Run commands on the disk, and leave the data set as a power cut right after the last of them would.

    What the file system has not written to the disk is not in the file that is its disk. It writes by itself after some
    seconds only, and its journal, with this option, later still.
    """
    copy = image.with_name("copy.img")
    with mounted(image, annotator.output, "loop,commit=300"):
        for options in commands:
            annotator.run(*options)
        shutil.copyfile(image, copy)
    image.unlink()
    copy.rename(image)


def test_what_was_said_to_be_done_survives_a_power_cut(
    annotator: Annotator, undisturbed: pa.Table, image: Path
) -> None:
    after_a_power_cut(annotator, image, ("--commit_every", "0.1s"))
    with mounted(image, annotator.output):
        annotator.verify()
        assert annotator.rows().equals(undisturbed)
        assert DeltaTable(annotator.output).count() == undisturbed.num_rows
        assert "nothing is new" in annotator.run()


def test_many_small_files_survive_a_power_cut(annotator: Annotator, image: Path) -> None:
    partitions = ("--partition_by", "lang")
    after_a_power_cut(annotator, image, partitions, partitions)
    with mounted(image, annotator.output):
        annotator.verify()
        assert annotator.rows().num_rows == 8 * 250


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_a_power_cut_in_the_middle_leaves_what_was_committed(
    annotator: Annotator, undisturbed: pa.Table, image: Path, seconds: float
) -> None:
    copy = image.with_name("copy.img")
    with mounted(image, annotator.output, "loop,commit=300"):
        process = annotator.start("--commit_every", "0.1s")
        deadline = time.monotonic() + 60
        while not list(annotator.output.glob("_manifests/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(seconds)
        shutil.copyfile(image, copy)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with mounted(copy, annotator.output):
        annotator.run()
        annotator.verify()
        assert annotator.rows().equals(undisturbed)


def fill(disk: Path) -> None:
    """Until not a byte can be written."""
    with (disk / "foreign.bin").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_cleaning_frees_a_full_disk(annotator: Annotator, small_disk: Path, tmp_path: Path) -> None:
    remount(small_disk, "size=4m")
    annotator.run()
    corpus(tmp_path / "in", 2, 240)  # changed, so that files are retired
    annotator.run()
    unlisted = small_disk / "part-unlisted.parquet"
    unlisted.write_bytes(bytes(100_000))
    rows = annotator.rows()
    fill(small_disk)
    said = annotator.run(status=1)
    assert "No space left on device" in said and "--clean" in said and "Traceback" not in said
    foreign = (small_disk / "foreign.bin").stat().st_size
    said = annotator.verify("--clean", "--older_than", "0s")
    assert "deleted     0 file(s)" not in said
    assert not unlisted.exists()
    assert (small_disk / "foreign.bin").stat().st_size == foreign
    assert annotator.rows().equals(rows)
    annotator.run()


def test_cleaning_a_full_disk_leaves_a_run_that_goes_on_alone(annotator: Annotator, small_disk: Path) -> None:
    remount(small_disk, "size=4m")
    annotator.run()
    process = subprocess.Popen(["sleep", "600"])
    try:
        content = this_process() | {"pid": process.pid, "process": process_key(process.pid)}
        (small_disk / "_lock.json").write_text(json.dumps(content))
        unlisted = small_disk / "part-unlisted.parquet"
        unlisted.write_bytes(bytes(100_000))
        fill(small_disk)
        said = annotator.verify("--clean", "--older_than", "0s", status=5)
        assert "No space left on device" in said
        assert unlisted.exists()
    finally:
        process.kill()
        process.wait()
