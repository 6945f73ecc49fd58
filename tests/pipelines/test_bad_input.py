"""What is wrong is said in one line before any work, with exit status 2, and nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from tests.pipelines.conftest import Finished, posts, write_lines
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError

Score = Callable[..., Finished]


def assert_refused(finished: Finished, expected: str, tmp_path: Path) -> None:
    assert finished.status == 2, finished
    assert finished.err.startswith("error: ") and finished.err.count("\n") == 1, finished.err
    assert expected in finished.err
    assert not list(tmp_path.glob("out/**/*.parquet"))


def assert_unparsable(arguments: str, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        parse(arguments.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--format xml", "--format: invalid choice: 'xml'"),
        ("--keep_fields text", "output column"),
        ("--keep_fields a:int32", "int64"),
        ("--outputs top,topp", "'topp' is unknown; choose from text, source, top"),
        ("--outputs ,", "outputs"),
        ("--embedding_type int8", "float16"),
        ("--precision fp8", "fp32"),
        ("--top_k 0", "top_k"),
        ("--rows_per_file 0", "rows_per_file"),
        ("--max_batch_rows 0", "max_rows"),
        ("--max_dead_fraction 2", "--max_dead_fraction"),
        ("--threads 0", "threads"),
        ("--direct_num_workers -1", "--direct_num_workers"),
        ("in.jsonl", "--input"),
        ("--output out[1]", "glob characters"),
    ],
)
def test_options_that_cannot_be(arguments: str, expected: str) -> None:
    assert_unparsable(arguments, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--input nothing-*.jsonl", "no file matches"),
        ("--input in.jsonl nothing.txt", "nothing.txt: no file matches"),
        ("--input unknown.scheme://x/y", "unknown.scheme"),
        ("--input data.xyz", "--format"),
        ("--input other.jsonl", "give --text_field one of: words, user"),
        ("--input in.jsonl --text_field tekst", "tekst"),
        ("--input other.csv", "words"),
        ("--input in.jsonl --keep_fields mood,colour", "kept field 'mood' is in no record; fields are: id, text"),
        ("--input in.txt --keep_fields a", "text lines have no fields"),
        ("--input in.jsonl --no_such_option", "--no_such_option"),
        ("--input in.jsonl --no_such_option=5", "--no_such_option"),
        ("--input in.jsonl --direct_running_mode sideways", "direct_running_mode"),
        ("--input in.jsonl --runner NoRunner", "NoRunner"),
        ("--input in.jsonl --output in.jsonl", "cannot be written"),
        ("--input in.jsonl --output /proc/nothing", "cannot be written"),
    ],
)
def test_wrong_options(run_score: Score, tmp_path: Path, arguments: str, expected: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    write_lines(tmp_path / "other.jsonl", [{"words": "so happy", "user": "a"}])
    (tmp_path / "other.csv").write_text("words,user\nso happy,a\n")
    (tmp_path / "in.txt").write_text("so happy\n")
    (tmp_path / "data.xyz").write_text("so happy\n")
    output = [] if "--output" in arguments else ["--output", "out"]
    assert_refused(run_score(*arguments.split(), *output), expected, tmp_path)


def _lacking_a_file(path: Path) -> None:
    (path / "vocabulary.json").unlink()


def _damaged_weights(path: Path) -> None:
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)


def _changed_vocabulary(path: Path) -> None:
    vocabulary = json.loads((path / "vocabulary.json").read_text())
    vocabulary["sneaky"] = vocabulary.pop("rain")
    (path / "vocabulary.json").write_text(json.dumps(vocabulary))


def _not_json(path: Path) -> None:
    (path / "config.json").write_text("<!DOCTYPE html>")


def _other_format(path: Path) -> None:
    (path / "config.json").write_text('{"format": "something-else"}')


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_lacking_a_file, "vocabulary.json missing"),
        (_damaged_weights, "does not match the SHA-256"),
        (_changed_vocabulary, "does not match the SHA-256"),
        (_not_json, "not JSON"),
        (_other_format, "something-else"),
    ],
)
def test_damaged_models(
    run_score: Score, bundle: Bundle, tmp_path: Path, damage: Callable[[Path], None], expected: str
) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    bundle.save(tmp_path / "model")
    damage(tmp_path / "model")
    finished = run_score("--input", "in.jsonl", "--output", "out", "--model", "model")
    assert_refused(finished, expected, tmp_path)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nowhere", "no such directory or file"),
        ("http://127.0.0.1:9/model", "cannot be read"),
        ("nope://bucket/model", "cannot be read"),
        ("page.html", "neither a bundle directory nor a readable .zip"),
        ("model.bin", "neither a bundle directory nor a readable .zip"),
    ],
)
def test_models_that_are_none(run_score: Score, tmp_path: Path, model: str, expected: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    (tmp_path / "page.html").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    finished = run_score("--input", "in.jsonl", "--output", "out", "--model", model)
    assert_refused(finished, expected, tmp_path)


def test_a_shell_sees_the_same(shell_score: Score, tmp_path: Path) -> None:
    finished = shell_score("--input", "nothing.jsonl", "--output", "out")
    assert_refused(finished, "no file matches", tmp_path)
    assert finished.out == ""


def test_an_unreadable_manifest_is_not_overwritten(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0
    (manifest,) = (tmp_path / "out" / "_manifests").glob("*")
    manifest.write_text("{")
    finished = run_score("--input", "in.jsonl", "--output", "out")
    assert finished.status == 2 and "not a manifest" in finished.err
    assert len(list(tmp_path.glob("out/*.parquet"))) == 1
