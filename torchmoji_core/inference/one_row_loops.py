"""Loops that numba compiles for this processor: a network for one row of tokens.

torch's operators cost a microsecond or more each, whatever their size, a product twenty, and several times as much when
the caches have forgotten them. With a dozen of them a step, one text takes longer to call than to compute. Here a
network is two calls, without the interpreter's lock.

The bits are those of `network`: the same operations in the same order, fused where torch's kernels fuse them. That
depends on torch's version, so `one_row` compares before it trusts.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.core import config
from numba.extending import overload
from numpy.typing import NDArray

from torchmoji_core.inference import kernels, machine_code
from torchmoji_core.inference.kernels import INT8_STEPS, INT8_ZERO, UNSPLIT_INPUTS
from torchmoji_core.inference.machine_code import (
    BLOCK,
    LANES,
    ROWS,
    add_products_of_one_row,
    add_products_of_rows,
    fused,
    times_power_of_two,
)

_LOGGER = logging.getLogger(__name__)

Floats = NDArray[np.float32]

Float = np.float32
_ZERO, _HALF, _ONE, _TWO, _FOUR = Float(0), Float(0.5), Float(1), Float(2), Float(4)
# exp(x) = 2 ** q * exp(s), s = x - q log 2, in float32 as SLEEF has it, with which torch computes its sigmoid: log 2 in
# two parts, whose first times q is exact, and a polynomial of degree 7 (SLEEF, "expf", error below one ulp).
_INVERSE_LOG_2, _LOG_2_HIGH, _LOG_2_LOW = (
    Float(1.4426950408889634),
    Float(0.693145751953125),
    Float(1.428606765330187e-06),
)
_C7, _C6, _C5, _C4, _C3, _C2 = (
    Float(0.000198527617612853646), Float(0.00139304355252534151), Float(0.00833336077630519867),
    Float(0.0416664853692054749), Float(0.166666671633720398), Float(0.5),
)  # fmt: skip
_TO_WHOLE = Float(1.5 * 2**23)
"""Added and taken off again it rounds to a whole number."""
_UNDERFLOW, _OVERFLOW, _INFINITE = Float(-104), Float(100), Float(np.inf)


_compiled = partial(njit, error_model="numpy")  # a check for zero before each division would keep loops from vectors


def check_processor() -> None:
    """See that numba compiles for this processor: where another lacks instructions of the loops, LLVM ends the process.

    Raises:
        ValueError: if it has been told of another.
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        raise ValueError("NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set")


def _kept(function: Any) -> Any:
    """Compiled, and kept in a file for other processes, where numba finds a folder for it.

    For numba to see that a kept one is old it looks at this module alone; so what others have in it is in its name.
    """
    function.__qualname__ += f"_{_version_of_others()}"
    try:
        return _compiled(nogil=True, cache=True)(function)
    except RuntimeError:  # as numba says it
        _say_that_none_is_kept()
        return _compiled(nogil=True)(function)


@cache
def _version_of_others() -> str:
    source = "".join(map(inspect.getsource, (kernels, machine_code)))
    return hashlib.sha256(source.encode()).hexdigest()[:8]


@cache
def _say_that_none_is_kept() -> None:
    _LOGGER.warning(
        "numba has no folder to keep compiled loops in, so each process takes seconds to compile them; "
        "set NUMBA_CACHE_DIR to one that can be written to"
    )


@_compiled(inline="always")  # type: ignore[untyped-decorator]
def _sigmoid(x: Any) -> Any:
    x = -x
    q = (x * _INVERSE_LOG_2 + _TO_WHOLE) - _TO_WHOLE
    s = fused(q, -_LOG_2_LOW, fused(q, -_LOG_2_HIGH, x))
    sum_ = fused(fused(fused(fused(fused(_C7, s, _C6), s, _C5), s, _C4), s, _C3), s, _C2)
    exponential = times_power_of_two(_ONE + fused(s * s, sum_, s), q)
    exponential = _ZERO if x < _UNDERFLOW else exponential
    exponential = _INFINITE if x > _OVERFLOW else exponential
    return _ONE / (_ONE + exponential)


@_compiled(inline="always")  # type: ignore[untyped-decorator]
def _clamped(x: Any) -> Any:
    x = _ZERO if x < _ZERO else x
    return _ONE if x > _ONE else x


@_compiled  # type: ignore[untyped-decorator]
def _advance(gates: Any, cell: Any, output: Any) -> None:
    """As `network._advance`, for one row."""
    size = len(cell)
    i, f, o, g = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
    for j in range(size):
        candidate = _sigmoid(g[j]) - _HALF
        cell[j] = fused(_FOUR * _clamped(i[j]), candidate, cell[j] * _clamped(f[j]))
        output[j] = (_sigmoid(cell[j]) - _HALF) * _clamped(o[j])


