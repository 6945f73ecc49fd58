"""The finetune command: labelled texts in, a bundle that score runs out; or one line of error before any training."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import finetune, score
from pipelines.cli.exits import DONE, WRONG_INPUT, run_command
from tests.pipelines.conftest import Finished
from tests.pipelines.shells import kill_while_training, shell
from tests.tiny import tiny_bundle
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError

WORDS = ["good", "bad", "day", "night", "today", "really", "so"]
TRAINING = ["--learning_rate", "0.05", "--epoch_samples", "100", "--batch_size", "20", "--most_epochs", "4"]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_rows(count: int = 150) -> list[dict[str, Any]]:
    fillings = ["day", "night today", "so day", "really night", "today"]
    return [
        {
            "body": f"{'good' if number % 2 else 'bad'} {fillings[number % 5]} {fillings[number % 3]}",
            "mood": "glad" if number % 2 else "sorry",
            "split": "test" if number % 10 == 0 else "validation" if number % 10 == 5 else "train",
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.zip"
    tiny_bundle(WORDS, seed=1).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "moods.csv", make_rows())


def test_finetune_from_a_shell_then_score(
    run_main: Callable[..., Finished], tmp_path: Path, base: Path, data: Path
) -> None:
    bundle = tmp_path / "moods"
    fields = ["--text_field", "body", "--label_field", "mood"]
    done = shell(
        "pipelines.finetune", "--data", data, *fields, "--method", "full", "--model", base, "--output", bundle,
        "--fine_learning_rate", "0.05", *TRAINING,
    )  # fmt: skip
    assert done.returncode == DONE, done.stderr
    assert "120 train, 15 val, 15 test; 2 classes" in done.stdout
    assert "epochs" in done.stderr
    scores = json.loads(done.stdout.splitlines()[-2])
    assert scores["test"]["accuracy"] == 1
    posts = tmp_path / "posts.jsonl"
    posts.write_text('{"id": "1", "text": "good good day"}\n{"id": "2", "text": "bad bad night"}\n')
    scored = run_main(score.main, "--input", posts, "--output", tmp_path / "out", "--model", bundle)
    assert scored.status == DONE, scored.err
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert [rows[key]["top_classes"][0]["class"] for key in "12"] == ["glad", "sorry"]
    assert not any("emoji" in name for name in rows["1"])


# --- one line for each mistake ------------------------------------------------------------------------------------

Mistake = Callable[[list[dict[str, Any]]], object]


def edit(row: int, **values: Any) -> Mistake:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("mistake", "extra", "message"),
    [
        (lambda rows: [row.pop("body") for row in rows], [], "no column 'body'; it has 'mood', 'split'"),
        (lambda rows: [row.pop("mood") for row in rows], [], "no column 'mood'"),
        (edit(3, mood="cross"), ["--classes", "sorry,glad"], "row 4: 'mood' is 'cross', outside the classes"),
        (lambda rows: [row.update(mood="glad") for row in rows], [], "all training texts are of class 'glad'"),
        (lambda rows: None, ["--classes", "sorry,glad,calm"], "class 'calm' has no training text"),
        (edit(7, body=""), [], "row 8: 'body' is None, not a text"),
        (edit(7, body="  "), [], "row 8: the text is empty; remove such rows"),
        (edit(2, mood=""), [], "row 3: no 'mood'; label or remove such rows"),
        (edit(2, split="holdout"), [], "row 3: split 'holdout' is unknown"),
        # Whatever the file says.
        (edit(2, split="holdout"), ["--split_ratios", "0,0.5,0.5"], "the data has no rows to train on"),
        (lambda rows: None, ["--hidden", "8", "--method", "last"], "'last' keeps the size"),
        (lambda rows: None, ["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (lambda rows: None, ["--method", "new", "--embedding", "0"], "'embedding' must be a positive integer, not 0"),
        (lambda rows: None, ["--maxlen", "1000000000"], "maxlen must be a positive integer of at most 10,000"),
        (lambda rows: None, ["--classes", "sorry,gl\x07ad"], r"name of a class must be one line of text"),
        (edit(4, mood="glad\x1b[2J"), [], r"row 5: a class in 'mood' must be one line of text"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_before_any_training(
    tmp_path: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Mistake,
    extra: list[str],
    message: str,
) -> None:
    rows = make_rows(60)
    mistake(rows)
    path = write_csv(tmp_path / "moods.csv", rows)
    status, error = command(monkeypatch, capsys, "--data", path, "--output", tmp_path / "out", "--model", base, *extra)
    assert status == WRONG_INPUT
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "freeze"], "--method: invalid choice: 'freeze'"),
        (["--patience", "0"], "patience must be above 0"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--split_ratios", "0.8,0.2"], "--split_ratios must be three shares, of train, val and test, that"),
        (["--split_ratios", "most"], "--split_ratios: must be numbers like 0.8,0.1,0.1, not 'most'"),
        (["--threads", "100000000"], "--threads must be at least 1 and below 1025"),
        (["--output", "s3://bucket/model"], "s3://bucket/model: a path on this machine is needed"),
        (["--name", "caf\udce9"], "name of the bundle (--name, or else that of --output) must be"),
    ],
)
def test_options_that_cannot_be_end_in_one_line_before_the_data_is_read(
    tmp_path: Path, extra: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        finetune.main(["--data", "nowhere.csv", "--output", str(tmp_path / "out"), *extra])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [float("nan"), None, 1.5, -1, 7], ids=str)
def test_a_label_that_is_no_class(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], label: float
) -> None:
    labels = [float(number % 2) for number in range(40)]
    labels[11] = label
    path = tmp_path / "moods.parquet"
    pq.write_table(pa.table({"body": ["good day"] * 40, "mood": pa.array(labels, pa.float64())}), path)
    classes = ["--classes", "no,yes"]
    status, error = command(
        monkeypatch, capsys, "--data", path, "--output", tmp_path / "out", "--model", base, *classes
    )
    assert (status, error.count("\n")) == (WRONG_INPUT, 1)
    assert "row 12" in error


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    fields = ["--text_field", "body", "--label_field", "mood"]
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments), *fields])
    status = run_command(finetune.main)
    return status, capsys.readouterr().err


def test_an_output_that_exists_or_cannot_be_written_is_refused(
    tmp_path: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = command(monkeypatch, capsys, "--data", data, "--output", tmp_path, "--model", base)
    assert status == WRONG_INPUT and "exists already" in error
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below" / "tuned"
    status, error = command(monkeypatch, capsys, "--data", data, "--output", below, "--model", base)
    assert status == WRONG_INPUT and error.count("\n") == 1, "before anything is trained"
    assert f"--output {below}: cannot be written (Not a directory)" in error


# --- kill -9 ------------------------------------------------------------------------------------------------------


def test_a_killed_run_is_continued_to_the_same_weights(
    run_main: Callable[..., Finished], tmp_path: Path, base: Path, data: Path
) -> None:
    """Killed in mid-training; the weights are those of a run that was not."""
    settings = [
        "--data", data, "--text_field", "body", "--label_field", "mood", "--model", base, "--threads", 1,
        "--method", "chain-thaw", "--epoch_samples", 400, "--batch_size", 20, "--most_epochs", 3, "--patience", 3,
        "--checkpoint_seconds", 0.05, "--name", "moods",
    ]  # fmt: skip
    whole = run_main(finetune.main, *settings, "--output", tmp_path / "whole")
    assert whole.status == DONE, whole.err
    checkpoint = tmp_path / "checkpoint.pt"
    resumable = [*settings, "--checkpoint", checkpoint, "--output", tmp_path / "killed"]
    kill_while_training("pipelines.finetune", resumable, checkpoint)
    assert not (tmp_path / "killed").exists()
    done = run_main(finetune.main, *resumable)
    assert done.status == DONE, done.err
    assert load_bundle(tmp_path / "killed").fingerprint == load_bundle(tmp_path / "whole").fingerprint
