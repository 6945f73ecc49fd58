"""A small model, and the score command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import score
from pipelines.command_line import run_command
from tests.tiny import tiny_bundle
from torchmoji_core.bundle import Bundle

WORDS = [
    "i", "you", "we", "the", "a", "is", "was", "so", "not", "love", "hate", "rain", "sun", "coffee", "bus", "late",
    "happy", "sad", ".", "!", ",", "?", "..", "!!", ":)",
]  # fmt: skip


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return tiny_bundle(WORDS, seed=7)


@pytest.fixture(scope="session")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the bundle is."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    bundle.save(path)
    return str(path)


class Finished(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run_score(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The score command in this process, in an empty directory, with the tiny model."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["score", "--model", model, "--progress", "off", *arguments])
        status = run_command(score.main)
        out, err = capsys.readouterr()
        return Finished(status, out, err)

    return run


@pytest.fixture
def shell_score(model: str, tmp_path: Path) -> Callable[..., Finished]:
    """The score command in a process of its own."""

    def run(*arguments: str, preparation: Callable[[], None] | None = None) -> Finished:
        command = [sys.executable, "-m", "pipelines.score", "--model", model, *arguments]
        finished = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=preparation,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run


def environment() -> dict[str, str]:
    """Ours, with the checkout importable from any directory, and this Python first: Beam's pool starts `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1", "PATH": path}


def read_scores(directory: Path) -> pa.Table:
    """All rows of an output directory, sorted by id."""
    return pq.read_table(directory).sort_by("id")


def read_dead_letters(directory: Path) -> list[dict[str, str]]:
    files = sorted((directory / "_dead_letters").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def write_lines(path: Path, rows: list[object]) -> Path:
    """JSON lines; strings and bytes are written as they are."""
    with path.open("wb") as file:
        for row in rows:
            content = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            file.write(content + b"\n")
    return path


def posts(n: int) -> list[object]:
    """Made-up posts of many lengths."""
    texts = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 37)) for i in range(n)]
    return [{"id": f"post-{i:05}", "text": text} for i, text in enumerate(texts)]