@_compiled  # type: ignore[untyped-decorator]
def _add_products(x: Any, weights: Any, sums: Any) -> None:
    """sums [rows, outputs] += x W'; see `_adding_products`. A block stays in the cache for all rows."""
    together = len(x) // ROWS * ROWS
    for block in range(len(weights)):
        of_block, sums_of_block = weights[block : block + 1], sums[:, block * BLOCK : (block + 1) * BLOCK]
        for row in range(0, together, ROWS):
            add_products_of_rows(x[row : row + ROWS], of_block, sums_of_block[row : row + ROWS])
        for row in range(together, len(x)):
            add_products_of_one_row(x[row : row + 1], of_block, sums_of_block[row : row + 1])


class Int8Weight(NamedTuple):
    """W as whole numbers with a scale for each output."""

    values: NDArray[np.int8]
    """[outputs / BLOCK, inputs / QUAD, BLOCK, QUAD]"""
    zeros: NDArray[np.int32]
    """[outputs], the sums of activations of zero, negative."""
    scale: Floats
    """[outputs], of the sums."""
    bias: Floats
    """[outputs], added when they are scaled."""


class FloatWeight(NamedTuple):
    """W in float32."""

    values: Floats
    """[outputs / BLOCK rounded up, inputs, BLOCK]"""
    bias: Floats
    """[outputs]"""
    n_part: int
    """Inputs whose products are added up before they are added to those of others."""


class Direction(NamedTuple):
    """One direction of a layer."""

    inputs: Int8Weight | FloatWeight
    recurrent: Int8Weight | FloatWeight
    """Its bias is not used."""
    reverse: bool
    """Whether time runs backwards."""


class Layer(NamedTuple):
    """Both directions."""

    ahead: Direction
    back: Direction


_ENCODING = Float(INT8_STEPS), Float(INT8_ZERO + 0.5)


@_compiled  # type: ignore[untyped-decorator]
def _copy(values: Any, out: Any) -> None:
    for j in range(len(values)):
        out[j] = values[j]


@_compiled  # type: ignore[untyped-decorator]
def _add(values: Any, sums: Any) -> None:
    for j in range(len(values)):
        sums[j] += values[j]


@_compiled  # type: ignore[untyped-decorator]
def _encode(x: Any, out: Any) -> None:
    """As `kernels.Int8Encoding`, for vectors."""
    steps, half_up = _ENCODING
    for j in range(len(x)):
        out[j] = np.uint8(fused(x[j], steps, half_up))


# Loops below that NumPy has as one operation: numba takes a second to compile what checks the shapes.


def _project_int8(x: Any, weight: Any) -> Any:
    """Halved inputs [rows, inputs] -> x W' + bias, [rows, outputs]."""
    encoded = np.empty(x.shape, np.uint8)
    sums = np.empty((len(x), len(weight.zeros)), np.int32)
    for row in range(len(x)):
        _encode(x[row], encoded[row])
        _copy(weight.zeros, sums[row])
    _add_products(encoded, weight.values, sums)
    result = np.empty(sums.shape, np.float32)
    for row in range(len(x)):
        of_row, of_result = sums[row], result[row]
        for j in range(len(of_row)):
            of_result[j] = Float(of_row[j]) * weight.scale[j] + weight.bias[j]
    return result


@_compiled  # type: ignore[untyped-decorator]
def _add_float(x: Any, weight: Any, sums: Any) -> None:
    """As `kernels.PackedWeight.add_to`, of sums [rows, outputs rounded up]."""
    n_rows, n_inputs = x.shape
    for call in range(0, n_inputs, UNSPLIT_INPUTS):
        of_call = np.zeros(sums.shape, np.float32)
        end_of_call = min(call + UNSPLIT_INPUTS, n_inputs)
        for part in range(call, end_of_call, weight.n_part):
            end = min(part + weight.n_part, end_of_call)
            of_part = of_call if part == call else np.zeros(sums.shape, np.float32)
            _add_products(x[:, part:end], weight.values[:, part:end], of_part)
            if part > call:
                for row in range(n_rows):
                    _add(of_part[row], of_call[row])
        for row in range(n_rows):
            _add(of_call[row], sums[row])


def _project_float(x: Any, weight: Any) -> Any:
    """x [rows, inputs] -> x W' + bias, [rows, outputs]."""
    sums = np.zeros((len(x), len(weight.values) * BLOCK), np.float32)
    _add_float(x, weight, sums)
    result = np.empty((len(x), len(weight.bias)), np.float32)  # not a view: loops over whole arrays become vectors
    for row in range(len(x)):
        for j in range(len(weight.bias)):
            result[row, j] = sums[row, j] + weight.bias[j]
    return result


