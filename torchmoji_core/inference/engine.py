"""The network of `model.TorchMoji` rearranged for speed: inference only, packed rows, nothing padded.

What differs from the readable model:

* Activations are stored halved, since tanh(x) / 2 = sigmoid(2 x) - 1/2, and a library's sigmoid is several times as
  fast as its tanh. The 2 in front of x is in the weights, and so is the one that makes the halves whole again.
* Slope and offset of the hard sigmoid are in the weights too, and the gates lie in the order i, f, o, g: one clamp
  serves three gates.
* The embedding table is stored after its tanh.
* The input products of all steps of a layer are one product a direction; of the first layer, one for each distinct
  token of the batch.
* All features of a token lie in one row of one buffer, so nothing is concatenated.
* Channels are rounded up to whole vector registers, with zeros, so that no operation has a remainder to treat apart.

Results agree with the readable model to 1e-5 in fp32. A row's result does not depend on its neighbours, to the last
bit: every reduction runs over one row alone, and products see to it by themselves (`arithmetic`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.inference.arithmetic import Weight, choose
from torchmoji_core.lstm import DIRECTIONS, folded_hard_sigmoid
from torchmoji_core.model import dimensions_of

_REGISTER_CHANNELS = 32
"""Values that the widest vectorized loop takes at once."""


_TABLE_ROWS = 4096
"""Rows of the embedding table converted at a time, for a low peak of memory."""


class EngineOutput(NamedTuple):
    """Results of one batch in the order of its rows."""

    probabilities: Tensor
    """[rows, classes]"""
    embedding: Tensor
    """[rows, channels]"""
    attention: Tensor
    """[rows, longest row], zero behind a row's end"""


