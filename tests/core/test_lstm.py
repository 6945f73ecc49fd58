"""The hard-sigmoid LSTM computes its formulas, forwards and backwards, on any packing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from tests.reference.model_oracle import bidirectional_lstm, float64_state
from torchmoji_core.lstm import HardSigmoidLSTM, steps_of

RAGGED = {"shrinking": [4, 2, 2, 1], "equal": [2, 2], "one row": [3], "one token each": [1, 1, 1]}


def make_lstm(inputs: int = 3, hidden: int = 4, seed: int = 1, scale: float = 0.7) -> HardSigmoidLSTM:
    torch.manual_seed(seed)
    lstm = HardSigmoidLSTM(inputs, hidden).double()
    for parameter in lstm.parameters():
        nn.init.normal_(parameter, 0, scale)
    return lstm


def make_rows(lengths: list[int], inputs: int = 3, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, inputs, dtype=torch.float64, generator=generator) for length in lengths]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=40, deadline=None)
def test_states_are_those_of_the_formulas(lengths: list[int], scale: float) -> None:
    """Large weights drive the gates into both flat parts of the hard sigmoid."""
    lstm, rows = make_lstm(scale=scale), make_rows(lengths)
    outputs = unpack_sequence(lstm(pack_sequence(rows, enforce_sorted=False)))
    state = float64_state(lstm.state_dict())
    for row, output in zip(rows, outputs, strict=True):
        np.testing.assert_allclose(output.detach().numpy(), bidirectional_lstm(row.numpy(), state), atol=1e-12)


@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("scale", [0.4, 2.0], ids=["open gates", "some gates shut"])
def test_gradients_are_those_of_the_formulas(lengths: list[int], scale: float) -> None:
    """Of the inputs and of all eight parameters, so of both directions."""
    lstm = make_lstm(inputs=2, hidden=2, scale=scale)
    packed = pack_sequence(make_rows(lengths, inputs=2))
    data = packed.data.clone().requires_grad_()

    def run(data: Tensor, *parameters: Tensor) -> Tensor:
        return lstm(
            packed._replace(data=data)
        ).data  # the parameters are the layer's own: gradcheck moves them in place

    assert torch.autograd.gradcheck(run, (data, *lstm.parameters()), eps=1e-6, atol=1e-7)


def test_gradients_equal_those_of_plain_autograd() -> None:
    """Through the formulas written with torch's own operations, one row at a time."""
    lstm, rows = make_lstm(), make_rows([6, 4, 4, 2, 1])
    weights = [torch.randn(len(row), 8, dtype=torch.float64) for row in rows]

    def plain(row: Tensor, suffix: str) -> Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weight_ih, weight_hh, bias_ih, bias_hh = (lstm.get_parameter(f"{name}_l0{suffix}") for name in names)
        h = c = row.new_zeros(4)
        states = []
        for x in row.flip(0) if suffix else row:
            i, f, g, o = (weight_ih @ x + bias_ih + weight_hh @ h + bias_hh).chunk(4)
            i, f, o = ((0.2 * gate + 0.5).clamp(0, 1) for gate in (i, f, o))
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            states.append(h)
        return torch.stack(states[::-1] if suffix else states)

    def gradients(outputs: list[Tensor]) -> list[Tensor]:
        loss = sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True))
        return list(torch.autograd.grad(loss, list(lstm.parameters())))

    ours = gradients(unpack_sequence(lstm(pack_sequence(rows))))
    theirs = gradients([torch.cat((plain(row, ""), plain(row, "_reverse")), dim=1) for row in rows])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-10, atol=1e-12)


def test_packing_in_is_packing_out() -> None:
    packed = pack_sequence(make_rows([2, 5, 1, 3]), enforce_sorted=False)
    output = make_lstm()(packed)
    assert isinstance(output, PackedSequence)
    assert output.data.shape == (11, 8)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(output, name), getattr(packed, name)), name


