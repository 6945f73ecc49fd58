"""Checkpoints of training whose weights no training makes are refused, however they came to be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_state, tiny_bundle, with_huge_weights
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.training.checkpointing import load_checkpoint, save_checkpoint
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
    save_checkpoint(tmp_path / "good", IDENTITY, good)
    assert load_checkpoint(tmp_path / "good", IDENTITY)["step"] == 3
    save_checkpoint(tmp_path / "bad", IDENTITY, good | broken)
    with pytest.raises(InputError, match=f"weights {reason}.*; delete it to start afresh"):
        load_checkpoint(tmp_path / "bad", IDENTITY)


def test_a_teacher_whose_probabilities_are_no_numbers_teaches_nothing() -> None:
    bundle = tiny_bundle(["love", "rain"], seed=1)
    huge = Bundle("huge", bundle.classes, bundle.vocabulary, with_huge_weights(bundle))
    with pytest.raises(RunError, match="no finite numbers"):
        predict(huge.model(), Corpus.of([[11, 10], [10]]))