class _Direction(NamedTuple):
    """Weights of one direction of a layer; outputs are the gates i, f, o, g."""

    inputs: Weight
    recurrent: Weight


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
        self.dimensions = dimensions_of(state)
        self.arithmetic = choose(precision)
        self._multi_label = multi_label
        kind = self.arithmetic.elementwise
        # What is behind the LSTMs is a hundredth of the work: it keeps its precision.
        exact = choose("fp64" if kind == torch.float64 else "fp32")
        widths = (self.dimensions.hidden,) * 4 + (self.dimensions.embedding,)
        self._hidden, self._channels = _round_up(self.dimensions.hidden), sum(map(_round_up, widths))
        self._kept = None if self._channels == sum(widths) else _places(widths)
        table = state["embed.weight"]
        # Half precision is finer than what the low ones' products make of it.
        table_type = torch.float16 if self.arithmetic.precision in ("bf16", "int8") else kind
        self._table = torch.zeros(len(table), _round_up(table.shape[1]), dtype=table_type)
        for part, values in zip(self._table.split(_TABLE_ROWS), table.split(_TABLE_ROWS), strict=True):
            part[:, : table.shape[1]] = values.to(kind).tanh().div_(2)
        self._layers = tuple(
            tuple(self._direction(state, name, suffix, inputs) for suffix in DIRECTIONS)
            for name, inputs in (("lstm_0", widths[4:]), ("lstm_1", widths[:2]))
        )
        attention = _spread(2 * state["attention_layer.attention_vector"].to(kind)[None], widths)
        self._attention = exact.weight(attention, None)
        self._output = exact.weight(
            state["output_layer.0.weight"].to(kind), state["output_layer.0.bias"].to(kind, copy=True)
        )

    @property
    def precision(self) -> str:
        """The precision in use."""
        return self.arithmetic.precision

    def _direction(self, state: Mapping[str, Tensor], layer: str, suffix: str, inputs: Sequence[int]) -> _Direction:
        """Everything is in the weights that does not depend on the text: slopes, offsets, and the 2 of halved
        activations. `inputs` are the widths of the blocks of the layer's input."""
        hidden = self.dimensions.hidden
        like = torch.empty(0, dtype=self.arithmetic.elementwise)
        slope, offset = folded_hard_sigmoid(hidden, like)
        slope[2 * hidden : 3 * hidden] = 2  # tanh(x) / 2 = sigmoid(2 x) - 1/2

        def gates(values: Tensor) -> Tensor:
            """[4 * hidden, ...] in the order i, f, g, o -> [4 * rounded up, ...] in the order i, f, o, g."""
            i, f, g, o = values.split(hidden)
            missing = (0, 0) * (values.ndim - 1) + (0, self._hidden - hidden)
            return torch.cat([pad(gate, missing) for gate in (i, f, o, g)])

        w_ih, w_hh, b_ih, b_hh = (
            state[f"{layer}.{name}_l0{suffix}"].to(like.dtype)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        weight = self.arithmetic.weight
        return _Direction(
            weight(gates(2 * slope[:, None] * _spread(w_ih, inputs)), gates((b_ih + b_hh) * slope + offset)),
            weight(gates(2 * slope[:, None] * _spread(w_hh, (hidden,))), None),
        )

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
        distinct, token = flat[order].unique(return_inverse=True)
        hidden, activation = self._hidden, self.arithmetic.activation
        vectors = self._table[distinct].to(self.arithmetic.elementwise)
        features = vectors.new_zeros(_product_rows(len(flat)), self._channels)
        torch.index_select(vectors, 0, token, out=features[: len(flat), 4 * hidden :])
        encoded = torch.zeros(_product_rows(len(distinct)), vectors.shape[1], dtype=activation)
        self.arithmetic.encode(vectors, encoded[: len(distinct)])
        between = torch.zeros(len(features), 2 * hidden, dtype=activation)
        for direction, weights in enumerate(self._layers[0]):
            outputs = features[:, (2 + direction) * hidden : (3 + direction) * hidden]
            sums = weights.inputs.project(encoded)
            self._recur(sums, token, weights.recurrent, batch_sizes, outputs, reverse=direction == 1)
            self.arithmetic.encode(outputs, between[:, direction * hidden : (direction + 1) * hidden])
        own = torch.arange(len(flat))
        for direction, weights in enumerate(self._layers[1]):
            outputs = features[:, direction * hidden : (direction + 1) * hidden]
            sums = weights.inputs.project(between)
            self._recur(sums, own, weights.recurrent, batch_sizes, outputs, reverse=direction == 1)
        embedding, attention = self._attend(features, batch_sizes)
        logits = self._output.project(embedding)[: len(rows)]
        probabilities = logits.sigmoid() if self._multi_label else logits.softmax(dim=1)
        return EngineOutput(probabilities, embedding[: len(rows)], attention)

    def _recur(
        self,
        sums: Tensor,
        places: Tensor,
        recurrent: Weight,
        batch_sizes: list[int],
        outputs: Tensor,
        *,
        reverse: bool,
    ) -> None:
        """One direction of a layer.

        Args:
            sums: input products, [n, 4 * hidden].
            places: of each token, its row of them.
            recurrent: weight of the states.
            batch_sizes: rows present at each step.
            outputs: [at least tokens, hidden], to be filled with halved hidden states.
            reverse: whether to begin at the end.
        """
        size, encode = self._hidden, self.arithmetic.encode
        # A step's gates stay in one buffer, small enough for the cache, and its views are made when the rows change.
        all_gates = sums.new_zeros(_product_rows(batch_sizes[0]), 4 * size)
        # Rows that have not begun have a state of zero, which is what a row begins with.
        cells, halves = (sums.new_zeros(len(all_gates), size) for _ in range(2))
        states = encode(cells, torch.empty(cells.shape, dtype=self.arithmetic.activation))
        begun = 0
        steps = list(zip(places.split(batch_sizes), outputs[: len(places)].split(batch_sizes), strict=True))
        for place, output in reversed(steps) if reverse else steps:
            if len(place) != begun:
                gates, cell, half, state = (part[: len(place)] for part in (all_gates, cells, halves, states))
                i, f, o, g = gates.split(size, dim=1)
                i_f_o = gates[:, : 3 * size]
                product_gates, product_states = (part[: _product_rows(len(place))] for part in (all_gates, states))
            torch.index_select(sums, 0, place, out=gates)
            if begun:
                recurrent.add_to(product_gates, product_states)
            begun = len(place)
            i_f_o.clamp_(0, 1)
            g.sigmoid_().sub_(0.5)
            # The cell state is kept doubled, for the 2 in front of x.
            cell.mul_(f).addcmul_(i, g, value=4)
            torch.sigmoid(cell, out=half)
            encode(torch.mul(half.sub_(0.5), o, out=output), state)

    def _attend(self, features: Tensor, batch_sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Embedding [rows, channels] and attention weights [rows, longest row]; see `attention`."""
        n_rows = batch_sizes[0]
        logits = self._attention.project(features)[:, 0]
        weights = features.new_full((n_rows, len(batch_sizes)), -torch.inf)
        for step, (start, end) in enumerate(_steps(batch_sizes)):
            weights[: end - start, step] = logits[start:end]
        weights = (weights - weights.amax(dim=1, keepdim=True)).exp_()
        total = weights.new_zeros(n_rows)
        for step in range(len(batch_sizes)):  # one after another: a library's sum depends on the width
            total += weights[:, step]
        weights /= total[:, None]
        average = features.new_zeros(_product_rows(n_rows), features.shape[1])
        for step, (start, end) in enumerate(_steps(batch_sizes)):
            average[: end - start].addcmul_(features[start:end], weights[: end - start, step, None], value=2)
        return average if self._kept is None else average[:, self._kept], weights


def _steps(batch_sizes: list[int], reverse: bool = False) -> list[tuple[int, int]]:
    """(start, end) of each step's slice, in the order of computation."""
    ends = list(itertools.accumulate(batch_sizes))
    return [(end - size, end) for end, size in zip(ends, batch_sizes, strict=True)][:: -1 if reverse else 1]


def _time_major(lengths: list[int]) -> tuple[list[int], Tensor]:
    """Rows present at each step, and the positions in row-major order of the tokens in time-major order."""
    length = torch.tensor(lengths)
    starts = length.cumsum(0) - length
    steps = torch.arange(lengths[0])[:, None]
    present = steps < length
    return present.sum(dim=1).tolist(), (starts + steps)[present]


def _product_rows(rows: int) -> int:
    """Rows that a product is given: more than there are, but one of few numbers.

    oneDNN compiles a kernel for every number of rows, which takes as long as a product, and keeps a thousand of them,
    of 0.3 to 0.6 MB each.
    """
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    return -(-rows // 8) * 8 if rows <= 128 else -(-rows // 128) * 128


def _round_up(channels: int) -> int:
    return -(-channels // _REGISTER_CHANNELS) * _REGISTER_CHANNELS


def _places(widths: Sequence[int]) -> Tensor:
    """Where the columns of blocks of these widths are when each block begins at whole registers."""
    ends = itertools.accumulate(map(_round_up, widths))
    return torch.cat([torch.arange(width) + end - _round_up(width) for width, end in zip(widths, ends, strict=True)])


def _spread(matrix: Tensor, widths: Sequence[int]) -> Tensor:
    """A matrix whose columns are moved to their `_places`, with zeros between them."""
    total = sum(map(_round_up, widths))
    if total == matrix.shape[1]:
        return matrix
    return matrix.new_zeros(len(matrix), total).index_copy_(1, _places(widths), matrix)
