"""Starting values are those of the library that an initialization is named for, down to its figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchmoji_core.attention import AttentionWeightedAverage
from torchmoji_core.errors import InputError
from torchmoji_core.initialization import DEFAULT_INITIALIZATION, INITIALIZATIONS
from torchmoji_core.lstm import HardSigmoidLSTM
from torchmoji_core.model import Dimensions, TorchMoji, pack_ids

DIMENSIONS = Dimensions(vocabulary=500, embedding=20, hidden=16, classes=8)


def make_model(initialization: str = DEFAULT_INITIALIZATION, seed: int = 1) -> TorchMoji:
    torch.manual_seed(seed)
    model = TorchMoji(DIMENSIONS).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    model.reset_parameters(initialization)
    return model


@pytest.fixture(scope="module", params=INITIALIZATIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> TorchMoji:
    return make_model(name)


def test_everything_is_initialized(model: TorchMoji) -> None:
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(pack_ids([[1, 2, 3]])).logits.isfinite().all()


def is_uniform(values: torch.Tensor, bound: float) -> bool:
    """Whether values may be drawn uniformly between both bounds: extremes close to them, mean and deviation right."""
    near = 0.9 if values.numel() < 1_000 else 0.99
    return (
        near * bound < float(values.abs().max()) <= bound
        and abs(float(values.mean())) < bound / 5
        and float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    )


def test_embedding_is_uniform(model: TorchMoji, name: str) -> None:
    assert is_uniform(model.embed.weight, {"keras": 0.05, "torchmoji": 0.5, "mixed": 0.5}[name])


@pytest.mark.parametrize("layer", ["lstm_0", "lstm_1"])
@pytest.mark.parametrize("suffix", ["", "_reverse"])
def test_lstm(model: TorchMoji, name: str, layer: str, suffix: str) -> None:
    lstm: HardSigmoidLSTM = getattr(model, layer)
    size = lstm.hidden_size
    kernels = 4 if name == "mixed" else 1
    for kernel in lstm.get_parameter(f"weight_ih_l0{suffix}").chunk(kernels):
        assert is_uniform(kernel, math.sqrt(6 / (lstm.input_size + 4 * size / kernels)))
    for kernel in lstm.get_parameter(f"weight_hh_l0{suffix}").chunk(kernels):
        # Keras' recurrent kernel [hidden, 4 * hidden] is this one transposed: the columns are orthogonal.
        torch.testing.assert_close(kernel.t() @ kernel, torch.eye(size), rtol=0, atol=1e-5)
    bias = lstm.get_parameter(f"bias_ih_l0{suffix}") + lstm.get_parameter(f"bias_hh_l0{suffix}")
    forget = 0 if name == "torchmoji" else 1
    assert [gate.unique().tolist() for gate in bias.split(size)] == [[0], [forget], [0], [0]]


def test_attention_and_output(model: TorchMoji, name: str) -> None:
    vector = model.attention_layer.attention_vector
    if name == "keras":
        assert is_uniform(vector, 0.05)
    else:
        assert 0.03 < float(vector.std()) < 0.07 and 0.05 < float(vector.abs().max()) < 0.3
    assert is_uniform(model.output_layer[0].weight, math.sqrt(6 / (vector.numel() + 8)))
    assert not model.output_layer[0].bias.any()


def test_the_seed_decides(name: str) -> None:
    first, again, other = (make_model(name, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lstm_1.weight_hh_l0"], other["lstm_1.weight_hh_l0"])


def test_new_modules_are_initialized() -> None:
    """Whatever the memory held before; a layer is as good alone as in the model."""
    for make in (lambda: HardSigmoidLSTM(20, 16), lambda: AttentionWeightedAverage(20), lambda: TorchMoji(DIMENSIONS)):
        states = []
        for _ in range(2):
            rubbish = [torch.full((size,), torch.nan) for size in (16, 20, 64, 64 * 16, 64 * 20, 64 * 32, 500 * 20)]
            del rubbish
            torch.manual_seed(1)
            states.append(make().state_dict())
        assert all(values.isfinite().all() for values in states[0].values())
        assert all(torch.equal(values, states[1][key]) for key, values in states[0].items())
    lstm = HardSigmoidLSTM(20, 16)
    gate = lstm.weight_hh_l0[:16]
    torch.testing.assert_close(gate @ gate.t(), torch.eye(16), rtol=0, atol=1e-5)
    assert (lstm.bias_ih_l0_reverse[16:32] == 1).all()


def test_a_model_without_values_costs_nothing() -> None:
    """Each loading of a bundle makes one: for a normal distribution of no values torch would load 900 modules of its
    own, which takes two seconds and 140 MB."""

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    names: set[str] = set()
    with torch.device("meta"), Called():
        TorchMoji(DIMENSIONS)
    assert "empty" in names and not names & {"normal_", "linalg_qr"}


def test_an_unknown_initialization_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match="initialization 'he' is unknown; choose from keras, torchmoji, mixed"):
        TorchMoji(DIMENSIONS).reset_parameters("he")
