"""The vocabulary command: texts in any form in, a vocabulary out that pretrain takes; accounts that add up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import vocabulary
from pipelines.cli.exits import DONE, TOO_MANY_DEAD_LETTERS, WRONG_INPUT
from tests.pipelines.conftest import Finished
from tests.pipelines.many_forms import TEXTS, in_many_forms
from torchmoji_core.training.words import count_words, vocabulary_of
from torchmoji_core.vocabulary import Vocabulary

Run = Callable[..., Finished]


@pytest.fixture
def run(run_main: Run) -> Run:
    return lambda *arguments: run_main(vocabulary.main, "--output", "vocabulary.json", *arguments)


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def test_words_of_files_in_many_forms(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    copies = in_many_forms(tmp_path / "in")
    done = run("--input", "in", "--min_count", copies)
    assert done.status == DONE, done.err
    expected = vocabulary_of(count_words(TEXTS * copies), copies, 50_000)
    assert Vocabulary.load("vocabulary.json").tokens == expected.tokens
    assert set(expected.tokens) > {"so", "happy", "number"}
    assert f"read 7 file(s): {copies * len(TEXTS)} texts, 0 records that cannot be read" in done.out
    assert "passed over" in done.out and "_SUCCESS" in done.out


def test_texts_that_are_left_out_are_counted(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "RT @ann: tea", "tea http://example.org", "tea time", "guten tag allerseits")
    words = tmp_path / "english.txt"
    words.write_text("tea\ntime\n")
    options = ["--leave_out", "retweets,urls", "--english_words", words, "--min_count", 1, "--log_format", "json"]
    done = run("--input", path, *options)
    assert done.status == DONE, done.err
    assert list(Vocabulary.load("vocabulary.json"))[10:] == ["tea", "time"]
    (said,) = [json.loads(line) for line in done.err.splitlines()]
    assert said["left_out"] == {"retweets": 1, "urls": 1, "non_english": 1}
    assert (said["read"], said["texts"], said["dead"], said["met"], said["known"]) == (4, 4, 0, 2, 2)


def test_a_vocabulary_is_extended(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "tea tea rain", "rain sun sun sun")
    start = vocabulary_of({"rain": 1}, 1, 11)
    start.save(tmp_path / "start.json")
    assert run("--input", path, "--start", "start.json", "--vocabulary_size", 12).status == DONE
    assert Vocabulary.load("vocabulary.json").tokens == (*start.tokens, "sun")


def test_what_cannot_be_read_is_counted_and_named(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *["tea time"] * 30)
    path.write_text(path.read_text() + "{broken\n")
    done = run("--input", path)
    assert done.status == DONE
    assert "30 texts, 1 records that cannot be read (the first: " in done.out and "a.jsonl" in done.out
    path.write_text(path.read_text() + "{broken\n" * 4)
    (tmp_path / "vocabulary.json").unlink()
    done = run("--input", path)
    assert done.status == TOO_MANY_DEAD_LETTERS
    assert "too many records cannot be read: 14.3% of all" in done.err
    assert Vocabulary.load("vocabulary.json")["tea"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--input: none given"),
        (["--input", "nothing/*"], "no file matches"),
        (["--input", ""], "an input is empty; give a file, a directory or a glob"),
        (["--input", "a.jsonl", "--output", "a.jsonl"], "a.jsonl exists already; give a new name"),
        (["--input", "a.jsonl", "--text_field", "body"], "no record has a text"),
        (["--input", "a.jsonl", "--vocabulary_size", "9"], "9 entries cannot begin with 10; give a larger size"),
        (["--input", "a.jsonl", "--vocabulary_size", "0"], "--vocabulary_size must be a positive integer"),
        (["--input", "a.jsonl", "--min_count", "0"], "--min_count must be at least 1, not 0"),
        (["--input", "a.jsonl", "--leave_out", "links"], "leave_out 'links' is unknown; choose from retweets"),
        (["--input", "a.jsonl", "--english_words", "missing"], "words missing: cannot be read"),
        (["--input", "a.jsonl", "--start", "a.jsonl"], "a.jsonl: expected a JSON object from token to integer id"),
        (["--input", "a.jsonl", "--leave_out", "retweets"], "there are no words to count: 1 texts, 0 records"),
        (["--inptu", "a.jsonl"], "--help lists all options"),
    ],
)
def test_a_mistake_ends_in_one_line(run: Run, tmp_path: Path, options: list[str], message: str) -> None:
    write(tmp_path / "a.jsonl", "RT @ann: tea time")
    done = run(*options)
    assert done.status == WRONG_INPUT
    lines = [line for line in done.err.splitlines() if line and "texts/s" not in line]
    assert message in lines[-1] and len(lines) == 1
    assert not (tmp_path / "vocabulary.json").exists()


def test_standard_input_is_read(run: Run, tmp_path: Path) -> None:
    before = os.dup(0)
    with write(tmp_path / "a.jsonl", "tea tea").open("rb") as file:
        os.dup2(file.fileno(), 0)
        try:
            assert run("--input", "-").status == DONE
        finally:
            os.dup2(before, 0)
            os.close(before)
    assert Vocabulary.load("vocabulary.json")["tea"] == 10
