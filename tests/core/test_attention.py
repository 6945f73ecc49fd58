"""Attention is a softmax over each row's own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from tests.reference.model_oracle import attention_average
from torchmoji_core.attention import AttentionWeightedAverage


def make_layer(channels: int = 4, scale: float = 1.0, seed: int = 1) -> AttentionWeightedAverage:
    layer = AttentionWeightedAverage(channels).double()
    generator = torch.Generator().manual_seed(seed)
    layer.attention_vector.data = scale * torch.randn(channels, dtype=torch.float64, generator=generator)
    return layer


def make_rows(lengths: list[int], channels: int = 4, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, channels, dtype=torch.float64, generator=generator) for length in lengths]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.sampled_from([0.0, 1.0, 50.0, 1e4, 1e300]))
@settings(max_examples=60, deadline=None)
def test_averages_and_weights_are_those_of_the_formula(lengths: list[int], scale: float) -> None:
    """However large the logits of one row and how small those of its neighbour."""
    layer, rows = make_layer(scale=scale), make_rows(sorted(lengths, reverse=True))
    averages, weights = layer(pack_sequence(rows))
    assert weights.shape == (len(rows), max(lengths))
    for row, average, padded in zip(rows, averages.detach(), weights.detach(), strict=True):
        expected_average, expected_weights = attention_average(row.numpy(), layer.attention_vector.detach().numpy())
        np.testing.assert_allclose(padded[: len(row)], expected_weights, atol=1e-9)
        np.testing.assert_allclose(average, expected_average, atol=1e-9)
        assert not padded[len(row) :].any()
        assert float(padded.sum()) == pytest.approx(1)


@pytest.mark.parametrize("logit", [1e4, -1e4, 3e38, -3e38])
def test_a_row_of_huge_logits_next_to_small_ones_is_a_number(logit: float) -> None:
    """Subtracting the batch's maximum would give 0/0 in one of the two rows."""
    layer = AttentionWeightedAverage(1)
    layer.attention_vector.data = torch.ones(1)
    averages, weights = layer(pack_sequence([torch.full((3, 1), logit), torch.zeros(2, 1)]))
    assert averages.isfinite().all()
    torch.testing.assert_close(weights, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]))


def test_gradients_are_those_of_the_formula() -> None:
    layer = make_layer()
    packed = pack_sequence(make_rows([4, 2, 1]))

    def run(data: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(layer, {"attention_vector": vector}, (packed._replace(data=data),))

    inputs = (packed.data.clone().requires_grad_(), layer.attention_vector.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
