"""A classifier learns its task by each method, freezes what it says, and can be interrupted anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_bundle
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.model import TorchMoji
from torchmoji_core.training import finetuning
from torchmoji_core.training.classifier import ClassifierTraining
from torchmoji_core.training.finetuning import LAYERS, OUTPUT_LAYER, reading_of, stages_of
from torchmoji_core.training.labelled_texts import LabelledTexts
from torchmoji_core.training.options import METHODS, FineTuningOptions
from torchmoji_core.training.prediction import forward
from torchmoji_core.vocabulary import UNKNOWN

WORDS = ["sun", "rain", "snow", "wind", "and", "more", "today", "again"]
BASE = tiny_bundle(WORDS, seed=3)
OPTIONS = FineTuningOptions(
    learning_rate=0.05,
    fine_learning_rate=0.02,
    epoch_samples=60,
    batch_size=20,
    most_epochs=12,
    patience=3,
    output_dropout=0.1,
    checkpoint_seconds=1e-9,
)
Reports = list[dict[str, Any]]


def make_texts(count: int, seed: int, words: tuple[str, ...] = ("sun", "rain", "snow")) -> LabelledTexts:
    """Texts whose class is that of the one weather word in them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(words), size=count)
    texts = []
    for label in labels:
        filling = generator.choice(["and", "more", "today", "again"], generator.integers(1, 6)).tolist()
        filling.insert(int(generator.integers(len(filling) + 1)), words[label])
        texts.append(" ".join(filling))
    return LabelledTexts(texts, labels.astype(np.int64), tuple(f"is {word}" for word in words), None)


def make_splits(words: tuple[str, ...] = ("sun", "rain", "snow")) -> dict[str, LabelledTexts]:
    return {name: make_texts(count, seed, words) for seed, (name, count) in enumerate(SIZES.items())}


SIZES = {"train": 120, "val": 40, "test": 50}
SPLITS = make_splits()


def training(splits: dict[str, LabelledTexts] = SPLITS, **changes: Any) -> ClassifierTraining:
    checkpoint, size = changes.pop("checkpoint", None), changes.pop("size", None)
    return ClassifierTraining(splits, BASE, replace(OPTIONS, **changes), checkpoint=checkpoint, size=size)


def run(*arguments: Any, **changes: Any) -> Bundle:
    return training(*arguments, **changes).run(lambda _: None, "weather", "made up")


