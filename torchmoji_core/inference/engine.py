"""The network of `model.TorchMoji` rearranged for speed: inference only, packed rows, nothing padded.

What differs from the readable model: the embedding table is stored after its tanh; both directions of a layer share
one input product; slope and offset of the hard sigmoid are in the weights; all features of a token lie in one row of
one buffer, so nothing is concatenated. Results agree with the readable model to 1e-5.

A row's result does not depend on its neighbours, to the last bit: every reduction runs over one row alone, and every
matrix product has a multiple of four rows, for which the libraries sum each row in the same order whatever the
number of rows and threads. (With one to three rows MKL uses other kernels, which differ by an ulp or two. With some
numbers of columns it sums the fourth row of each four in another order: the output layer's columns are rounded up.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.lstm import DIRECTIONS, folded_hard_sigmoid, steps_of
from torchmoji_core.model import dimensions_of

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "fp64": torch.float64}
_ROW_MULTIPLE = 4
_COLUMN_MULTIPLE = 16


class EngineOutput(NamedTuple):
    """Results of one batch in the order of its rows."""

    probabilities: Tensor
    """[rows, classes]"""
    embedding: Tensor
    """[rows, channels]"""
    attention: Tensor
    """[rows, longest row], zero behind a row's end"""


class _Layer(NamedTuple):
    weight_in: Tensor
    """[input, 8 * hidden]: forward gates, then backward gates"""
    bias: Tensor
    """[8 * hidden]"""
    weight_hidden: tuple[Tensor, ...]
    """[hidden, 4 * hidden] of each direction"""


