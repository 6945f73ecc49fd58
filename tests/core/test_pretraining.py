"""Pretraining learns, weighs what it is told to, learns from teachers, and can be interrupted anywhere."""

from __future__ import annotations

import copy
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.emoji_corpus import EmojiCorpus
from torchmoji_core.training.options import PretrainingOptions
from torchmoji_core.training.prediction import predict
from torchmoji_core.training.pretraining import TEMPERATURES, Pretraining, calibrate, evaluate, teach
from torchmoji_core.training.ragged import Ragged
from torchmoji_core.vocabulary import UNKNOWN

CLASSES = 3
OPTIONS = PretrainingOptions(
    epochs=7, batch_size=8, learning_rate=0.02, averaging=0.9, min_count=2, checkpoint_seconds=1e-9
)
Reports = list[dict[str, float]]


def make_data(texts: int = 150, seed: int = 1) -> EmojiCorpus:
    """Texts whose class is that of their last word; some without tokens."""
    generator = np.random.default_rng(seed)
    rows, labels = [], []
    for number in range(texts):
        label = int(generator.integers(CLASSES))
        length = int(generator.integers(1, 4)) if number % 15 else 0
        rows.append([*generator.integers(15, 30, length).tolist(), 10 + label] if length else [])
        labels.append(label)
    return EmojiCorpus(Corpus.of(rows), Ragged.of([[label] for label in labels]), np.array(labels, np.int32))


DATA = make_data()
DIMENSIONS = Dimensions(vocabulary=40, embedding=4, hidden=3, classes=CLASSES)


def pretraining(checkpoint: Path | None = None, data: EmojiCorpus = DATA, **changes: Any) -> Pretraining:
    return Pretraining(DIMENSIONS, data, replace(OPTIONS, **changes), checkpoint)


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[[dict[str, float]], None]:
    def report(values: dict[str, float]) -> None:
        if values["step"] >= step:
            raise Interrupted

    return report


def assert_same_weights(one: TorchMoji, other: TorchMoji) -> None:
    others = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture(scope="module")
def finished() -> tuple[TorchMoji, Reports]:
    """A run that nothing interrupted."""
    reports: Reports = []
    return pretraining().run(reports.append, DATA), reports


def test_training_learns(finished: tuple[TorchMoji, Reports]) -> None:
    model, reports = finished
    losses = [report["loss"] for report in reports if "loss" in report]
    scores = [report for report in reports if "top1" in report]
    assert losses[-1] < 0.8 * losses[0]
    assert len(scores) == 7
    assert scores[-1]["top1"] > 0.9 > 0.8 > scores[0]["top1"]
    assert scores[-1]["top5"] == 1
    assert evaluate(model, DATA) == {name: scores[-1][name] for name in evaluate(model, DATA)}
    assert not model.training


def test_rare_and_unseen_tokens_share_the_embedding_of_the_unknown_one(finished: tuple[TorchMoji, Reports]) -> None:
    weight = finished[0].embed.weight
    counts = np.bincount(DATA.corpus.values, minlength=40)
    for token in range(UNKNOWN + 1, 40):
        assert torch.equal(weight[token], weight[UNKNOWN]) == (counts[token] < OPTIONS.min_count)


def test_the_seed_decides() -> None:
    first, again, other = (pretraining(epochs=1, seed=seed).run(lambda _: None) for seed in (1, 1, 2))
    assert_same_weights(first, again)
    assert not torch.equal(first.lstm_0.weight_hh_l0, other.lstm_0.weight_hh_l0)


