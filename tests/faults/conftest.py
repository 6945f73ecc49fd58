"""A corpus, what an undisturbed annotation of it gives, and commands that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipelines.conftest import WORDS, corpus, environment, read_live
from tests.tiny import tiny_bundle

FAULTS = pytest.mark.faults
"""These are left out of `make test`; `make test-faults` runs them."""


class Annotator:
    """Annotations of `directory/in` to `directory/out` as a scheduler starts them."""

    def __init__(self, directory: Path, model: str) -> None:
        self.directory, self.model = directory, model
        self.output = directory / "out"

    def start(
        self,
        *options: str,
        command: tuple[str, ...] = ("-m", "pipelines.annotate"),
        clock: timedelta = timedelta(),
    ) -> subprocess.Popen[str]:
        """Start one.

        Args:
            *options: of the command.
            command: of Python.
            clock: by how much the clock that it sees is ahead; its monotonic clock is not.
        """
        arguments = ["--model", self.model, "--input", "in/*", "--output", "out", "--progress", "off", *options]
        return subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=self.directory,
            env=environment() | {"OMP_NUM_THREADS": "1"} | (fake_clock(clock) if clock else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, status: int = 0, **how: Any) -> str:
        """Run one to its end, started as `start` does. Returns what it printed."""
        process = self.start(*options, **how)
        out, err = process.communicate(timeout=900)  # also on a machine that is busy with other work
        assert process.returncode == status, f"status {process.returncode}\n{out}{err}"
        return out + err

    def verify(self, *options: str, status: int = 0) -> str:
        finished = subprocess.run(
            [sys.executable, "-m", "pipelines.verify", "out", *options],
            cwd=self.directory,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == status, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    def rows(self) -> pa.Table:
        """The live rows, without the column whose values hold the directory's name."""
        return read_live(self.output, "source")


def fake_clock(ahead: timedelta) -> dict[str, str]:
    """Environment of a process whose clock is ahead; skips the test where the library for it is not built."""
    libfaketime = pytest.importorskip("libfaketime")
    libraries = list(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not built for this machine")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": f"{ahead.total_seconds():+.0f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bundle(WORDS, seed=7).save(path)
    return str(path)


@pytest.fixture
def annotator(tmp_path: Path, tiny_model: str) -> Annotator:
    """Over eight files of 250 posts."""
    corpus(tmp_path / "in", 8, 250)
    return Annotator(tmp_path, tiny_model)


@pytest.fixture
def undisturbed(annotator: Annotator, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of an annotation that nothing disturbs, of the same files under another name."""
    return undisturbed_rows(annotator, tmp_path_factory.mktemp("undisturbed"))


def undisturbed_rows(annotator: Annotator, directory: Path) -> pa.Table:
    (directory / "in").symlink_to(annotator.directory / "in")
    other = Annotator(directory, annotator.model)
    other.run()
    return other.rows()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the output, of 200 kB; skipped where none can be mounted."""
    path = tmp_path / "out"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)
