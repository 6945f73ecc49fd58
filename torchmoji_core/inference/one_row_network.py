"""A network for a single row, by the loops of `machine_code`: the same bits in less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from torchmoji_core.inference import machine_code
from torchmoji_core.inference.kernels import INT8_ZERO, UNSPLIT_INPUTS, FastestInt8Weight, PackedWeight, Weight
from torchmoji_core.inference.network import Direction, Layer, Network, Output, probabilities, product_rows

Loops = Callable[[Tensor, Tensor], None]
"""A layer: inputs [tokens, channels] -> halved hidden states, [tokens, 2 * hidden], to be filled."""


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
        self._layers = [_loops(layer) for layer in (network.first, network.second)]
        self._hidden = network.hidden
        self._attention = head.attention
        output = cast(PackedWeight, head.output)
        weights = _transposed(output), cast(Tensor, output.bias).numpy()
        self._output = *weights, _inputs_of_part(output, *weights)
        self._multi_label = head.multi_label
        self._kept = head.kept

    def __call__(self, vectors: Tensor, token: Tensor, batch_sizes: list[int]) -> Output:
        """See `Network.forward`; the vectors are those of all tokens in their order."""
        n_tokens, hidden = len(vectors), self._hidden
        features = vectors.new_zeros([product_rows(n_tokens), 4 * hidden + vectors.size(1)])
        present = features[:n_tokens]
        present[:, 4 * hidden :] = vectors
        between = present[:, 2 * hidden : 4 * hidden]
        self._layers[0](vectors, between)
        self._layers[1](between, present[:, : 2 * hidden])
        logits = self._attention.project(features)[:n_tokens, 0]
        weights = (logits - logits.amax()).exp_()
        mean = features.new_zeros([features.size(1)])
        machine_code.average(features.numpy(), weights.numpy(), mean.numpy())
        embedding = mean if self._kept is None else mean[self._kept]
        scores = torch.from_numpy(machine_code.project(embedding.numpy(), *self._output))
        return probabilities(scores[None], self._multi_label), embedding[None], weights[None]


def _is_float32(weight: Weight) -> bool:
    return isinstance(weight, PackedWeight) and weight.activation == torch.float32


def _loops(layer: Layer) -> Loops:
    return _int8_loops(layer) if isinstance(layer.ahead.recurrent, FastestInt8Weight) else _float_loops(layer)


def _int8_loops(layer: Layer) -> Loops:
    ahead, back = _int8_direction(layer.ahead), _int8_direction(layer.back)

    def run(inputs: Tensor, out: Tensor) -> None:
        machine_code.run_int8(inputs.numpy(), ahead, back, out.numpy())

    return run


def _int8_direction(direction: Direction) -> machine_code.Int8Direction:
    inputs, recurrent = cast(FastestInt8Weight, direction.inputs), cast(FastestInt8Weight, direction.recurrent)
    bias = cast(Tensor, inputs.bias).numpy()
    return machine_code.Int8Direction(_int8_weight(inputs), bias, _int8_weight(recurrent), direction.reverse)


def _int8_weight(weight: FastestInt8Weight) -> machine_code.Int8Weight:
    values, scale = weight.quantized()
    block, quad = machine_code.BLOCK, machine_code.QUAD
    blocks = values.reshape(len(values) // block, block, -1, quad).transpose(1, 2).contiguous()
    zeros = -INT8_ZERO * values.sum(1, dtype=torch.int32)
    return machine_code.Int8Weight(blocks.numpy(), zeros.numpy(), scale.numpy())


def _float_loops(layer: Layer) -> Loops:
    directions = [(each, _transposed(cast(PackedWeight, each.recurrent))) for each in (layer.ahead, layer.back)]

    def run(inputs: Tensor, out: Tensor) -> None:
        x = inputs.new_zeros([product_rows(len(inputs)), inputs.size(1)])
        x[: len(inputs)] = inputs
        for (direction, recurrent), part in zip(directions, out.chunk(2, 1), strict=True):
            machine_code.run_float(direction.inputs.project(x).numpy(), recurrent, direction.reverse, part.numpy())

    return run


def _inputs_of_part(output: PackedWeight, weights: machine_code.Floats, bias: machine_code.Floats) -> int:
    """How many inputs oneDNN adds up at a time: with AVX-512 half as many as it is given."""
    x = torch.linspace(-1, 1, len(weights))
    expected = output.project(x[None])[0].numpy()
    for n_part in (UNSPLIT_INPUTS, UNSPLIT_INPUTS // 2):
        if np.array_equal(machine_code.project(x.numpy(), weights, bias, n_part), expected):
            return n_part
    raise ValueError("another order of sums")


def _transposed(weight: PackedWeight) -> machine_code.Floats:
    values: machine_code.Floats = weight.matrix().t().contiguous().numpy()
    return values
