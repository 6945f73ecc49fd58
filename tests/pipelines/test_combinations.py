"""Commands one after the other over one data set: each goes on with what the others left, or is refused before work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import score
from pipelines.data_set.snapshot import DataSet, live_files
from tests.pipelines.conftest import Finished, corpus, posts, read_live, write_lines

Run = Callable[..., Finished]


@pytest.fixture
def annotated(tmp_path: Path, run_annotate: Run) -> Path:
    """Results of three inputs, one of which has changed since, so that a file is retired."""
    paths = corpus(tmp_path / "in", 3, 10)
    assert run_annotate().status == 0
    write_lines(paths[0], posts(4))
    assert run_annotate().status == 0
    write_lines(tmp_path / "more.jsonl", [{"id": "more", "text": "so happy"}])
    return tmp_path / "out"


@pytest.fixture
def append(run_main: Run, model: str) -> Run:
    def run(*inputs: str) -> Finished:
        arguments = ("--model", model, "--output", "out", "--if_exists", "append", "--progress", "off")
        return run_main(score.main, *arguments, "--input", *inputs)

    return run


def test_rows_are_added_to_an_annotated_data_set_and_annotation_goes_on(
    annotated: Path, tmp_path: Path, append: Run, run_annotate: Run, run_verify: Run, run_compact: Run
) -> None:
    retired = [annotated / path for path in DataSet.read(str(annotated)).retired]
    rows = len(read_live(annotated))
    finished = append("more.jsonl")
    assert finished.status == 0, finished.err
    assert retired and all(path.exists() for path in retired)
    assert len(read_live(annotated)) == rows + 1
    assert all("/date=" in path for path in live_files(str(annotated)))
    assert run_verify().status == 0
    assert "nothing is new" in run_annotate().out
    corpus(tmp_path / "in", 1, 10, first=3)
    assert run_annotate().status == 0
    assert run_verify().status == 0
    assert run_compact().status == 0
    assert run_verify().status == 0
    assert len(read_live(annotated)) == rows + 1 + 10
    assert "nothing is new" in run_annotate().out


def test_an_input_that_was_added_and_changes_is_scored_anew_once(
    annotated: Path, tmp_path: Path, append: Run, run_annotate: Run, run_verify: Run
) -> None:
    rows = len(read_live(annotated))
    assert append("more.jsonl").status == 0
    write_lines(tmp_path / "more.jsonl", [{"id": "more", "text": "so sad and late"}])
    assert run_annotate("--input", "in/*", "more.jsonl").status == 0
    assert len(read_live(annotated)) == rows + 1
    assert run_verify().status == 0


def test_an_input_that_is_there_is_not_added_again(annotated: Path, append: Run) -> None:
    finished = append("in/0001.jsonl")
    assert finished.status == 2
    assert "in/0001.jsonl is in output" in finished.err and "already" in finished.err