def test_a_row_does_not_see_its_neighbours() -> None:
    lstm, rows = make_lstm(), make_rows([4, 3, 2])
    together = unpack_sequence(lstm(pack_sequence(rows)))
    for row, output in zip(rows, together, strict=True):
        torch.testing.assert_close(lstm(pack_sequence([row])).data, output, rtol=0, atol=1e-14)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_padded_tensor_gives_what_its_packing_gives(lengths: list[int]) -> None:
    """In the order given; what stands behind a row's end is not read, and zero in the output."""
    lstm, rows = make_lstm(), make_rows(lengths)
    padded = torch.full((len(rows), 8, 3), torch.nan, dtype=torch.float64)
    for row, length, values in zip(padded, lengths, rows, strict=True):
        row[:length] = values
    output = lstm(padded, lengths)
    assert output.shape == (len(rows), 8, 8)
    packed = unpack_sequence(lstm(pack_sequence(rows, enforce_sorted=False)))
    for row, length, values in zip(output, lengths, packed, strict=True):
        assert torch.equal(row[:length], values)
        assert not row[length:].any()


def test_a_padded_tensor_without_lengths_is_read_to_its_end() -> None:
    lstm, rows = make_lstm(), torch.stack(make_rows([4, 4]))
    assert torch.equal(lstm(rows), lstm(rows, [4, 4]))


@pytest.mark.parametrize("lengths", [[3, 0], [3, 6], [3], [[3, 2]]], ids=["no step", "too many", "one", "a matrix"])
def test_lengths_that_do_not_belong_to_the_rows_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths must be 2 whole numbers from 1 to 5"):
        make_lstm()(torch.zeros(2, 5, 3, dtype=torch.float64), lengths)


@pytest.mark.parametrize("lengths", [[1.5, 2.0, 3.0], [True, True, True]], ids=["fractions", "booleans"])
def test_lengths_that_are_no_whole_numbers_are_refused(lengths: Any) -> None:
    with pytest.raises(ValueError, match="3 whole numbers from 1 to 3"):
        make_lstm()(torch.zeros(3, 3, 3, dtype=torch.float64), lengths)


def test_lengths_are_lists_arrays_or_tensors() -> None:
    lstm, padded = make_lstm(), torch.stack(make_rows([3, 3, 3]))
    expected = lstm(padded, [2, 3, 1])
    for lengths in (torch.tensor([2, 3, 1], dtype=torch.int32), np.array([2, 3, 1], np.uint64), (2, 3, 1)):
        torch.testing.assert_close(lstm(padded, lengths), expected, rtol=0, atol=0)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    lstm, padded = make_lstm(), torch.stack(make_rows([3])).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(lstm(padded).sum(), padded, create_graph=True)


