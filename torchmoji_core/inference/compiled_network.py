"""A network by the loops of `compiled_loops`: the same bits in less time."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.inference import compiled_loops as loops
from torchmoji_core.inference.kernels import INT8_ZERO, UNSPLIT_INPUTS, FastestInt8Weight, PackedWeight
from torchmoji_core.inference.machine_code import BLOCK, QUAD
from torchmoji_core.inference.network import Layer, Network, Output, probabilities, product_rows


class CompiledNetwork:
    """A `Network`. Threads may share it."""

    def __init__(self, network: Network) -> None:
        """Args:
            network: the weights, of which `compiled.most_rows` says that there are loops for them.

        Raises:
            ValueError: if numba compiles for another processor.
        """
        loops.check_processor()
        head = network.head
        self._attention = cast(PackedWeight, head.attention).matrix()[0].numpy()
        self._layers = _layer(network.first), _layer(network.second)
        kept = torch.arange(len(self._attention)) if head.kept is None else head.kept
        self._output = kept.numpy(), _float_weight(cast(PackedWeight, head.output))
        self._multi_label = head.multi_label

    def __call__(self, vectors: Tensor, token: Tensor, batch_sizes: list[int]) -> Output:
        """See `Network.forward`."""
        sizes = np.array(batch_sizes)
        features, logits = loops.run(vectors.numpy(), token.numpy(), sizes, *self._layers, self._attention)
        weights = torch.from_numpy(logits).exp_()
        results = loops.conclude(features, weights.numpy(), sizes, *self._output)
        scores, embedding, attention = map(torch.from_numpy, results)
        return probabilities(scores, self._multi_label), embedding, attention


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
    n_part = _inputs_of_part(n_outputs, min(n_inputs + n_inputs % 2, UNSPLIT_INPUTS))
    return loops.FloatWeight(_copy(blocks), n_part, np.ones(n_outputs, np.float32), _bias(weight, n_outputs))


@cache
def _inputs_of_part(n_outputs: int, n_inputs: int) -> int:
    """How many inputs' products oneDNN adds up before it adds them to those of others: with AVX-512 not always all.

    To 2 ** 24 no float32 adds a one: those that the result has more are other parts'. The inputs are an even number,
    since there is no odd one of this size in float32; an odd number is split where the next even one is.
    """
    x = torch.ones(product_rows(1), n_inputs, dtype=torch.float32)
    x[:, 0] = 2**24
    sums = PackedWeight(torch.float32, torch.ones(n_outputs, n_inputs), None).project(x)
    return n_inputs - int(sums[0, 0] - 2**24)


def _bias(weight: PackedWeight | FastestInt8Weight, n_outputs: int) -> loops.Floats:
    bias: loops.Floats = (torch.zeros(n_outputs, dtype=torch.float32) if weight.bias is None else weight.bias).numpy()
    return bias


def _copy(values: Tensor) -> Any:
    """As one contiguous array of NumPy, which asks for huge pages where an array is large: it is read at each step."""
    return np.array(values.numpy(), order="C")
