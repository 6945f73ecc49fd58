"""The pretrain command: texts with emojis in, a bundle with a card that it fills itself; a kill costs little."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import pretrain
from pipelines.cli.exits import DONE, WRONG_INPUT
from tests.pipelines.conftest import Finished
from tests.pipelines.shells import kill_while_training
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError

MOODS = {"❤": "love", "😂": "funny", "😢": "sad", "😡": "angry"}
SMALL = ["--embedding", "8", "--hidden", "6", "--min_count", "1", "--threads", "1", "--learning_rate", "0.02"]


def make_rows(count: int = 240) -> list[dict[str, Any]]:
    generator = random.Random(1)
    rows = []
    for number in range(count):
        emoji = generator.choice(list(MOODS))
        words = [MOODS[emoji], *generator.choices(["the", "day", "is", "my", "dog", "so"], k=4)]
        generator.shuffle(words)
        split = "val" if number % 10 == 1 else "test" if number % 10 == 2 else "train"
        emojis = [emoji, "✨"] if number % 7 == 0 else [emoji]
        rows.append({"text": " ".join(words), "emoji": emoji, "emojis": emojis, "split": split})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "emojis.parquet"
    pq.write_table(pa.Table.from_pylist(make_rows()), path)
    return path


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made by the command, from a vocabulary of its own."""
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    settings = ["--name", "teacher", "--epochs", 25, "--batch_size", 16, *SMALL]
    assert pretrain.main(list(map(str, ["--data", data, "--output", path, *settings]))) == DONE
    return path


def test_a_bundle_that_knows_its_emojis(teacher: Path) -> None:
    bundle = load_bundle(str(teacher))
    scores = bundle.provenance["scores"]
    assert scores["test"]["top1"] > 0.8
    # No emoji has a thousand texts here: no figure over none of them, which would be NaN.
    assert all(math.isfinite(value) for part in scores.values() for value in part.values())
    assert "frequent" not in str(scores)
    assert bundle.provenance["texts"] == {"train": 192, "val": 24, "test": 24}
    assert set(bundle.vocabulary) > {*MOODS.values(), "dog"}
    (top,) = bundle.score(["my dog is so funny"]).top(1)
    assert top[0][0] == "😂"
    # The card is filled from what was measured.
    assert "# teacher" in bundle.card and "embedding 8" in bundle.card
    assert f"| test | 24 | {bundle.provenance['scores']['test']['top1']:.3f} |" in bundle.card


