"""Starting values are Keras'."""

from __future__ import annotations

import math

import pytest
import torch

from torchmoji_core.initialization import initialize_like_keras
from torchmoji_core.lstm import HardSigmoidLSTM
from torchmoji_core.model import Dimensions, TorchMoji, pack_ids


def make_model(seed: int = 1) -> TorchMoji:
    torch.manual_seed(seed)
    model = TorchMoji(Dimensions(vocabulary=500, embedding=20, hidden=16, classes=8))
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    initialize_like_keras(model)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> TorchMoji:
    return make_model()


def test_everything_is_initialized(model: TorchMoji) -> None:
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(pack_ids([[1, 2, 3]])).logits.isfinite().all()


def test_embedding_is_uniform(model: TorchMoji) -> None:
    weight = model.embed.weight
    assert -0.5 <= float(weight.min()) < -0.49 and 0.49 < float(weight.max()) <= 0.5
    assert abs(float(weight.mean())) < 0.02
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(12), rel=0.03)


@pytest.mark.parametrize("layer", ["lstm_0", "lstm_1"])
@pytest.mark.parametrize("suffix", ["", "_reverse"])
def test_lstm(model: TorchMoji, layer: str, suffix: str) -> None:
    lstm: HardSigmoidLSTM = getattr(model, layer)
    size = lstm.hidden_size
    for gate in lstm.get_parameter(f"weight_ih_l0{suffix}").split(size):
        bound = math.sqrt(6 / (lstm.input_size + size))
        assert 0.9 * bound < float(gate.abs().max()) <= bound
    for gate in lstm.get_parameter(f"weight_hh_l0{suffix}").split(size):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(size), rtol=0, atol=1e-5)
    bias = lstm.get_parameter(f"bias_ih_l0{suffix}") + lstm.get_parameter(f"bias_hh_l0{suffix}")
    assert [gate.unique().tolist() for gate in bias.split(size)] == [[0], [1], [0], [0]]


def test_attention_and_output(model: TorchMoji) -> None:
    vector = model.attention_layer.attention_vector
    assert 0.03 < float(vector.std()) < 0.07 and float(vector.abs().max()) < 0.3
    bound = math.sqrt(6 / (vector.numel() + 8))
    assert 0.9 * bound < float(model.output_layer[0].weight.abs().max()) <= bound
    assert not model.output_layer[0].bias.any()


def test_the_seed_decides() -> None:
    first, again, other = (make_model(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lstm_1.weight_hh_l0"], other["lstm_1.weight_hh_l0"])
