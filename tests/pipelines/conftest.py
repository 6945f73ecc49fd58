"""A small model, and the score command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyarrow import dataset

from pipelines import annotate, compact, score, verify
from pipelines.cli.exits import run_command
from pipelines.data_set.snapshot import live_files
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
def run_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """A command's main in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(main: Callable[[list[str]], int], *arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        status = run_command(main)
        out, err = capsys.readouterr()
        return Finished(status, out, err)

    return run


@pytest.fixture
def run_score(model: str, run_main: Callable[..., Finished]) -> Callable[..., Finished]:
    """The score command in this process, in an empty directory, with the tiny model."""
    return partial(run_main, score.main, "--model", model, "--progress", "off")


@pytest.fixture
def run_annotate(model: str, run_main: Callable[..., Finished]) -> Callable[..., Finished]:
    """The annotate command likewise, from `in` to `out`; further options override these."""
    arguments = ("--model", model, "--progress", "off", "--input", "in/*", "--output", "out")
    return partial(run_main, annotate.main, *arguments)


@pytest.fixture
def run_verify(run_main: Callable[..., Finished]) -> Callable[..., Finished]:
    """The verify command likewise, of `out`."""
    return partial(run_main, verify.main, "out")


@pytest.fixture
def run_compact(run_main: Callable[..., Finished]) -> Callable[..., Finished]:
    """The compact command likewise, of `out`."""
    return partial(run_main, compact.main, "out")


@pytest.fixture
def shell_score(model: str, tmp_path: Path) -> Callable[..., Finished]:
    """The score command in a process of its own."""

    def run(*arguments: str) -> Finished:
        command = [sys.executable, "-m", "pipelines.score", "--model", model, *arguments]
        finished = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False
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


def corpus(directory: Path, n_files: int, rows: int, first: int = 0) -> list[Path]:
    """Files of posts, `rows` in each; the ids tell file and row."""
    directory.mkdir(exist_ok=True)
    paths = []
    for number in range(first, first + n_files):
        content: list[object] = [
            post | {"id": f"{number}-{index}", "lang": ("en", "de", "fr")[index % 3]}  # type: ignore[operator]
            for index, post in enumerate(posts(rows + number)[number:])
        ]
        paths.append(write_lines(directory / f"{number:04}.jsonl", content))
    return paths


def read_live(output: Path, *without: str) -> pa.Table:
    """All rows of a data set, as its manifests say, sorted by id; its Delta log must say the same."""
    table = dataset.dataset(live_files(str(output)), partitioning="hive").to_table()
    table = table.drop_columns([name for name in without if name in table.column_names]).sort_by("id")
    assert sorted(DeltaTable(output).to_pyarrow_table(columns=["id"])["id"].to_pylist()) == table["id"].to_pylist()
    return table