def test_an_interrupted_run_is_continued_to_the_last_bit(tmp_path: Path, finished: tuple[TorchMoji, Reports]) -> None:
    path = tmp_path / "made" / "checkpoint.pt"
    with pytest.raises(Interrupted):
        pretraining(path).run(interrupt_at(50))
    torch.manual_seed(99)  # whatever happened in between
    steps: list[float] = []
    resumed = pretraining(path, checkpoint_seconds=1e9).run(lambda values: steps.append(values["step"]))
    assert min(steps) == 50  # saved in front of it
    assert_same_weights(resumed, finished[0])
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_run_interrupted_twice(tmp_path: Path, finished: tuple[TorchMoji, Reports]) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (50, 100):
        with pytest.raises(Interrupted):
            pretraining(path).run(interrupt_at(step))
    assert_same_weights(pretraining(path).run(lambda _: None), finished[0])


def test_a_run_interrupted_between_epochs(tmp_path: Path) -> None:
    """While the validation scores are reported."""

    def report(values: dict[str, float]) -> None:
        if "top1" in values:
            raise Interrupted

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        pretraining(path, epochs=2).run(report, DATA)
    assert_same_weights(pretraining(path, epochs=2).run(lambda _: None), pretraining(epochs=2).run(lambda _: None))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    first = pretraining(path, epochs=1).run(lambda _: None)
    reports: Reports = []
    assert_same_weights(pretraining(path, epochs=1).run(reports.append), first)
    assert reports == []


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("short") / "checkpoint.pt"
    pretraining(path, epochs=1).run(lambda _: None)
    return path.read_bytes()


