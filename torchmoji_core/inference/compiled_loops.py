"""Loops that numba compiles for this processor: a network for packed rows of tokens.

torch's operators cost a microsecond or more each, whatever their size, a product twenty, and several times as much when
the caches have forgotten them. With a dozen of them a step, one text takes longer to call than to compute. Here a
network is two calls, without the interpreter's lock. Of many rows, what is computed of a few stays in the cache until
it is used, and with AVX2 alone 8-bit products are faster than the libraries'.

The bits are those of `network`: the same operations in the same order, fused where torch's kernels fuse them. That
depends on torch's version, so `compiled` compares before it trusts.
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
from numba.core.codegen import get_host_cpu_features
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
from torchmoji_core.processor import has_int8

_LOGGER = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

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
_ROWS_AT_A_TIME = 48
"""Whose sums are computed together: of so many they are still in the cache when they are used."""


_compiled = partial(njit, error_model="numpy")  # a check for zero before each division would keep loops from vectors


def check_processor() -> None:
    """See that numba compiles for all of this processor: LLVM ends the process where it lacks instructions of loops.

    Raises:
        ValueError: if it has been told of others, or does not know all of them.
    """
    has = {feature[1:] for feature in get_host_cpu_features().split(",") if feature.startswith("+")}
    is_vnni = "avxvnni" in has or {"avx512vnni", "avx512vl"} <= has
    if config.CPU_FEATURES is not None or not {"avx2", "fma"} <= has or (has_int8() and not is_vnni):
        raise ValueError(
            "numba does not use the instructions of this processor; if NUMBA_CPU_NAME, NUMBA_CPU_FEATURES or "
            "NUMBA_ENABLE_AVX is set, unset it"
        )


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
    # numba tells processors apart, but not one that is kept to AVX2 by torch's variables.
    return hashlib.sha256(f"{has_int8()}{source}".encode()).hexdigest()[:8]


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
    n_part: int
    """Inputs whose products are added up before they are added to those of others."""
    scale: Floats
    """[outputs], ones."""
    bias: Floats
    """[outputs]"""


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


def _int8_products(x: Any, weight: Any) -> Any:
    """Halved inputs [rows, inputs] -> sums, [rows, outputs], to be scaled."""
    encoded = np.empty(x.shape, np.uint8)
    sums = np.empty((len(x), len(weight.zeros)), np.int32)
    for row in range(len(x)):
        _encode(x[row], encoded[row])
        _copy(weight.zeros, sums[row])
    _add_products(encoded, weight.values, sums)
    return sums


def _float_products(x: Any, weight: Any) -> Any:
    """x [rows, inputs] -> x W', [rows, outputs rounded up], as `kernels.PackedWeight` adds them up."""
    n_rows, n_inputs = x.shape
    sums = np.zeros((n_rows, len(weight.values) * BLOCK), np.float32)
    for call in range(0, n_inputs, UNSPLIT_INPUTS):
        of_call = sums if call == 0 else np.zeros(sums.shape, np.float32)
        end_of_call = min(call + UNSPLIT_INPUTS, n_inputs)
        for part in range(call, end_of_call, weight.n_part):
            end = min(part + weight.n_part, end_of_call)
            of_part = of_call if part == call else np.zeros(sums.shape, np.float32)
            _add_products(x[:, part:end], weight.values[:, part:end], of_part)
            if part > call:
                for row in range(n_rows):
                    _add(of_part[row], of_call[row])
        if call > 0:
            for row in range(n_rows):
                _add(of_call[row], sums[row])
    return sums


def _products(x: Any, weight: Any) -> Any:
    raise NotImplementedError("only compiled code calls it")


@overload(_products)  # type: ignore[untyped-decorator]
def _products_by_kind(x: Any, weight: Any) -> Any:
    return _int8_products if weight.instance_class is Int8Weight else _float_products


@_compiled  # type: ignore[untyped-decorator]
def _add_up(input_sums: Any, recurrent_sums: Any, direction: Any, gates: Any) -> None:
    """Gates [4 * hidden] of one row."""
    inputs, recurrent = direction.inputs, direction.recurrent
    for j in range(len(gates)):
        of_inputs = Float(input_sums[j]) * inputs.scale[j] + inputs.bias[j]
        gates[j] = of_inputs + Float(recurrent_sums[j]) * recurrent.scale[j]