def test_a_packed_sequence_takes_no_lengths_and_a_matrix_is_no_batch() -> None:
    with pytest.raises(ValueError, match="knows the lengths"):
        make_lstm()(pack_sequence(make_rows([2, 1])), [2, 1])
    with pytest.raises(ValueError, match="rows, steps, channels"):
        make_lstm()(torch.zeros(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("lengths", [[2, 5, 1, 3], [4, 2, 2], [1]], ids=["any order", "sorted", "one token"])
def test_last_states_are_where_torch_has_them(lengths: list[int]) -> None:
    """Hidden states are channels of the output, and h = o tanh(c) of the step that they end at."""
    lstm, rows = make_lstm(), make_rows(lengths)
    packed, padded = pack_sequence(rows, enforce_sorted=False), nn.utils.rnn.pad_sequence(rows, batch_first=True)
    _, (hidden, cell) = lstm(packed, return_hidden=True)
    assert all(map(torch.equal, lstm(padded, lengths, return_hidden=True)[1], (hidden, cell)))
    theirs = nn.LSTM(3, 4, bidirectional=True).double()(packed)[1]
    assert hidden.shape == cell.shape == theirs[0].shape
    for number, row in enumerate(rows):
        output = lstm(pack_sequence([row])).data
        for direction, (suffix, last, before) in enumerate((("", -1, -2), ("_reverse", 0, 1))):
            channels = slice(4 * direction, 4 * direction + 4)
            torch.testing.assert_close(hidden[direction, number], output[last, channels])
            h = output[before, channels] if len(row) > 1 else row.new_zeros(4)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w, u, b, c = (lstm.get_parameter(f"{name}_l0{suffix}")[12:] for name in names)
            o = (0.2 * (w @ row[last] + u @ h + b + c) + 0.5).clamp(0, 1)
            torch.testing.assert_close(hidden[direction, number], o * cell[direction, number].tanh())


def test_gradients_of_the_last_states_are_those_of_the_formulas() -> None:
    """Of cell states too, alone and together with the output."""
    lstm = make_lstm(inputs=2, hidden=2)
    packed = pack_sequence(make_rows([3, 2, 2], inputs=2), enforce_sorted=False)
    data = packed.data.clone().requires_grad_()

    def cells(data: Tensor, *parameters: Tensor) -> Tensor:
        return lstm(packed._replace(data=data), return_hidden=True)[1][1]

    def everything(data: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        output, states = lstm(packed._replace(data=data), return_hidden=True)
        return (output.data, *states)

    for run in (cells, everything):
        assert torch.autograd.gradcheck(run, (data, *lstm.parameters()), eps=1e-6, atol=1e-7)


def test_parameters_are_those_of_torch() -> None:
    ours = {name: parameter.shape for name, parameter in HardSigmoidLSTM(6, 5).named_parameters()}
    theirs = {name: value.shape for name, value in nn.LSTM(6, 5, bidirectional=True).named_parameters()}
    assert ours == theirs


def test_a_torch_state_dict_loads() -> None:
    HardSigmoidLSTM(6, 5).load_state_dict(nn.LSTM(6, 5, bidirectional=True).state_dict())


def test_input_is_left_as_it_is() -> None:
    packed = pack_sequence(make_rows([3, 2]))
    before = packed.data.clone()
    make_lstm()(packed)
    assert torch.equal(packed.data, before)


def test_bfloat16_products_give_nearly_the_same_states_and_gradients() -> None:
    """As training under autocast has them: weights and their gradients stay float32."""
    rows = [row.float() for row in make_rows([9, 6, 6, 3, 1], inputs=12)]
    weights = torch.randn(25, 32, generator=torch.Generator().manual_seed(4))
    results = []
    for enabled in (False, True):
        lstm, packed = make_lstm(12, 16, scale=0.3).float(), pack_sequence(rows)
        data = packed.data.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = lstm(packed._replace(data=data)).data
        (output.float() * weights).sum().backward()
        gradients = [data.grad, *(parameter.grad for parameter in lstm.parameters())]
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
        results.append([output.detach().float(), *gradients])
    exact, rough = results
    assert output.dtype == torch.bfloat16
    for one, other in zip(exact, rough, strict=True):
        assert one is not None and other is not None
        assert 0 < float((one - other).norm() / one.norm()) < 0.02  # a bfloat16 has 8 bits: 0.4 % each


def test_training_steps_lower_the_loss() -> None:
    lstm, packed = make_lstm(scale=0.3), pack_sequence(make_rows([5, 4, 2]))
    target = torch.rand(11, 8, dtype=torch.float64) - 0.5
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = (lstm(packed).data - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_join_each_token_to_the_one_before_it(reverse: bool) -> None:
    lengths = [5, 3, 3, 1]
    batch_sizes = [sum(length > step for length in lengths) for step in range(5)]
    position = {pair: number for number, pair in enumerate(
        (step, row) for step, size in enumerate(batch_sizes) for row in range(size)
    )}  # fmt: skip
    joined = {
        (start + row, previous + row)
        for start, _, previous, rows in steps_of(batch_sizes, reverse)
        for row in range(rows)
    }
    expected = set()
    for row, length in enumerate(lengths):
        for a, b in itertools.pairwise(range(length)):
            earlier, later = position[a, row], position[b, row]
            expected.add((earlier, later) if reverse else (later, earlier))
    assert joined == expected
