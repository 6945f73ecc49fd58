"""Whole commands over files in every form, from standard input and pipes, by one worker and several."""

from __future__ import annotations

import gzip
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.cli.annotate_options import annotate_parser
from pipelines.cli.options import score_parser
from tests.archives import zip_of
from tests.pipelines.conftest import Finished, read_dead_letters, read_live
from tests.pipelines.many_forms import LINES, TEXTS, in_many_forms

Run = Callable[..., Finished]


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.faults)])
def test_a_directory_of_all_forms(workers: str, run_score: Run, run_verify: Run, tmp_path: Path) -> None:
    copies = in_many_forms(tmp_path / "in")
    command = ["--input", "in", "--output", "in/scored", "--keep_fields", "lang", "--direct_num_workers", workers]
    for _ in range(2 if workers == "1" else 1):  # what it has written there is no input
        finished = run_score(*command, "--outputs", "text,source")
        assert finished.status == 0, finished.err
        assert "passed over 1 members of .zip files" in finished.out
        rows = read_live(tmp_path / "in" / "scored").to_pylist()
        assert sorted(row["text"] for row in rows) == sorted(TEXTS * copies)
    assert {row["lang"] for row in rows if "lang=en" in row["source"]} == {"en"}
    assert sum(row["source"] == f"{tmp_path}/in/members.zip" for row in rows) == 2 * len(TEXTS)


def test_what_has_changed_in_an_archive_is_scored_again(run_annotate: Run, run_verify: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.zip"
    for members in ({"a.jsonl": LINES}, {"a.jsonl": LINES.splitlines(keepends=True)[0], "b.txt": b"how sad\n\xff\n"}):
        path.write_bytes(zip_of(members))
        assert run_annotate("--partition_by", "", "--max_dead_fraction", "1").status == 0
    assert sorted(read_live(tmp_path / "out")["text"].to_pylist()) == ["how sad", TEXTS[0]]
    assert run_verify().status == 0
    (letter,) = read_dead_letters(tmp_path / "out")
    assert letter["position"] == "b.txt:8"


# --- what can be read once -----------------------------------------------------------------------------------------


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Has standard input give something."""
    before = os.dup(0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def pipe(content: bytes) -> None:
        ours, theirs = os.pipe()
        os.dup2(ours, 0)
        os.close(ours)
        threading.Thread(target=write, args=(theirs, content)).start()

    yield pipe
    os.dup2(before, 0)
    os.close(before)


def write(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(content)


ROWS = 3000
CSV = b"text\n" + b"".join(b"so happy %d\n" % number for number in range(ROWS))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_standard_input(
    pack: Callable[[bytes], bytes], piped: Callable[[bytes], None], run_score: Run, tmp_path: Path
) -> None:
    ids = []
    for _ in range(2):
        piped(pack(CSV))
        finished = run_score("--input", "-", "--format", "csv", "--output", "out", "--outputs", "text,source")
        assert finished.status == 0, finished.err
        rows = read_live(tmp_path / "out")
        assert rows.num_rows == ROWS and set(rows["source"].to_pylist()) == {"-"}
        ids.append(rows["id"].to_pylist())
        assert not list((tmp_path / "temporary").iterdir()), "what was spooled is removed"
    assert ids[0] == ids[1], "by position"


def test_a_pipe_that_is_named(run_score: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    writer = threading.Thread(target=(tmp_path / "pipe.jsonl").write_bytes, args=(LINES,))
    writer.start()
    assert run_score("--input", "pipe.jsonl", "--output", "out").status == 0
    writer.join()
    assert read_live(tmp_path / "out")["text"].to_pylist() == TEXTS


def test_standard_input_that_is_none(run_score: Run, run_annotate: Run, piped: object, tmp_path: Path) -> None:
    terminal = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(terminal, 0)
    os.close(terminal)
    finished = run_score("--input", "-", "--format", "text", "--output", "out")
    assert finished.status == 2 and "pipe something into" in finished.err
    finished = run_annotate("--input", "-")
    assert finished.status == 2 and "pipelines.score" in finished.err
    assert finished.err.count("\n") == 1
    # Only the command that takes it offers it.
    assert "standard input" in " ".join(score_parser().format_help().split())
    assert "standard input" not in " ".join(annotate_parser().format_help().split())


# --- one line ------------------------------------------------------------------------------------------------------

ADVICE: dict[str, tuple[str, bytes, tuple[str, ...], int]] = {
    "--columns": ("x.csv", b"id,text,id,text\n1,so happy,2,b\n", ("--columns", "id,text,user,bio"), 1),
    "--no_header": ("x.csv", b"1467810001,hi\n1467810002,ho\n", ("--no_header", "--columns", "id,text"), 2),
    "--format": ("x.dat", b"so happy\n", ("--format", "text"), 1),
    "save it as CSV": ("x.xlsx", zip_of({"[Content_Types].xml": b""}), (), 0),
}  # fmt: skip


@pytest.mark.parametrize("advice", ADVICE)
def test_what_the_command_advises_helps(advice: str, run_score: Run, tmp_path: Path) -> None:
    name, content, options, rows = ADVICE[advice]
    (tmp_path / name).write_bytes(content)
    finished = run_score("--input", name, "--output", "out")
    assert finished.status == 2
    assert finished.err.startswith(f"error: input {tmp_path}/{name}: ") and finished.err.count("\n") == 1
    assert advice in finished.err
    if rows:
        assert run_score("--input", name, "--output", "out", *options).status == 0
        assert read_live(tmp_path / "out").num_rows == rows
