"""Corpora are packed without loss, measures are what they are called, and a run can be interrupted anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.corpus import Corpus, multi_hot
from torchmoji_core.training.metrics import class_f1, expected_calibration_error, macro_f1, top_k_accuracy
from torchmoji_core.training.pretraining import LabelledCorpus, Pretraining, PretrainingOptions, evaluate, predict
from torchmoji_core.vocabulary import UNKNOWN, Vocabulary

# --- corpus -------------------------------------------------------------------------------------------------------

rows_of_ids = st.lists(st.lists(st.integers(0, 1_000_000), max_size=9), max_size=40)


def corpus_of(rows: list[list[int]]) -> Corpus:
    flat = np.array([index for row in rows for index in row], np.int32)
    return Corpus(flat, np.cumsum([0, *map(len, rows)], dtype=np.int64))


@given(st.lists(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=9), min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_pack_is_pack_sequence(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    packed, order = corpus_of(rows).pack(np.array(chosen))
    assert sorted(order.tolist()) == sorted(chosen)
    expected = pack_sequence([torch.tensor(rows[index]) for index in order])
    assert torch.equal(packed.data, expected.data) and packed.data.dtype == torch.int64
    assert torch.equal(packed.batch_sizes, expected.batch_sizes)
    assert packed.sorted_indices is None and packed.unsorted_indices is None


@given(rows_of_ids, st.integers(1, 7), st.sampled_from([None, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_batches_hold_every_text_with_tokens_once(rows: list[list[int]], batch_size: int, seed: int | None) -> None:
    generator = None if seed is None else np.random.default_rng(seed)
    batches = list(corpus_of(rows).batches(np.arange(len(rows)), batch_size, generator))
    with_tokens = [index for index, row in enumerate(rows) if row]
    assert sorted(index for batch in batches for index in batch.tolist()) == with_tokens
    assert len(batches) == math.ceil(len(with_tokens) / batch_size)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_batches_of_chosen_texts_only() -> None:
    corpus = corpus_of([[1], [2, 3], [], [4], [5]])
    batches = list(corpus.batches(np.array([4, 2, 0]), 10))
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 4]]


def test_many_batches_are_nearly_without_padding_and_shuffled() -> None:
    lengths = np.random.default_rng(1).integers(1, 31, 5_000)
    corpus = corpus_of([[1] * length for length in lengths])
    epochs = [list(corpus.batches(np.arange(5_000), 16, np.random.default_rng((1, epoch)))) for epoch in (0, 0, 1)]
    first, again, other = ([batch.tolist() for batch in epoch] for epoch in epochs)
    assert first == again != other
    assert sum(int(np.ptp(lengths[batch])) for batch in first) / len(first) < 2
    order = [lengths[batch].mean() for batch in first]
    assert order != sorted(order)


def test_texts_are_encoded_as_the_tokenizer_does(vocabulary: Vocabulary) -> None:
    tokenizer = Tokenizer(vocabulary)
    texts = ["I love my dog", "", "so sad :( unheard of", "cat " * 9]
    corpus = Corpus.encode(iter(texts), tokenizer, maxlen=5)
    assert len(corpus) == 4
    assert corpus.lengths.tolist() == [4, 0, 5, 5]
    for index, text in enumerate(texts):
        ids = corpus.ids[corpus.offsets[index] : corpus.offsets[index + 1]]
        assert ids.tolist() == tokenizer.ids(text, 5)
    assert len(Corpus.encode([], tokenizer, 5)) == 0


def test_multi_hot() -> None:
    assert multi_hot([[0, 2], [], [1], [1, 1]], 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert multi_hot([], 3).shape == (0, 3)


# --- measures -----------------------------------------------------------------------------------------------------

PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1, 0.0],  # says 0, is 0
        [0.6, 0.3, 0.1, 0.0],  # says 0, is 1
        [0.1, 0.8, 0.1, 0.0],  # says 1, is 1
        [0.1, 0.2, 0.7, 0.0],  # says 2, is 0
        [0.2, 0.3, 0.5, 0.0],  # says 2, is 2
    ]
)
LABELS = np.array([0, 1, 1, 0, 2])


@pytest.mark.parametrize(("k", "expected"), [(1, 3 / 5), (2, 4 / 5), (3, 1.0), (4, 1.0), (9, 1.0)])
def test_top_k_accuracy(k: int, expected: float) -> None:
    assert top_k_accuracy(PROBABILITIES, LABELS, k) == pytest.approx(expected)


def test_f1() -> None:
    # class 0: 1 right of 2 said and 2 true; class 1: 1 of 1 and 2; class 2: 1 of 2 and 1; class 3: never
    expected = [2 * 1 / (2 + 2), 2 * 1 / (1 + 2), 2 * 1 / (2 + 1), 0]
    assert class_f1(PROBABILITIES, LABELS).tolist() == pytest.approx(expected)
    assert macro_f1(PROBABILITIES, LABELS) == pytest.approx(sum(expected) / 4)


def test_f1_of_the_best_and_the_worst() -> None:
    sure = np.eye(3)
    assert class_f1(sure, np.array([0, 1, 2])).tolist() == [1, 1, 1]
    assert class_f1(sure, np.array([1, 2, 0])).tolist() == [0, 0, 0]


def test_calibration_error() -> None:
    # Two bins. (0.5, 1]: .7 right, .6 wrong, .8 right, .7 wrong, and .5, which begins that bin, right.
    expected = abs((1 - 0.7) + (0 - 0.6) + (1 - 0.8) + (0 - 0.7) + (1 - 0.5)) / 5
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=2) == pytest.approx(expected)
    # Ten bins: {.5}, {.6}, {.7, .7}, {.8}
    expected = (0.5 + 0.6 + abs(0.3 - 0.7) + 0.2) / 5
    assert expected_calibration_error(PROBABILITIES + 1e-9, LABELS, bins=10) == pytest.approx(expected, abs=1e-6)
    # Two bins again: .48 wrong lies in the lower one, .55 wrong and 1 right, the edge, in the upper one
    halves = np.array([[0.48, 0.3, 0.22], [0.55, 0.25, 0.2], [1.0, 0.0, 0.0]])
    expected = (0.48 + abs((0 - 0.55) + (1 - 1.0))) / 3
    assert expected_calibration_error(halves, np.array([1, 1, 0]), bins=2) == pytest.approx(expected)
    apart = np.array([[0.48, 0.3, 0.22], [0.55, 0.25, 0.2]])  # wrong and right: in one bin they would cancel
    assert expected_calibration_error(apart, np.array([1, 0]), bins=2) == pytest.approx((0.48 + 0.45) / 2)
    assert expected_calibration_error(np.eye(3), np.array([0, 1, 2])) == 0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


# --- pretraining --------------------------------------------------------------------------------------------------

CLASSES = 3
OPTIONS = PretrainingOptions(
    epochs=7, batch_size=8, learning_rate=0.05, averaging=0.9, min_count=2, checkpoint_seconds=1e-9
)
Reports = list[dict[str, float]]


def make_data(texts: int = 150, seed: int = 1) -> LabelledCorpus:
    """Texts whose class is that of their last word; some without tokens."""
    generator = np.random.default_rng(seed)
    rows, labels = [], []
    for number in range(texts):
        label = int(generator.integers(CLASSES))
        length = int(generator.integers(1, 4)) if number % 15 else 0
        rows.append([*generator.integers(15, 30, length).tolist(), 10 + label] if length else [])
        labels.append(label)
    return LabelledCorpus(corpus_of(rows), multi_hot([[label] for label in labels], CLASSES), np.array(labels))


DATA = make_data()
DIMENSIONS = Dimensions(vocabulary=40, embedding=4, hidden=3, classes=CLASSES)


def pretraining(checkpoint: Path | None = None, data: LabelledCorpus = DATA, **changes: Any) -> Pretraining:
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
    assert scores[-1]["top1"] > 0.8 > 0.7 > scores[0]["top1"]
    assert scores[-1]["top5"] == 1
    assert evaluate(model, DATA) == {name: scores[-1][name] for name in evaluate(model, DATA)}
    assert not model.training


def test_rare_and_unseen_tokens_share_the_embedding_of_the_unknown_one(finished: tuple[TorchMoji, Reports]) -> None:
    weight = finished[0].embed.weight
    counts = np.bincount(DATA.corpus.ids, minlength=40)
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


def spoilt_data(value: float) -> LabelledCorpus:
    """Targets of which one, in the middle of an epoch, makes the loss no number."""
    targets = DATA.targets.clone()
    targets[int(DATA.corpus.lengths.argmax()), 0] = value
    return replace(DATA, targets=targets)


def test_data_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="no text of the training data has a token"):
        pretraining(data=LabelledCorpus(corpus_of([[], []]), multi_hot([[0], [1]], CLASSES), np.array([0, 1])))


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path: Path, value: float) -> None:
    """Even where the run would end, or save, before it next reports."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(RunError, match=r"loss is .* at step \d+; lower"):
        pretraining(path, data=spoilt_data(value), epochs=1).run(lambda _: None)
    if path.exists():
        saved = torch.load(path, weights_only=True)
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