def test_texts_are_left_out_by_kind_and_language(run_main: Callable[..., Finished], tmp_path: Path) -> None:
    rows = make_rows(80)
    for number, row in enumerate(rows):
        before = ("RT @ann ", "see http://example.org ", "jamais encore demain matin ", "")[number // 10 % 4]
        row["text"] = before + row["text"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    words = tmp_path / "english.txt"
    words.write_text("\n".join([*MOODS.values(), "the", "day", "is", "my", "dog", "so"]))
    done = run_main(
        pretrain.main, "--data", "data.parquet", "--output", "small", "--epochs", 0.1, *SMALL,
        "--leave_out", "retweets,urls", "--english_words", words,
    )  # fmt: skip
    assert done.status == DONE, done.err
    assert "left out 20 retweets, 20 urls, 20 non_english" in done.out
    bundle = load_bundle("small")
    assert bundle.provenance["left_out"] == {"retweets": 20, "urls": 20, "non_english": 20}
    assert sum(bundle.provenance["texts"].values()) == 20
    assert not {"rt", "see", "encore"} & bundle.vocabulary.keys()


def test_a_pupil_of_a_teacher_with_a_card_of_its_own(
    run_main: Callable[..., Finished], data: Path, teacher: Path, tmp_path: Path
) -> None:
    card = tmp_path / "card.md"
    card.write_text("**Limits.** It knows four moods.\n")
    done = run_main(
        pretrain.main, "--data", data, "--output", tmp_path / "pupil", "--teacher", teacher, "--card", card,
        "--prepared", tmp_path / "prepared", "--epochs", 1, *SMALL,
    )  # fmt: skip
    assert done.status == DONE, done.err
    pupil, taught_by = load_bundle(str(tmp_path / "pupil")), load_bundle(str(teacher))
    assert pupil.vocabulary.tokens == taught_by.vocabulary.tokens
    assert pupil.provenance["teachers"] == {taught_by.fingerprint: "teacher"}
    assert "It knows four moods." in pupil.card and "70% of each target" in pupil.card
    assert list((tmp_path / "prepared").glob(f"*/teacher-{taught_by.fingerprint}.npy"))


def test_training_goes_on_from_a_bundle(
    run_main: Callable[..., Finished], data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = ["--epochs", "0.01", "--min_count", "1", "--learning_rate", "1e-9", "--name", "later"]
    output = tmp_path / "later.zip"
    done = run_main(pretrain.main, "--data", data, "--start", teacher, "--output", output, *settings)
    assert done.status == DONE, done.err
    later, before = load_bundle(str(tmp_path / "later.zip")), load_bundle(str(teacher))
    assert later.provenance["start"] == {before.fingerprint: "teacher"}
    assert (later.dimensions, later.vocabulary.tokens) == (before.dimensions, before.vocabulary.tokens)
    for name, tensor in later.state.items():
        if name.startswith("output_layer"):  # divided by a new temperature
            tensor = tensor.float() * later.provenance["temperature"]
        torch.testing.assert_close(tensor.float(), before.state[name].float(), atol=5e-3, rtol=0)
    assert "from the weights of teacher" in later.card


def test_a_killed_run_is_continued_to_the_same_weights(
    run_main: Callable[..., Finished], data: Path, tmp_path: Path
) -> None:
    settings = ["--data", data, "--epochs", 20, "--batch_size", 32, "--checkpoint_seconds", 0.05, *SMALL]
    whole = run_main(pretrain.main, *settings, "--output", tmp_path / "whole")
    assert whole.status == DONE, whole.err
    checkpoint = tmp_path / "checkpoint.pt"
    resumable = [*settings, "--checkpoint", checkpoint, "--output", tmp_path / "killed"]
    for _ in range(2):
        kill_while_training("pipelines.pretrain", resumable, checkpoint)
        assert not (tmp_path / "killed").exists()
    assert torch.load(checkpoint, weights_only=True)["step"] > 0
    done = run_main(pretrain.main, *resumable)
    assert done.status == DONE, done.err
    assert load_bundle(str(tmp_path / "killed")).fingerprint == load_bundle(str(tmp_path / "whole")).fingerprint


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        ([{"text": "a", "emoji": "❤", "split": "train"}], [], "no column 'emojis'"),
        ([{"text": "a", "emoji": "x", "emojis": ["x"], "split": "train"}], [], "'x' is not one of DeepMoji's 64"),
        ([{"text": "a", "emoji": "❤", "emojis": ["❤"], "split": "train"}], [], "no rows with split 'val'"),
        (None, ["--vocabulary", "nowhere.json"], "nowhere.json"),
        (None, ["--teacher", "nowhere"], "nowhere"),
        (None, ["--maxlen", "20", "--teacher", "TEACHER"], "model teacher: its vocabulary or maxlen is another"),
    ],
)
def test_a_mistake_ends_in_one_line_before_any_training(
    run_main: Callable[..., Finished], tmp_path: Path, data: Path, teacher: Path, rows: list[dict[str, Any]] | None,
    extra: list[str], message: str,
) -> None:  # fmt: skip
    path = data
    if rows is not None:
        path = tmp_path / "emojis.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    extra = [str(teacher) if value == "TEACHER" else value for value in extra]
    done = run_main(pretrain.main, "--data", path, "--output", tmp_path / "out", "--embedding", 4, *extra)
    assert done.status == WRONG_INPUT
    assert message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--learning_rate", "0"], "learning_rate must be above 0"),
        (["--teacher_weight", "2"], "teacher_weight must be between 0 and 1"),
        (["--card", "nowhere.md"], "--card nowhere.md: cannot be read"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--name", "two\nlines"], "--name must be one line"),
        (["--maxlen", "1000000000"], "--maxlen must be a positive integer of at most 10,000"),
        (["--hidden", "0"], "--hidden must be a positive integer"),
        (["--rows", "-5"], "--rows must be at least 1, not -5"),
        (["--vocabulary_size", "5"], "--vocabulary_size must be at least 10, not 5"),
        (["--epochs", "inf"], "epochs must be above 0 and finite"),
        (["--threads", "100000000"], "--threads must be at least 1 and below 1025"),
        (["--data", "http://127.0.0.1:1/x.parquet"], "http"),
        (["--vocabulary_size", "1000000000"], "--vocabulary_size must be a positive integer of at most 250,000"),
        (["--card", "CARD"], "--card {}: is not UTF-8"),
        (["--card", "/dev/zero"], "--card /dev/zero: cannot be read (a device"),
    ],
)
def test_options_that_cannot_be_end_in_one_line_before_the_data_is_read(
    tmp_path: Path, extra: list[str], message: str
) -> None:
    card = tmp_path / "card.md"
    card.write_bytes(b"caf\xe9")
    extra = [str(card) if value == "CARD" else value for value in extra]
    with pytest.raises(InputError, match=re.escape(message.format(card))) as error:
        pretrain.main(["--data", "nowhere.parquet", "--output", str(tmp_path / "out"), *extra])
    assert "\n" not in str(error.value)