@_compiled  # type: ignore[untyped-decorator]
def _run(inputs: Any, places: Any, batch_sizes: Any, direction: Any, outputs: Any) -> None:
    """As `network.Direction`, of inputs not encoded; no places if they are in the order of tokens."""
    n_steps, n_rows, size = len(batch_sizes), batch_sizes[0], outputs.shape[1]
    is_by_step = len(places) == 0 and n_rows >= _ROWS_AT_A_TIME
    input_sums = _products(inputs[:0] if is_by_step else inputs, direction.inputs)
    sums = np.zeros((min(_ROWS_AT_A_TIME, n_rows), 4 * size), input_sums.dtype)
    cell, hidden = np.zeros((n_rows, size), np.float32), np.zeros((n_rows, size), np.float32)
    gates = np.empty(4 * size, np.float32)
    begin = len(outputs) if direction.reverse else 0
    for taken in range(n_steps):
        n_present = batch_sizes[n_steps - 1 - taken if direction.reverse else taken]
        if direction.reverse:
            begin -= n_present
        for first in range(0, n_present, _ROWS_AT_A_TIME):
            end = min(first + _ROWS_AT_A_TIME, n_present)
            if is_by_step:
                input_sums = _products(inputs[begin + first : begin + end], direction.inputs)
            if taken > 0:
                sums = _products(hidden[first:end], direction.recurrent)
            for row in range(first, end):
                token = begin + row
                place = row - first if is_by_step else places[token] if len(places) > 0 else token
                _add_up(input_sums[place], sums[row - first], direction, gates)
                _advance(gates, cell[row], hidden[row])
                _copy(hidden[row], outputs[token])
        if not direction.reverse:
            begin += n_present


@_compiled  # type: ignore[untyped-decorator]
def _run_layer(inputs: Any, places: Any, batch_sizes: Any, layer: Any, outputs: Any) -> None:
    size = outputs.shape[1] // 2
    _run(inputs, places, batch_sizes, layer.ahead, outputs[:, :size])
    _run(inputs, places, batch_sizes, layer.back, outputs[:, size:])


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
def run(
    vectors: Floats, places: Numbers, batch_sizes: Numbers, first: Layer, second: Layer, attention: Floats
) -> tuple[Floats, Floats]:
    """Both LSTMs, and the tokens' attention logits less their row's largest: one call, and arrays of one kind.

    Args:
        vectors: [distinct tokens, embedding], halved.
        places: of each token in the order of time, its row of them.
        batch_sizes: rows present at each step.
        first, second: the layers.
        attention: [4 * hidden + embedding], of halved features.

    Returns:
        features: [tokens, 4 * hidden + embedding], halved.
        logits: [tokens]
    """
    both = 2 * (len(first.ahead.inputs.bias) // 4)
    n_tokens, width = len(places), vectors.shape[1]
    features = np.empty((n_tokens, 2 * both + width), np.float32)
    for token in range(n_tokens):
        _copy(vectors[places[token]], features[token, 2 * both :])
    between = features[:, both : 2 * both]
    # All are views of one kind, for which loops are compiled once.
    _run_layer(vectors[:, :width], places, batch_sizes, first, between)
    _run_layer(between, places[:0], batch_sizes, second, features[:, :both])
    logits, largest = np.empty(n_tokens, np.float32), np.full(batch_sizes[0], -_INFINITE)
    token = 0
    for n_present in batch_sizes:
        for row in range(n_present):
            logits[token] = _dot(features[token], attention)
            largest[row] = max(largest[row], logits[token])
            token += 1
    token = 0
    for n_present in batch_sizes:
        for row in range(n_present):
            logits[token] -= largest[row]
            token += 1
    return features, logits


@_kept
def conclude(
    features: Floats, weights: Floats, batch_sizes: Numbers, kept: Numbers, output: FloatWeight
) -> tuple[Floats, Floats, Floats]:
    """Logits [rows, classes], embedding [rows, channels], the weighted average of a row's tokens, and attention.

    Args:
        features: [tokens, channels], halved.
        weights: [tokens], positive; divided by the sum of their row's they are the attention [rows, longest row].
        batch_sizes: rows present at each step.
        kept: the channels of the embedding.
        output: of the classes.
    """
    n_rows = batch_sizes[0]
    total, mean = np.zeros(n_rows, np.float32), np.zeros((n_rows, features.shape[1]), np.float32)
    token = 0
    for n_present in batch_sizes:
        for row in range(n_present):
            total[row] += weights[token]
            token += 1
    attention = np.zeros((n_rows, len(batch_sizes)), np.float32)
    token = 0
    for step in range(len(batch_sizes)):
        for row in range(batch_sizes[step]):
            weight = weights[token] / total[row]
            attention[row, step] = weight
            of_token, of_row = features[token], mean[row]
            for channel in range(len(of_row)):
                of_row[channel] = fused(_TWO * of_token[channel], weight, of_row[channel])
            token += 1
    embedding = np.empty((n_rows, len(kept)), np.float32)
    for row in range(n_rows):
        for channel in range(len(kept)):
            embedding[row, channel] = mean[row, kept[channel]]
    sums = _products(embedding, output)
    logits = np.empty((n_rows, len(output.bias)), np.float32)
    for row in range(n_rows):
        for j in range(len(output.bias)):
            logits[row, j] = sums[row, j] + output.bias[j]
    return logits, embedding, attention