def assert_same(one: Bundle, other: Bundle) -> None:
    for name, tensor in one.state.items():
        assert torch.equal(tensor, other.state[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns(method: str) -> None:
    scores = run(method=method, most_epochs=20).provenance["scores"]
    assert scores["test"].keys() == {"accuracy", "f1", "macro_f1"}
    assert min(scores["test"].values()) > (0.6 if method == "last" else 0.9)


def test_the_bundle_scores_as_was_measured(tmp_path: Path) -> None:
    run(method="full").save(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.classes == ("is sun", "is rain", "is snow")
    test = SPLITS["test"]
    probabilities = bundle.score(test.texts).probabilities
    accuracy = float((probabilities.argmax(axis=1) == test.labels).mean())
    assert accuracy == pytest.approx(bundle.provenance["scores"]["test"]["accuracy"], abs=1e-4)
    assert "is rain" in bundle.card and f"{accuracy:.3f}" in bundle.card
    assert bundle.provenance["base"] == {BASE.name: BASE.fingerprint}


def several(texts: LabelledTexts) -> LabelledTexts:
    """Sun and rain each by itself; snow is neither."""
    labels = np.stack([[word in text.split() for word in ("sun", "rain")] for text in texts.texts])
    doubled = [f"{text} sun rain" if row % 4 == 0 else text for row, text in enumerate(texts.texts)]
    labels[::4] = True
    return LabelledTexts(doubled, labels, ("sunny", "rainy"), None)


def test_several_classes_can_hold_of_a_text(tmp_path: Path) -> None:
    splits = {name: several(part) for name, part in SPLITS.items()}
    run(splits, method="full", most_epochs=30).save(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.multi_label
    assert bundle.provenance["scores"]["test"]["f1"] > 0.9
    both, neither = bundle.score(["sun and rain", "snow and more"], "fp32").probabilities
    assert min(both) > 0.5 > max(neither)
    with torch.inference_mode():
        output = bundle.model()(_packed(bundle, "sun and rain")).logits.sigmoid()[0]
    np.testing.assert_allclose(both, output, atol=1e-5)


def _packed(bundle: Bundle, text: str) -> Any:
    return torch.nn.utils.rnn.pack_sequence([torch.tensor(bundle.tokenizer.ids(text, bundle.maxlen))])


def test_a_rare_positive_class_drawn_balanced() -> None:
    splits = make_splits(("sun", "rain"))
    rare = {name: rarer(part) for name, part in splits.items()}
    bundle = run(rare, method="full", balanced=1)
    assert bundle.provenance["scores"]["test"]["f1"] > 0.9
    assert "'is rain' alone" in bundle.card


def rarer(texts: LabelledTexts) -> LabelledTexts:
    """A fifth of the second class is left."""
    seconds = np.flatnonzero(texts.labels == 1)
    kept = np.sort(np.concatenate((np.flatnonzero(texts.labels == 0), seconds[::5])))
    return replace(texts, texts=[texts.texts[row] for row in kept], labels=texts.labels[kept])


# --- methods ------------------------------------------------------------------------------------------------------


def test_stages() -> None:
    def stages(method: str) -> list[tuple[tuple[str, ...], float]]:
        return [(stage.layers, stage.learning_rate) for stage in stages_of(FineTuningOptions(method=method))]

    assert stages("new") == [(LAYERS, 1e-3)]
    assert stages("last") == [((OUTPUT_LAYER,), 1e-3)]
    assert stages("full") == [(LAYERS, 1e-4)]
    assert stages("chain-thaw") == [
        ((OUTPUT_LAYER,), 1e-3),
        (("embed",), 1e-4),
        (("lstm_0",), 1e-4),
        (("lstm_1",), 1e-4),
        (("attention_layer",), 1e-4),
        (LAYERS, 1e-4),
    ]


def test_a_stage_changes_its_own_layers_only() -> None:
    task = training(most_epochs=2, patience=2)
    model = task.training.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed: dict[int, set[str]] = {}

    def report(figures: dict[str, Any]) -> None:
        nonlocal before
        now = model.state_dict()
        names = {name.split(".")[0] for name, tensor in now.items() if not torch.equal(tensor, before[name])}
        changed.setdefault(figures["stage"], set()).update(names)
        before = {name: tensor.clone() for name, tensor in now.items()}

    task.run(report, "weather", "made up")
    # What a stage ends with is put back between two reports, hence the layers of the one before.
    stages = [set(stage.layers) for stage in stages_of(OPTIONS)]
    for number, layers in enumerate(stages):
        assert layers <= changed[number + 1] <= layers | stages[max(number - 1, 0)]


def test_last_keeps_the_model_and_computes_its_embeddings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = TorchMoji.forward

    def count(self: TorchMoji, ids: Any) -> Any:
        calls.append(len(ids.batch_sizes))
        return forward(self, ids)

    monkeypatch.setattr(TorchMoji, "forward", count)
    numbers = []
    for most_epochs in (2, 9):
        calls.clear()
        bundle = run(method="last", most_epochs=most_epochs, patience=99)
        numbers.append(len(calls))
        for name, tensor in BASE.state.items():
            if not name.startswith(OUTPUT_LAYER):
                assert torch.equal(bundle.state[name].float(), tensor.half().float()), name
    assert numbers[0] == numbers[1]
    assert list(bundle.vocabulary) == list(BASE.vocabulary)


def test_new_takes_nothing_but_the_vocabulary_and_can_have_another_size() -> None:
    bundle = run(method="new", size=(5, 3), most_epochs=1)
    assert (bundle.dimensions.embedding, bundle.dimensions.hidden) == (5, 3)
    assert bundle.provenance["base"] is None
    with pytest.raises(InputError, match="'last' keeps the size"):
        run(method="last", size=(5, 3))


def test_words_of_the_training_texts_are_added_most_frequent_first() -> None:
    train = SPLITS["train"]
    texts = [f"{text} hail" if row % 2 else f"{text} sleet hail" for row, text in enumerate(train.texts)]
    splits = SPLITS | {"train": replace(train, texts=texts)}
    task = training(splits, extend_vocabulary=1)
    assert list(task.vocabulary)[len(BASE.vocabulary) :] == ["hail"]
    assert list(training(splits).vocabulary)[len(BASE.vocabulary) :] == ["hail", "sleet"]
    table = task.training.model.embed.weight
    assert torch.equal(table[-1], table[UNKNOWN])
    assert run(splits, most_epochs=1).provenance["words_added"] == 2
    assert run(splits, most_epochs=1, method="last").provenance["words_added"] == 0


@pytest.mark.parametrize(
    ("lengths", "changes", "expected"),
    [
        ([12] * 8 + [90] * 2, {}, (20, 250)),
        ([20] * 10, {}, (20, 250)),
        ([101] * 10, {}, (110, 50)),
        ([5], {}, (10, 250)),
        ([9_000] * 3, {}, (500, 50)),
        ([12] * 10, {"maxlen": 7, "batch_size": 3}, (7, 3)),
    ],
)
def test_maxlen_and_batch_size_follow_the_texts(
    lengths: list[int], changes: dict[str, int], expected: tuple[int, int]
) -> None:
    assert reading_of(lengths, FineTuningOptions(**changes)) == expected  # type: ignore[arg-type]


# --- early stopping -----------------------------------------------------------------------------------------------


def test_a_stage_ends_when_patience_does_and_keeps_its_best_epoch() -> None:
    task = training(method="new", learning_rate=0.3, most_epochs=60)
    reports: Reports = []
    model = task.training.run(reports.append)
    losses = [report["validation_loss"] for report in reports]
    best = int(np.argmin(losses))
    assert [report["improved"] for report in reports] == [
        loss < min([math.inf, *losses[:n]]) for n, loss in enumerate(losses)
    ]
    assert len(losses) == best + 1 + OPTIONS.patience < 60
    logits, _ = forward(model, task.data["val"].corpus)
    assert float(finetuning.loss_of(logits, task.data["val"].targets)) == pytest.approx(losses[best], rel=1e-5)


def test_no_stage_leaves_the_model_worse_than_it_found_it() -> None:
    task = training(most_epochs=4, fine_learning_rate=0.5)  # too large: most epochs make it worse
    reports: Reports = []
    model = task.training.run(reports.append)
    best = [report["validation_loss"] for report in reports if report["improved"]]
    assert len(best) < len(reports)
    assert best == sorted(best, reverse=True)
    logits, _ = forward(model, task.data["val"].corpus)
    assert float(finetuning.loss_of(logits, task.data["val"].targets)) == pytest.approx(best[-1], rel=1e-5)


# --- repeatable ---------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt_after(epochs: int) -> Callable[[dict[str, Any]], None]:
    seen = []

    def report(figures: dict[str, Any]) -> None:
        seen.append(figures)
        if len(seen) == epochs:
            raise Interrupted

    return report


def test_the_seed_decides() -> None:
    first, again, other = (run(method="full", most_epochs=2, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first.state["output_layer.0.weight"], other.state["output_layer.0.weight"])


def test_the_average_of_the_weights_is_kept() -> None:
    one_step = {"method": "full", "epoch_samples": OPTIONS.batch_size, "most_epochs": 1, "precision": "fp32"}
    before = training(**one_step).training.model.state_dict()
    after = run(**one_step).state
    kept = run(**one_step, averaging=0.9).state
    assert not torch.equal(kept["lstm_1.weight_hh_l0"], after["lstm_1.weight_hh_l0"])
    for name, tensor in kept.items():
        # The first updates forget faster than asked for: the average keeps (1 + 0) / (10 + 0) of itself.
        torch.testing.assert_close(tensor.float(), 0.1 * before[name] + 0.9 * after[name], atol=1e-3, rtol=2e-3)


def test_word_dropout_reads_words_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = TorchMoji.forward

    def remember(self: TorchMoji, ids: Any) -> Any:
        if self.training:
            seen.append(ids.data)
        return forward(self, ids)

    monkeypatch.setattr(TorchMoji, "forward", remember)
    for word_dropout in (0.0, 0.4):
        run(method="full", most_epochs=10, patience=10, word_dropout=word_dropout)
    plain, dropping = torch.cat(seen[:30]), torch.cat(seen[30:])
    assert len(plain) == len(dropping)
    assert not (plain == UNKNOWN).any()
    assert 0.35 < float((dropping == UNKNOWN).double().mean()) < 0.45


@pytest.mark.parametrize(("method", "averaging"), [("last", 0.0), ("full", 0.9), ("chain-thaw", 0.0)])
def test_an_interrupted_run_is_continued_to_the_last_bit(tmp_path: Path, method: str, averaging: float) -> None:
    settings = {"method": method, "most_epochs": 4, "patience": 2}
    settings |= {"averaging": averaging, "word_dropout": averaging / 4}
    undisturbed = run(**settings)
    checkpoint = tmp_path / "made" / "checkpoint.pt"
    epochs = 0
    for _ in range(60):
        torch.manual_seed(99)  # whatever happened in between
        try:
            task = training(checkpoint=checkpoint, **settings)
            resumed = task.run(interrupt_after(2), "weather", "made up")
            break
        except Interrupted:
            epochs += 2
    assert epochs >= 4
    assert_same(resumed, undisturbed)
    assert [file.name for file in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    run(method="last", most_epochs=1, checkpoint=checkpoint)
    with pytest.raises(InputError, match="other learning_rate; delete it"):
        run(method="last", most_epochs=1, learning_rate=0.5, checkpoint=checkpoint)
    other = SPLITS | {"train": make_texts(120, seed=9)}
    with pytest.raises(InputError, match="training ids"):
        run(other, method="last", most_epochs=1, checkpoint=checkpoint)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    checkpoint, reports = tmp_path / "checkpoint.pt", Reports()
    first = run(method="last", checkpoint=checkpoint)
    again = training(method="last", checkpoint=checkpoint).run(reports.append, "weather", "made up")
    assert not reports
    assert_same(first, again)


@pytest.mark.parametrize("method", ["last", "full"])
def test_a_diverging_run_stops_and_spares_the_checkpoint(tmp_path: Path, method: str) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Interrupted):
        training(method=method, checkpoint=checkpoint).run(interrupt_after(1), "weather", "made up")
    task = training(method=method, checkpoint=checkpoint)
    poison(task)
    with pytest.raises(RunError, match=r"stage 1 .*, epoch 2: the loss is nan.*lower.*last checkpoint is kept"):
        task.run(lambda _: None, "weather", "made up")
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    tensors: list[Tensor] = [*saved["model"].values(), *saved["best"].values()]
    assert all(tensor.isfinite().all() for tensor in tensors)


def poison(task: ClassifierTraining) -> None:
    """A loss that is no number from the next step on, as an exploding training has."""
    layer = task.training.model.output_layer
    layer.register_forward_hook(lambda module, inputs, output: output * torch.nan if layer.training else output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "freeze"}, "method 'freeze' is unknown; choose from new, last, full, chain-thaw"),
        ({"patience": 0}, "patience must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0 and finite"),
        ({"embedding_l2": math.inf}, "embedding_l2 must be at least 0 and finite"),
        ({"seed": -1}, "seed must be at least 0 and below 4294967296, not -1"),
        ({"seed": 10**20}, "seed must be at least 0 and below 4294967296"),
        ({"output_dropout": 1.0}, "output_dropout must be at least 0 and below 1"),
        ({"fine_learning_rate": math.nan}, "fine_learning_rate must be above 0"),
        ({"maxlen": -1}, "maxlen must be at least 0"),
        ({"averaging": 1}, "averaging must be at least 0 and below 1"),
        ({"precision": "int8"}, "precision 'int8' is unknown"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(OPTIONS, **changes)