def _add_recurrent_int8(hidden: Any, weight: Any, gates: Any) -> None:
    encoded, sums = np.empty((1, len(hidden)), np.uint8), np.empty((1, len(gates)), np.int32)
    _encode(hidden, encoded[0])
    _copy(weight.zeros, sums[0])
    _add_products(encoded, weight.values, sums)
    for j in range(len(gates)):
        gates[j] += Float(sums[0, j]) * weight.scale[j]


def _add_recurrent_float(hidden: Any, weight: Any, gates: Any) -> None:
    _add_float(hidden.reshape(1, -1), weight, gates.reshape(1, -1))


def _project(x: Any, weight: Any) -> Any:
    raise NotImplementedError("only compiled code calls it")


def _add_recurrent(hidden: Any, weight: Any, gates: Any) -> None:
    raise NotImplementedError("only compiled code calls it")


@overload(_project)  # type: ignore[untyped-decorator]
def _project_by_kind(x: Any, weight: Any) -> Any:
    return _project_int8 if weight.instance_class is Int8Weight else _project_float


@overload(_add_recurrent)  # type: ignore[untyped-decorator]
def _add_recurrent_by_kind(hidden: Any, weight: Any, gates: Any) -> Any:
    return _add_recurrent_int8 if weight.instance_class is Int8Weight else _add_recurrent_float


@_compiled  # type: ignore[untyped-decorator]
def _run(inputs: Any, direction: Any, outputs: Any) -> None:
    n_tokens, size = outputs.shape
    gates = _project(inputs, direction.inputs)
    cell, hidden = np.zeros(size, np.float32), np.empty(size, np.float32)
    for taken in range(n_tokens):
        step = n_tokens - 1 - taken if direction.reverse else taken
        if taken > 0:
            _add_recurrent(hidden, direction.recurrent, gates[step])
        _advance(gates[step], cell, hidden)
        _copy(hidden, outputs[step])


@_compiled  # type: ignore[untyped-decorator]
def _run_layer(inputs: Any, layer: Any, outputs: Any) -> None:
    size = outputs.shape[1] // 2
    _run(inputs, layer.ahead, outputs[:, :size])
    _run(inputs, layer.back, outputs[:, size:])


@_compiled  # type: ignore[untyped-decorator]
def _dot(x: Any, weights: Any) -> Any:
    """As oneDNN adds the products of a single output: in the lanes of a register, whose halves it adds, then pairs."""
    total, lanes = _ZERO, np.empty(LANES, np.float32)
    for call in range(0, len(x), UNSPLIT_INPUTS):
        lanes[:] = _ZERO
        for k in range(call, min(call + UNSPLIT_INPUTS, len(x)), LANES):
            for lane in range(LANES):
                lanes[lane] = fused(x[k + lane], weights[k + lane], lanes[lane])
        a, b, c, d = lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]
        total += (a + b) + (c + d)
    return total


@_kept
def run(features: Floats, first: Layer, second: Layer, attention: Floats) -> Floats:
    """Both LSTMs of a row, and its tokens' attention logits less their largest: one call, and arrays of one kind.

    Args:
        features: [tokens, 4 * hidden + embedding], halved: the tokens' embedding at the end, in front of it room for
            the hidden states of the second layer and of the first, to be filled.
        first, second: the layers.
        attention: [4 * hidden + embedding], of halved features.
    """
    both = 2 * (len(first.ahead.inputs.bias) // 4)
    between = features[:, both : 2 * both]
    # All are views of one kind, for which loops are compiled once.
    _run_layer(features[:, 2 * both :], first, between)
    _run_layer(between, second, features[:, :both])
    logits = np.empty(len(features), np.float32)
    largest = -_INFINITE
    for token in range(len(features)):
        logits[token] = _dot(features[token], attention)
        largest = max(largest, logits[token])
    for token in range(len(features)):
        logits[token] -= largest
    return logits


@_kept
def conclude(features: Floats, weights: Floats, kept: NDArray[np.int64], output: FloatWeight) -> tuple[Floats, Floats]:
    """Logits [1, classes] and embedding [1, channels]: the weighted average of a row's tokens.

    Args:
        features: [at least tokens, channels], halved.
        weights: [tokens], positive; divided by their sum.
        kept: the channels of the embedding.
        output: of the classes.
    """
    total = _ZERO
    for weight in weights:
        total += weight
    mean = np.zeros(features.shape[1], np.float32)
    for token in range(len(weights)):
        weights[token] /= total
        of_token, weight = features[token], weights[token]
        for channel in range(len(mean)):
            mean[channel] = fused(_TWO * of_token[channel], weight, mean[channel])
    embedding = np.empty((1, len(kept)), np.float32)
    for channel in range(len(kept)):
        embedding[0, channel] = mean[kept[channel]]
    return _project(embedding, output), embedding
