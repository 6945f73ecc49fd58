"""The readable model computes DeepMoji's network, under the published names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tests.core.conftest import GoldenModel
from tests.reference.model_oracle import float64_state, oracle_forward
from torchmoji_core.errors import InputError
from torchmoji_core.model import Dimensions, Dropout, TorchMoji, dimensions_of, pack_ids

MakeState = Callable[..., dict[str, Tensor]]


def load(state: dict[str, Tensor], **dropout: float) -> TorchMoji:
    model = TorchMoji(dimensions_of(state), Dropout(**dropout))
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def state(make_state: MakeState) -> dict[str, Tensor]:
    return make_state()


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor]) -> TorchMoji:
    return load(state).double()


def test_golden_forward(golden_model: GoldenModel) -> None:
    with torch.inference_mode():
        output = load(golden_model.state)(pack_ids(golden_model.rows))
    longest = output.attention.shape[1]
    np.testing.assert_allclose(output.logits.softmax(dim=1), golden_model.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.embedding, golden_model.embedding, rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.attention, golden_model.attention[:, :longest], rtol=0, atol=1e-5)
    assert not golden_model.attention[:, longest:].any()


rows_of_ids = st.lists(st.lists(st.integers(0, 59), min_size=1, max_size=12), min_size=1, max_size=8)


@given(rows_of_ids)
@settings(max_examples=40, deadline=None)
def test_results_are_those_of_the_formulas_in_the_order_given(model: TorchMoji, rows: list[list[int]]) -> None:
    with torch.inference_mode():
        output = model(pack_ids(rows))
    parameters = float64_state(model.state_dict())
    for index, row in enumerate(rows):
        expected = oracle_forward(parameters, row)
        np.testing.assert_allclose(output.logits[index], expected.logits, atol=1e-10)
        np.testing.assert_allclose(output.embedding[index], expected.embedding, atol=1e-10)
        np.testing.assert_allclose(output.attention[index, : len(row)], expected.attention, atol=1e-10)
        assert not output.attention[index, len(row) :].any()


def test_attention_of_unsorted_rows_comes_in_the_order_given(model: TorchMoji) -> None:
    rows = [[11], [12, 13, 14], [15, 16]]
    with torch.inference_mode():
        attention = model(pack_ids(rows)).attention
        alone = [model(pack_ids([row])).attention[0] for row in rows]
    assert [int((weights > 0).sum()) for weights in attention] == [1, 3, 2]
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3, dtype=torch.float64))
    for row, weights in enumerate(alone):
        torch.testing.assert_close(attention[row, : len(weights)], weights)


def test_parameter_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape) for name, value in TorchMoji(Dimensions(50_000, 256, 512, 64)).state_dict().items()
        }
    expected: dict[str, tuple[int, ...]] = {"embed.weight": (50_000, 256)}
    for layer, width in (("lstm_0", 256), ("lstm_1", 1024)):
        for suffix in ("", "_reverse"):
            expected |= {
                f"{layer}.weight_ih_l0{suffix}": (2048, width),
                f"{layer}.weight_hh_l0{suffix}": (2048, 512),
                f"{layer}.bias_ih_l0{suffix}": (2048,),
                f"{layer}.bias_hh_l0{suffix}": (2048,),
            }
    expected |= {
        "attention_layer.attention_vector": (2304,),
        "output_layer.0.weight": (64, 2304),
        "output_layer.0.bias": (64,),
    }
    assert shapes == expected


@pytest.mark.parametrize("rows", [[], [[]], [[12], []]], ids=["no rows", "an empty row", "an empty row behind another"])
def test_rows_without_tokens_are_refused(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack_ids(rows)


def test_ids_outside_the_vocabulary_are_refused(model: TorchMoji) -> None:
    for index in (-1, 60):
        with pytest.raises(IndexError):
            model(pack_ids([[12, index]]))


def test_dropout_acts_in_training_only(state: dict[str, Tensor]) -> None:
    ids = pack_ids([[11, 12, 13], [14]])
    plain, dropping = load(state), load(state, embedding=0.5, layer=0.5, output=0.5)
    assert torch.equal(plain(ids).logits, dropping(ids).logits)
    dropping.train()
    torch.manual_seed(1)
    assert not torch.equal(dropping(ids).logits, dropping(ids).logits)


def test_embedding_dropout_takes_whole_channels_of_a_row(make_state: MakeState) -> None:
    model = load(make_state(embedding=200), embedding=0.25).train()
    seen: list[Tensor] = []

    def remember(module: Any, inputs: tuple[PackedSequence], output: Any) -> None:
        seen.append(inputs[0].data)

    model.lstm_0.register_forward_hook(remember)
    torch.manual_seed(1)
    model(pack_ids([[11, 12, 13], [14, 15]]))  # time-major: rows 0 1, 0 1, 0
    model.eval()
    model(pack_ids([[11, 12, 13], [14, 15]]))
    ratio = (seen[0] / seen[1]).detach().round(decimals=4)
    assert torch.equal(ratio[0], ratio[2]) and torch.equal(ratio[0], ratio[4]) and torch.equal(ratio[1], ratio[3])
    assert not torch.equal(ratio[0], ratio[1])
    assert ratio.unique().tolist() == pytest.approx([0, 1.3333])
    assert 0.15 < float((ratio == 0).double().mean()) < 0.35


def test_a_training_step_lowers_the_loss(state: dict[str, Tensor]) -> None:
    model = load(state).train()
    ids, targets = pack_ids([[11, 12], [13], [14, 15, 16]]), torch.tensor([3, 5, 60])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(ids).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_dimensions_are_read_off_the_weights(state: dict[str, Tensor]) -> None:
    dimensions = dimensions_of(state)
    assert dimensions == Dimensions(vocabulary=60, embedding=6, hidden=5, classes=64)
    assert dimensions.channels == 26


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


BAD_STATES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "embedding missing": without("embed.weight"),
    "recurrent weight missing": without("lstm_0.weight_hh_l0"),
    "bias missing": without("lstm_1.bias_hh_l0_reverse"),
    "unknown name": lambda state: state.update(extra=torch.zeros(1)),
    "embedding flat": lambda state: state.update({"embed.weight": torch.zeros(60)}),
    "recurrent weight flat": lambda state: state.update({"lstm_0.weight_hh_l0": torch.zeros(20)}),
    "output scalar": lambda state: state.update({"output_layer.0.weight": torch.tensor(1.0)}),
    "embedding empty": lambda state: state.update({"embed.weight": torch.zeros(0, 6)}),
    "other width": lambda state: state.update({"lstm_1.weight_ih_l0": torch.zeros(20, 11)}),
    "other gates": lambda state: state.update({"lstm_0.weight_hh_l0": torch.zeros(15, 5)}),
    "empty": lambda state: state.clear(),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_weights_of_another_model_are_refused_in_one_line(state: dict[str, Tensor], name: str) -> None:
    changed = dict(state)
    BAD_STATES[name](changed)
    with pytest.raises(InputError) as error:
        dimensions_of(changed)
    assert str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1, 10**9, 1.0, True, "5"], ids=repr)
@pytest.mark.parametrize("name", ["vocabulary", "embedding", "hidden", "classes"])
def test_bad_dimensions_are_named(name: str, value: Any) -> None:
    sizes: dict[str, Any] = {"vocabulary": 60, "embedding": 6, "hidden": 5, "classes": 64} | {name: value}
    with pytest.raises(InputError, match=f"{name!r} must be a positive integer"):
        Dimensions(**sizes)
