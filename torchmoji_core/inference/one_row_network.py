"""A network for a single row, by the loops of `machine_code`: the same bits in less time."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from torchmoji_core.inference import machine_code
from torchmoji_core.inference.kernels import INT8_ZERO, UNSPLIT_INPUTS, FastestInt8Weight, PackedWeight, Weight
from torchmoji_core.inference.machine_code import BLOCK, QUAD
from torchmoji_core.inference.network import Layer, Network, Output, probabilities, product_rows


class OneRowNetwork:
    """Called as a `Network`, whose weights it has in another layout. Threads may share it."""

    @staticmethod
    def is_possible(network: Network) -> bool:
        """Whether there are loops for its kind of weights."""
        kind = network.first.ahead.recurrent
        return (isinstance(kind, FastestInt8Weight) or _is_float32(kind)) and _is_float32(network.head.output)

    def __init__(self, network: Network) -> None:
        """Raises:
        ValueError: if numba compiles for another processor, or no order of sums is torch's.
        """
        machine_code.check_processor()
        head = network.head
        self._layers = _layer(network.first), _layer(network.second)
        self._hidden = network.hidden
        self._attention = head.attention
        self._output = _float_weight(cast(PackedWeight, head.output))
        self._multi_label = head.multi_label
        self._kept = head.kept

    def __call__(self, vectors: Tensor, token: Tensor, batch_sizes: list[int]) -> Output:
        """See `Network.forward`; the vectors are those of all tokens in their order."""
        n_tokens, hidden = len(vectors), self._hidden
        features = vectors.new_zeros([product_rows(n_tokens), 4 * hidden + vectors.size(1)])
        features[:n_tokens, 4 * hidden :] = vectors
        machine_code.run(features.numpy(), n_tokens, *self._layers)
        logits = self._attention.project(features)[:n_tokens, 0]
        weights = (logits - logits.amax()).exp_()
        mean = features.new_zeros([features.size(1)])
        machine_code.average(features.numpy(), weights.numpy(), mean.numpy())
        embedding = mean if self._kept is None else mean[self._kept]
        scores = torch.from_numpy(machine_code.project(embedding[None].numpy(), self._output))
        return probabilities(scores, self._multi_label), embedding[None], weights[None]


def _is_float32(weight: Weight) -> bool:
    return isinstance(weight, PackedWeight) and weight.activation == torch.float32


def _layer(layer: Layer) -> machine_code.Layer:
    weight: Any = _int8_weight if isinstance(layer.ahead.recurrent, FastestInt8Weight) else _float_weight
    directions = [
        machine_code.Direction(weight(each.inputs), weight(each.recurrent), each.reverse)
        for each in (layer.ahead, layer.back)
    ]
    return machine_code.Layer(*directions)


def _int8_weight(weight: FastestInt8Weight) -> machine_code.Int8Weight:
    values, scale = weight.quantized()
    blocks = values.reshape(len(values) // BLOCK, BLOCK, -1, QUAD).transpose(1, 2)
    zeros = -INT8_ZERO * values.sum(1, dtype=torch.int32)
    return machine_code.Int8Weight(_copy(blocks), zeros.numpy(), scale.numpy(), _bias(weight, len(values)))


def _float_weight(weight: PackedWeight) -> machine_code.FloatWeight:
    """Raises:
    ValueError: if no order of sums is torch's.
    """
    matrix = weight.matrix()
    n_outputs, n_inputs = matrix.shape
    blocks = pad(matrix, [0, 0, 0, -n_outputs % BLOCK]).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    values, bias = _copy(blocks), _bias(weight, n_outputs)
    x = torch.linspace(-1, 1, n_inputs)[None]
    expected = weight.project(x).numpy()
    # With AVX-512, oneDNN adds up half as many as it is given at a time.
    for n_part in (UNSPLIT_INPUTS, UNSPLIT_INPUTS // 2):
        loops = machine_code.FloatWeight(values, bias, n_part)
        if np.array_equal(machine_code.project(x.numpy(), loops), expected):
            return loops
    raise ValueError("another order of sums")


def _bias(weight: PackedWeight | FastestInt8Weight, n_outputs: int) -> machine_code.Floats:
    bias: machine_code.Floats = (torch.zeros(n_outputs) if weight.bias is None else weight.bias).numpy()
    return bias


def _copy(values: Tensor) -> Any:
    """As one contiguous array of NumPy, which asks for huge pages where an array is large: it is read at each step."""
    return np.array(values.numpy(), order="C")