@pytest.fixture
def checkpoint(tmp_path: Path, short_run: bytes) -> Path:
    """Of a run of one epoch."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(short_run)
    return path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.01}, "learning_rate"),
        ({"seed": 2, "batch_size": 4}, "batch_size, seed"),
        ({"data": make_data(149)}, "texts, tokens"),
    ],
    ids=["learning rate", "two options", "data"],
)
def test_a_checkpoint_of_another_run_is_refused(checkpoint: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"other {named};.*delete it") as error:
        pretraining(checkpoint, **({"epochs": 1} | changes)).run(lambda _: None)
    assert "\n" not in str(error.value)


def test_how_often_to_save_may_change(checkpoint: Path) -> None:
    pretraining(checkpoint, epochs=1, checkpoint_seconds=5.0).run(lambda _: None)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04", b"\x80\x04\x95"],
    ids=["empty", "text", "zip", "pickle"],
)
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, content: bytes) -> None:
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        pretraining(checkpoint, epochs=1).run(lambda _: None)


def test_a_checkpoint_that_expands_is_refused(checkpoint: Path) -> None:
    """torch.save compresses nothing; its reader would take 64 MB for these 60 kB."""
    with zipfile.ZipFile(checkpoint) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name, content in members.items():
            compressed.writestr(name, content)
    with pytest.raises(InputError, match=r"compressed archive.*delete it to start afresh") as error:
        pretraining(checkpoint, epochs=1).run(lambda _: None)
    assert "\n" not in str(error.value)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"cannot be read .*named pipe"):
        pretraining(tmp_path / "pipe", epochs=1).run(lambda _: None)


def test_data_without_tokens_is_refused() -> None:
    nothing = EmojiCorpus(Corpus.of([[], []]), Ragged.of([[0], [1]]), np.array([0, 1], np.int32))
    with pytest.raises(InputError, match="no text of the training data has a token"):
        pretraining(data=nothing)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path: Path, value: float) -> None:
    """Even where the run would end, or save, before it next reports."""
    path = tmp_path / "checkpoint.pt"
    taught = np.full((len(DATA), CLASSES), 1 / CLASSES, np.float16)
    taught[int(DATA.corpus.lengths.argmax()), 0] = value  # in the middle of an epoch
    with pytest.raises(RunError, match=r"step \d+: the loss is .*lower the learning rate.*the last checkpoint is kept"):
        pretraining(path, data=replace(DATA, teachers={"spoilt": taught}), epochs=1).run(lambda _: None)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] > 0
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert all(tensor.isfinite().all() for tensor in saved["average"].values())


def test_predictions_come_in_the_order_of_the_texts(finished: tuple[TorchMoji, Reports]) -> None:
    model, _ = finished
    predicted = predict(model, DATA.corpus, batch_size=7)
    assert predicted.sum(axis=1) == pytest.approx(np.ones(len(DATA.corpus)), abs=1e-5)
    for index, length in enumerate(DATA.corpus.lengths[:40]):
        if length:
            with torch.inference_mode():
                alone = model(DATA.corpus.pack(np.array([index]))[0]).logits.softmax(dim=1)[0]
            np.testing.assert_allclose(predicted[index], alone, atol=1e-6)
        else:
            assert predicted[index].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", math.nan),
        ("batch_size", 0),
        ("learning_rate", -1),
        ("word_dropout", 1),
        ("output_dropout", -0.1),
        ("averaging", math.nan),
        ("checkpoint_seconds", 0),
    ],
)
def test_bad_options_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be"):
        PretrainingOptions(**{name: value})  # type: ignore[arg-type]


def test_word_dropout_reads_words_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = TorchMoji.forward

    def remember(self: TorchMoji, ids: Any) -> Any:
        seen.append(ids.data)
        return forward(self, ids)

    monkeypatch.setattr(TorchMoji, "forward", remember)
    for word_dropout in (0.0, 0.4):
        pretraining(epochs=2, word_dropout=word_dropout).run(lambda _: None)
    half = len(seen) // 2
    plain, dropping = torch.cat(seen[:half]), torch.cat(seen[half:])
    assert len(plain) == len(dropping)
    rare = float((plain == UNKNOWN).double().mean())
    assert 0.3 < float((dropping == UNKNOWN).double().mean()) - rare < 0.5


# --- targets ------------------------------------------------------------------------------------------------------


def test_a_text_counts_once_for_each_of_its_emojis_by_their_weight() -> None:
    data = EmojiCorpus(Corpus.of([[10], [11], [12]]), Ragged.of([[0, 2], [], [1]]), np.array([0, 1, 1], np.int32))
    targets = data.targets(np.array([2, 0]), torch.tensor([1.0, 2.0, 4.0]))
    assert targets.tolist() == [[0, 2, 0], [1, 0, 4]]


def test_teachers_get_their_share_of_a_texts_weight() -> None:
    taught = {"a": np.array([[0.5, 0.5, 0]], np.float16), "b": np.array([[0, 0.5, 0.5]], np.float16)}
    data = EmojiCorpus(Corpus.of([[10]]), Ragged.of([[0, 2]]), np.zeros(1, np.int32), taught)
    targets = data.targets(np.array([0]), torch.tensor([1.0, 1.0, 3.0]), teacher_weight=0.5)
    # weight 4 of the text, half of it spread as (.25, .5, .25)
    assert targets.tolist() == [[0.5 * 1 + 2 * 0.25, 2 * 0.5, 0.5 * 3 + 2 * 0.25]]


def test_a_cap_draws_from_the_pairs_of_frequent_emojis() -> None:
    emojis = [[0], [0, 1], [0], [2, 0], [0], [1]]
    data = EmojiCorpus(Corpus.of([[10]] * 6), Ragged.of(emojis), np.zeros(6, np.int32))
    draws = [data.capped(2, np.random.default_rng(seed)).emojis for seed in range(40)]
    for draw in draws:
        assert np.bincount(draw.values).tolist() == [2, 2, 1]
        for row, given in enumerate(emojis):
            assert set(draw[row].tolist()) <= set(given)
    kept = {row for draw in draws for row in range(6) if 0 in draw[row].tolist()}
    assert kept == {0, 1, 2, 3, 4}


def test_a_class_weight_makes_rare_emojis_likelier() -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random(400) < 0.1).astype(np.int32)  # nothing in the texts tells the two apart
    rows = generator.integers(15, 30, (400, 3)).tolist()
    data = EmojiCorpus(Corpus.of(rows), Ragged.of(labels[:, None].tolist()), labels)
    plain, weighted = (
        predict(pretraining(data=data, epochs=3, class_weight_power=power).run(lambda _: None), data.corpus).mean(
            axis=0
        )
        for power in (0.0, 1.0)
    )
    assert plain[1] < 0.15 and weighted[1] > 2 * plain[1]


def test_a_pupil_learns_what_its_teacher_says(tmp_path: Path, finished: tuple[TorchMoji, Reports]) -> None:
    """Labels are of no use here, so all that it knows it has from the teacher."""
    noise = np.random.default_rng(5).integers(CLASSES, size=len(DATA)).astype(np.int32)
    useless = EmojiCorpus(DATA.corpus, Ragged.of(noise[:, None].tolist()), noise)
    taught = teach(useless, {"fingerprint": finished[0]}, tmp_path)
    pupil = pretraining(data=taught, teacher_weight=1.0).run(lambda _: None)
    assert evaluate(pupil, DATA)["top1"] > 0.7
    (path,) = tmp_path.iterdir()
    again = teach(useless, {"fingerprint": finished[0]}, tmp_path)
    assert isinstance(again.teachers["fingerprint"], np.memmap) and path.name == "teacher-fingerprint.npy"


def test_a_disk_without_room_for_a_teacher_is_an_error_and_no_signal(
    tmp_path: Path, finished: tuple[TorchMoji, Reports], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        teach(DATA, {"fingerprint": finished[0]}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_with_another_teacher_does_not_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    taught = np.full((len(DATA), CLASSES), 1 / CLASSES, np.float16)
    pretraining(path, data=replace(DATA, teachers={"one": taught}), epochs=1).run(lambda _: None)
    with pytest.raises(InputError, match="other teachers"):
        pretraining(path, data=replace(DATA, teachers={"other": taught}), epochs=1).run(lambda _: None)


def test_frequent_classes_have_a_macro_f1_of_their_own(finished: tuple[TorchMoji, Reports]) -> None:
    scores = [evaluate(finished[0], DATA, np.array([index]))["macro_f1_frequent"] for index in range(CLASSES)]
    assert evaluate(finished[0], DATA)["macro_f1"] == pytest.approx(sum(scores) / CLASSES)


def test_a_temperature_mends_the_confidence_and_keeps_the_order(finished: tuple[TorchMoji, Reports]) -> None:
    model = copy.deepcopy(finished[0])
    with torch.no_grad():  # far too sure of itself
        for parameter in model.output_layer.parameters():
            parameter *= 1.5 / 0.95
    before, sure = predict(model, DATA.corpus), evaluate(model, DATA)
    temperature = calibrate(model, DATA, DATA)
    after = predict(model, DATA.corpus)
    assert temperature in TEMPERATURES and temperature != 1
    assert (after.argsort(axis=1) == before.argsort(axis=1)).all()
    rows, labels = np.arange(len(DATA)), DATA.labels
    assert np.log(after[rows, labels]).mean() > np.log(before[rows, labels]).mean()
    assert evaluate(model, DATA)["top1"] == sure["top1"]


def test_a_tilt_makes_rare_emojis_likelier_by_the_power_of_their_frequency(
    finished: tuple[TorchMoji, Reports],
) -> None:
    emojis = Ragged.of([[0]] * 100 + [[1]] * 40 + [[2]] * 10)
    counted = replace(DATA, emojis=emojis)
    plain, tilted = copy.deepcopy(finished[0]), copy.deepcopy(finished[0])
    temperatures = calibrate(plain, counted, DATA), calibrate(tilted, counted, DATA, tilt=0.5)
    odds = []
    for model, temperature in zip((plain, tilted), temperatures, strict=True):
        probabilities = predict(model, DATA.corpus)[DATA.corpus.lengths > 0]
        odds.append(temperature * np.log(probabilities[:, [0, 1]] / probabilities[:, [2]]))
    np.testing.assert_allclose(odds[1] - odds[0], np.tile(-0.5 * np.log([10, 4]), (len(odds[0]), 1)), atol=1e-3)
