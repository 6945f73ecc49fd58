"""Checkpoints of training whose weights no training makes are refused, however they came to be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.test_finetuning import training
from tests.core.test_pretraining import pretraining
from tests.tiny import make_state, tiny_bundle, with_huge_weights
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.training.checkpointing import Checkpoint
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.prediction import predict

IDENTITY = {"seed": 1}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"model": {"embed.weight": torch.full((2, 2), torch.nan)}}, "'model.embed.weight' hold NaN or infinity"),
        ({"model": {"embed.weight": torch.ones(2, 2, dtype=torch.int64)}}, "'model.embed.weight' are int64"),
        ({"average": [torch.tensor([torch.inf])]}, "'average.0' hold NaN or infinity"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.full((3,), torch.nan)}}}}, "'optimizer.state.0.exp_avg' hold"),
    ],
    ids=["NaN", "int64", "infinity", "moments"],
)
def test_broken_weights_are_not_trained_on(broken: dict[str, Any], reason: str, tmp_path: Path) -> None:
    good = {"step": 3, "model": make_state(), "average": {"n_averaged": torch.tensor(7), "module.x": torch.ones(2)}}
    checkpoint = Checkpoint(tmp_path / "good", 60, lambda: IDENTITY)
    checkpoint.save(good)
    assert checkpoint.load()["step"] == 3
    bad = Checkpoint(tmp_path / "bad", 60, lambda: IDENTITY)
    bad.save(good | broken)
    with pytest.raises(InputError, match=f"weights {reason}.*; delete it to start afresh"):
        bad.load()


def test_a_teacher_whose_probabilities_are_no_numbers_teaches_nothing() -> None:
    bundle = tiny_bundle(["love", "rain"], seed=1)
    huge = Bundle("huge", bundle.classes, bundle.vocabulary, with_huge_weights(bundle))
    with pytest.raises(RunError, match="no finite numbers"):
        predict(huge.model(), Corpus.of([[11, 10], [10]]))


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(key)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no step": (without("step"), "'step' is missing"),
    "no model": (without("model"), "'model' is missing"),
    "no optimizer": (without("optimizer"), "'optimizer' is missing"),
    "a step that is no number": (lambda state: state.update(step="1"), "step is a str"),
    "a negative step": (lambda state: state.update(step=-1), "step is -1"),
    "part of a model": (lambda state: state["model"].popitem(), "state_dict"),
    "no moments": (lambda state: state["optimizer"].update(state={}), "other parts"),
    "moments of another shape": (lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.ones(1)), "shape"),
    "an option that is none": (lambda state: state["optimizer"]["param_groups"][0].update(betas="x"), "betas"),
    "a list of models": (lambda state: state.update(model=[1]), "."),
    "an identity that is none": (lambda state: state.update(identity=3), "cannot be read"),
    "an identity of numbers": (lambda state: state["identity"].update({3: 1}), "."),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", ["pretraining", "fine-tuning"])
def test_a_checkpoint_that_only_says_that_it_is_of_a_run_is_one_line(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def run() -> None:
        def report(_: object) -> None:
            raise InterruptedError

        if kind == "pretraining":
            pretraining(path, epochs=30, batch_size=2).run(report)
        else:
            training(checkpoint=path, method="full").run(report, "weather", "made up")

    with pytest.raises(InterruptedError):
        run()
    state = torch.load(path, weights_only=True)
    change, reason = WRONG[name]
    change(state)
    torch.save(state, path)
    with pytest.raises(InputError, match=f"^checkpoint .*{reason}.*delete it") as error:
        run()
    assert "\n" not in str(error.value)
