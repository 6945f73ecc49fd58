"""A model's weights rearranged for speed, and the batches that run through them; `network` has the computation.

* Weights carry all that does not depend on the text: slopes and offsets of gates, the factors of halved activations.
* The embedding table is stored after its tanh.
* Channels are rounded up to whole vector registers, with zeros, so that no operation has a remainder to treat apart.

Results agree with the readable model to 1e-5 in fp32. A row's result does not depend on its neighbours, to the last
bit: every reduction runs over one row alone, and products see to it by themselves (`kernels`).
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.inference.compiled import by_loops, most_rows
from torchmoji_core.inference.kernels import choose
from torchmoji_core.inference.network import REGISTER_CHANNELS, Call, Direction, Head, Layer, Network, scripted
from torchmoji_core.lstm import DIRECTIONS, folded_hard_sigmoid
from torchmoji_core.model import dimensions_of
from torchmoji_core.processes import single_threaded

_TABLE_ROWS = 4096
"""Rows of the embedding table converted at a time, for a low peak of memory."""

ROWS_WORTH_LOADING = 20_000
"""Rows in batches that loops are faster for, with no other batch between, after which they are loaded."""
_ROWS_OF_A_SINGLE = ROWS_WORTH_LOADING // 32
"""As so many a row by itself counts: who has 32 of them is a service, which has nothing else."""
_LONGEST_EXAMPLE = 40
"""Tokens of the longest row that shows whether loops are right."""


class EngineOutput(NamedTuple):
    """Results of one batch in the order of its rows."""

    probabilities: Tensor
    """[rows, classes]"""
    embedding: Tensor
    """[rows, channels]"""
    attention: Tensor
    """[rows, longest row], zero behind a row's end"""


class _Gates(NamedTuple):
    """Weights of a direction, which give the gates i, f, o, g."""

    inputs: Tensor
    """[4 * hidden, inputs]"""
    recurrent: Tensor
    """[4 * hidden, hidden]"""
    bias: Tensor
    """[4 * hidden]"""


class Engine:
    """A loaded network; calls do not change it, so threads may share one."""

    @single_threaded()
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
        kind = self.arithmetic.elementwise
        exact = choose(self.arithmetic.exact)
        widths = (self.dimensions.hidden,) * 4 + (self.dimensions.embedding,)
        self._hidden = _round_up(self.dimensions.hidden)
        table = state["embed.weight"]
        self._table = torch.zeros(len(table), _round_up(table.shape[1]), dtype=self.arithmetic.table)
        for part, values in zip(self._table.split(_TABLE_ROWS), table.split(_TABLE_ROWS), strict=True):
            part[:, : table.shape[1]] = values.to(kind).tanh().div_(2)
        attention = _spread(2 * state["attention_layer.attention_vector"].to(kind)[None], widths)
        bias = state["output_layer.0.bias"].to(kind, copy=True)
        network = Network(
            first=self._layer(state, "lstm_0", widths[4:]),
            second=self._layer(state, "lstm_1", widths[:2]),
            head=Head(
                attention=exact.weight(attention, None),
                output=exact.weight(state["output_layer.0.weight"].to(kind), bias),
                multi_label=multi_label,
                kept=None if sum(map(_round_up, widths)) == sum(widths) else _places(widths),
            ),
            encoding=self.arithmetic.encoding(),
            hidden=self._hidden,
        )
        with torch.inference_mode():
            rows = ([3, 2, 1], [2])
            self._network = scripted(
                network, [self._inputs(torch.zeros(sum(lengths), dtype=torch.int64), lengths) for lengths in rows]
            )
        self._plain_network = network
        self._most_rows = most_rows(network)
        self.of_few_rows: Call = self._network
        self._rows_waiting = 0
        self._loading = Lock()

    @property
    def precision(self) -> str:
        """The precision in use."""
        return self.arithmetic.precision

    def _layer(self, state: Mapping[str, Tensor], name: str, inputs: Sequence[int]) -> Layer:
        """`inputs` are the widths of the blocks of the layer's input."""
        ahead, back = (self._gates(state, name, suffix, inputs) for suffix in DIRECTIONS)
        weight, encoding = self.arithmetic.weight, self.arithmetic.encoding
        directions = [
            Direction(weight(gates.inputs, gates.bias), weight(gates.recurrent, None), encoding(), gates is back)
            for gates in (ahead, back)
        ]
        return Layer(directions[0], directions[1], weight(torch.cat([ahead.recurrent, back.recurrent]), None))

    def _gates(self, state: Mapping[str, Tensor], layer: str, suffix: str, inputs: Sequence[int]) -> _Gates:
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
        return _Gates(
            inputs=gates(2 * slope[:, None] * _spread(w_ih, inputs)),
            recurrent=gates(2 * slope[:, None] * _spread(w_hh, (hidden,))),
            bias=gates((b_ih + b_hh) * slope + offset),
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
        # Arrays, as scorers have, are joined as bytes: none of their numbers becomes an object.
        arrays = [row if isinstance(row, array) and row.typecode == "q" else array("q", row) for row in rows]
        flat = torch.frombuffer(bytearray().join(arrays), dtype=torch.int64)
        smallest, largest = map(int, flat.aminmax())
        if smallest < 0 or largest >= self.dimensions.vocabulary:
            raise IndexError(f"token ids must be at least 0 and below {self.dimensions.vocabulary}")
        return EngineOutput(*self._network_for(len(rows))(*self._inputs(flat, lengths)))

    def _network_for(self, n_rows: int) -> Call:
        """Compiled loops where they are faster, as soon as they are worth the seconds that loading them may take."""
        if n_rows > self._most_rows:
            self._rows_waiting = 0
            return self._network
        # Threads may miss one another's rows: it does not matter when loops are loaded, but that one thread does it.
        self._rows_waiting += _ROWS_OF_A_SINGLE if n_rows == 1 else n_rows
        if self._rows_waiting >= ROWS_WORTH_LOADING and self._loading.acquire(blocking=False):
            self.of_few_rows = by_loops(self._plain_network, self._network, self._examples())
        return self.of_few_rows

    def _examples(self) -> list[tuple[Tensor, Tensor, list[int]]]:
        """Batches that show whether loops are right, with the ends of the vocabulary and what lies between."""
        every = torch.arange(self.dimensions.vocabulary)
        some = every[:: max(1, len(every) // _LONGEST_EXAMPLE)]
        rows = [some, every[-2:], every[:1]]
        batches = [[row] for row in rows] if self._most_rows == 1 else [*([row] for row in rows), rows]
        return [self._inputs(torch.cat(batch), list(map(len, batch))) for batch in batches]

    def _inputs(self, flat: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, list[int]]:
        """What `Network` takes, of the tokens of all rows."""
        if len(lengths) == 1:  # in order already, and hardly a token twice
            return self._vectors(flat), torch.arange(len(flat)), [1] * len(flat)
        batch_sizes, order = _time_major(lengths)
        distinct, token = flat[order].unique(return_inverse=True)
        return self._vectors(distinct), token, batch_sizes

    def _vectors(self, ids: Tensor) -> Tensor:
        return self._table.index_select(0, ids).to(self.arithmetic.elementwise)  # half the time of table[ids]


def _time_major(lengths: list[int]) -> tuple[list[int], Tensor]:
    """Rows present at each step, and the positions in row-major order of the tokens in time-major order."""
    length = torch.tensor(lengths)
    starts = length.cumsum(0) - length
    steps = torch.arange(lengths[0])[:, None]
    present = steps < length
    return present.sum(dim=1).tolist(), (starts + steps)[present]


def _round_up(channels: int) -> int:
    return -(-channels // REGISTER_CHANNELS) * REGISTER_CHANNELS


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