class Engine:
    """A loaded network; calls do not change it, so threads may share one."""

    def __init__(self, state: Mapping[str, Tensor], precision: str = "auto", multi_label: bool = False) -> None:
        """Args:
            state: weights under the published names, any float type.
            precision: one of `PRECISIONS`.
            multi_label: whether a probability is of its class by itself (a sigmoid instead of the softmax).

        Raises:
            InputError: for another precision, or weights of another model.
        """
        if precision not in _DTYPES:
            raise InputError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        self.precision = "fp32" if precision == "auto" else precision
        self.dimensions = dimensions_of(state)
        self._multi_label = multi_label
        weights = {name: tensor.to(_DTYPES[precision]) for name, tensor in state.items()}
        self._table = weights["embed.weight"].tanh()
        self._layers = [_fold_layer(weights, name, self.dimensions.hidden) for name in ("lstm_0", "lstm_1")]
        # As a product with four equal columns, because a single column would go to another kernel.
        self._attention = weights["attention_layer.attention_vector"][:, None].repeat(1, _ROW_MULTIPLE)
        unused = -self.dimensions.classes % _COLUMN_MULTIPLE
        self._output = pad(weights["output_layer.0.weight"].t(), (0, unused)).contiguous()
        self._output_bias = pad(weights["output_layer.0.bias"], (0, unused))

    @torch.inference_mode()
    def run(self, rows: Sequence[Sequence[int]]) -> EngineOutput:
        """Score rows of token ids, longest first.

        Raises:
            IndexError: if an id is outside the vocabulary.
            ValueError: if there are no rows, a row is empty, or they are not sorted.
        """
        lengths = [len(row) for row in rows]
        if not lengths or lengths[-1] == 0 or any(a < b for a, b in pairwise(lengths)):
            raise ValueError("rows must be sorted longest first, and hold at least one token each")
        flat = torch.tensor([index for row in rows for index in row])
        if int(flat.min()) < 0 or int(flat.max()) >= self.dimensions.vocabulary:
            raise IndexError(f"token ids must be at least 0 and below {self.dimensions.vocabulary}")
        batch_sizes, order = _time_major(lengths)
        hidden, tokens = self.dimensions.hidden, len(flat)
        features = self._table.new_zeros(_round_up(tokens) + _ROW_MULTIPLE, self.dimensions.channels)
        torch.index_select(self._table, 0, flat[order], out=features[:tokens, 4 * hidden :])
        self._run_layer(self._layers[0], features, slice(4 * hidden, None), 2 * hidden, batch_sizes)
        self._run_layer(self._layers[1], features, slice(2 * hidden, 4 * hidden), 0, batch_sizes)
        embedding, attention = self._attend(features, batch_sizes)
        logits = torch.addmm(self._output_bias, embedding, self._output)[: len(rows), : self.dimensions.classes]
        probabilities = logits.sigmoid() if self._multi_label else logits.softmax(dim=1)
        return EngineOutput(probabilities, embedding[: len(rows)], attention)

    def _run_layer(
        self, layer: _Layer, features: Tensor, inputs: slice, first_output: int, batch_sizes: list[int]
    ) -> None:
        """Read the columns `inputs` of the features, write 2 * hidden columns from `first_output`."""
        size = self.dimensions.hidden
        gates = torch.addmm(layer.bias, features[:-_ROW_MULTIPLE, inputs], layer.weight_in)
        product = features.new_empty(_round_up(batch_sizes[0]), 4 * size)
        cells = features.new_empty(2, batch_sizes[0], size)
        for direction, weight_hidden in enumerate(layer.weight_hidden):
            outputs = features[:, first_output + direction * size : first_output + (direction + 1) * size]
            gates_here = gates[:, 4 * size * direction : 4 * size * (direction + 1)]
            cell = cells[direction]
            for start, end, previous, rows in steps_of(batch_sizes, reverse=direction == 1):
                gate = gates_here[start:end]
                if rows:
                    padded = _round_up(rows)
                    torch.mm(outputs[previous : previous + padded], weight_hidden, out=product[:padded])
                    gate[:rows] += product[:rows]
                gate[:, : 2 * size].clamp_(0, 1)
                gate[:, 2 * size : 3 * size].tanh_()
                gate[:, 3 * size :].clamp_(0, 1)
                i, f, g, o = gate.split(size, dim=1)
                count = end - start
                cell[:rows].mul_(f[:rows])
                cell[rows:count] = 0
                cell[:count].addcmul_(i, g)
                torch.mul(cell[:count].tanh(), o, out=outputs[start:end])

    def _attend(self, features: Tensor, batch_sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Attention average [rows rounded up, channels] and weights [rows, longest row]; see `attention`."""
        n_rows = batch_sizes[0]
        logits = (features[:-_ROW_MULTIPLE] @ self._attention)[:, 0]
        weights = features.new_full((n_rows, len(batch_sizes)), -torch.inf)
        starts = []
        start = 0
        for step, size in enumerate(batch_sizes):
            weights[:size, step] = logits[start : start + size]
            starts.append(start)
            start += size
        weights = (weights - weights.amax(dim=1, keepdim=True)).exp_()
        total = weights.new_zeros(n_rows)
        for step in range(len(batch_sizes)):  # one after another: a library's sum depends on the width
            total += weights[:, step]
        weights /= total[:, None]
        average = features.new_zeros(_round_up(n_rows), features.shape[1])
        for step, size in enumerate(batch_sizes):
            average[:size].addcmul_(features[starts[step] : starts[step] + size], weights[:size, step, None])
        return average, weights


def _fold_layer(weights: Mapping[str, Tensor], name: str, hidden: int) -> _Layer:
    slope, offset = folded_hard_sigmoid(hidden, weights["embed.weight"])
    weight_in, bias, weight_hidden = [], [], []
    for suffix in DIRECTIONS:
        weight_in.append(weights[f"{name}.weight_ih_l0{suffix}"] * slope[:, None])
        bias.append((weights[f"{name}.bias_ih_l0{suffix}"] + weights[f"{name}.bias_hh_l0{suffix}"]) * slope + offset)
        weight_hidden.append((weights[f"{name}.weight_hh_l0{suffix}"] * slope[:, None]).t().contiguous())
    return _Layer(torch.cat(weight_in).t().contiguous(), torch.cat(bias), tuple(weight_hidden))


def _time_major(lengths: list[int]) -> tuple[list[int], Tensor]:
    """Rows present at each step, and the positions in row-major order of the tokens in time-major order."""
    length = torch.tensor(lengths)
    starts = length.cumsum(0) - length
    steps = torch.arange(lengths[0])[:, None]
    present = steps < length
    return present.sum(dim=1).tolist(), (starts + steps)[present]


def _round_up(rows: int) -> int:
    return -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE
