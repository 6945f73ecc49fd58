"""A network for a single row, by the loops of `one_row_loops`: the same bits in less time."""

from __future__ import annotations

from array import array
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.inference import one_row_loops as loops
from torchmoji_core.inference.kernels import INT8_ZERO, UNSPLIT_INPUTS, FastestInt8Weight, PackedWeight, Weight
from torchmoji_core.inference.machine_code import BLOCK, QUAD
from torchmoji_core.inference.network import Layer, Network, Output, probabilities, product_rows


class OneRowNetwork:
    """A `Network` and the embedding table in front of it. Threads may share it."""

    @staticmethod
    def is_possible(network: Network) -> bool:
        """Whether there are loops for its kind of weights."""
        kind = network.first.ahead.recurrent
        return (isinstance(kind, FastestInt8Weight) or _is_float32(kind)) and _is_float32(network.head.output)

    def __init__(self, network: Network, table: Tensor) -> None:
        """Args:
            network: the weights.
            table: of the embedding, halved, [vocabulary, channels].

        Raises:
            ValueError: if numba compiles for another processor.
        """
        loops.check_processor()
        head = network.head
        self._table = table.numpy()
        self._attention = cast(PackedWeight, head.attention).matrix()[0].numpy()
        self._layers = _layer(network.first), _layer(network.second)
        kept = torch.arange(len(self._attention)) if head.kept is None else head.kept
        self._output = kept.numpy(), _float_weight(cast(PackedWeight, head.output))
        self._multi_label = head.multi_label

    def __call__(self, ids: array[int]) -> Output:
        """See `Network.forward`, for a row of token ids."""
        features = np.empty((len(ids), len(self._attention)), np.float32)
        features[:, -self._table.shape[1] :] = self._table[ids]
        logits = loops.run(features, *self._layers, self._attention)
        weights = torch.from_numpy(logits).exp_()
        results = loops.conclude(features, weights.numpy(), *self._output)
        scores, embedding = map(torch.from_numpy, results)
        return probabilities(scores, self._multi_label), embedding, weights[None]


def _is_float32(weight: Weight) -> bool:
    return isinstance(weight, PackedWeight) and weight.activation == torch.float32


def _layer(layer: Layer) -> loops.Layer:
    weight: Any = _int8_weight if isinstance(layer.ahead.recurrent, FastestInt8Weight) else _float_weight
    directions = [
        loops.Direction(weight(each.inputs), weight(each.recurrent), each.reverse) for each in (layer.ahead, layer.back)
    ]
    return loops.Layer(*directions)


def _int8_weight(weight: FastestInt8Weight) -> loops.Int8Weight:
    values, scale = weight.quantized()
    blocks = values.reshape(len(values) // BLOCK, BLOCK, -1, QUAD).transpose(1, 2)
    zeros = -INT8_ZERO * values.sum(1, dtype=torch.int32)
    return loops.Int8Weight(_copy(blocks), zeros.numpy(), scale.numpy(), _bias(weight, len(values)))


def _float_weight(weight: PackedWeight) -> loops.FloatWeight:
    matrix = weight.matrix()
    n_outputs, n_inputs = matrix.shape
    blocks = pad(matrix, [0, 0, 0, -n_outputs % BLOCK]).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    n_part = _inputs_of_part(n_outputs, min(n_inputs, UNSPLIT_INPUTS))
    return loops.FloatWeight(_copy(blocks), _bias(weight, n_outputs), n_part)


@cache
def _inputs_of_part(n_outputs: int, n_inputs: int) -> int:
    """How many inputs' products oneDNN adds up before it adds them to those of others: with AVX-512 not always all.

    To 2 ** 24 no float32 adds a one: those that the result has more are other parts'. They are an even number, since
    there is no odd one of this size in float32.
    """
    odd = n_inputs % 2
    x = torch.ones(product_rows(1), n_inputs)
    x[:, 0], x[:, n_inputs - odd :] = 2**24, 0
    sums = PackedWeight(torch.float32, torch.ones(n_outputs, n_inputs), None).project(x)
    n_others = int(sums[0, 0] - 2**24)
    return n_inputs - odd - n_others if n_others else n_inputs


def _bias(weight: PackedWeight | FastestInt8Weight, n_outputs: int) -> loops.Floats:
    bias: loops.Floats = (torch.zeros(n_outputs) if weight.bias is None else weight.bias).numpy()
    return bias


def _copy(values: Tensor) -> Any:
    """As one contiguous array of NumPy, which asks for huge pages where an array is large: it is read at each step."""
    return np.array(values.numpy(), order="C")
