"""Loops that numba compiles for this processor: a network's parts for one row of tokens.

torch's operators cost a microsecond or more each, whatever their size, and a product twenty. With a dozen of them a
step, one text takes longer to call than to compute. Here a layer is one call, without the interpreter's lock.

The bits are those of `network`: the same operations in the same order, fused where torch's kernels fuse them. That
depends on torch's version, so `one_row` compares before it trusts. numba fuses nothing by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numpy.typing import NDArray

from torchmoji_core.inference.kernels import INT8_STEPS, INT8_ZERO, UNSPLIT_INPUTS
from torchmoji_core.processor import has_int8

_LOGGER = logging.getLogger(__name__)

Floats = NDArray[np.float32]

LANES = 8
"""32-bit sums in a register of AVX2."""
_REGISTERS = 4
"""Of sums that are computed at a time for each row: four are enough that none waits for the one before it."""
BLOCK = LANES * _REGISTERS
"""Outputs that are computed together."""
QUAD = 4
"""Neighbouring inputs whose products go to one sum."""

_INT8, _INT16, _INT32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_SUMS, _PAIRS, _BYTES = (
    ir.VectorType(_INT32, LANES), ir.VectorType(_INT16, 2 * LANES), ir.VectorType(_INT8, 4 * LANES)
)  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def _fused(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return types.float32(
        types.float32, types.float32, types.float32
    ), lambda context, builder, signature, values: builder.fma(*values)


@intrinsic  # type: ignore[untyped-decorator]
def _times_power_of_two(_: Any, value: Any, exponent: Any) -> Any:
    """value * 2 ** exponent, a whole number, in two halves, since a float has no exponent beyond 127."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value, exponent = values
        whole = builder.fptosi(exponent, _INT32)
        half = builder.ashr(whole, ir.Constant(_INT32, 1))
        for part in (half, builder.sub(whole, half)):
            bits = builder.shl(builder.add(part, ir.Constant(_INT32, 127)), ir.Constant(_INT32, 23))
            value = builder.fmul(value, builder.bitcast(bits, _FLOAT))
        return value

    return types.float32(types.float32, types.float32), code


def _adding_int8_products(rows: int) -> Any:
    """Makes an intrinsic function of uint8 x [rows, inputs], weights, int32 sums [rows, outputs]: sums += x W'.

    Weights are int8 [outputs / BLOCK, inputs / QUAD, BLOCK, QUAD]; all are contiguous. AVX2 adds the products of two
    neighbours in 16 bits, which `QuantizedMatrix` leaves room for.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, values, strict=True)
        ]
        n_blocks, n_quads, *_ = cgutils.unpack_tuple(builder, arrays[1].shape)
        x, weight, total = (
            builder.bitcast(array.data, kind.as_pointer())
            for array, kind in zip(arrays, (_INT32, _BYTES, _SUMS), strict=True)
        )
        undefined = ir.Constant(_SUMS, ir.Undefined)
        number: Callable[[int], Any] = lambda value: ir.Constant(n_quads.type, value)  # noqa: E731

        def place(pointer: Any, major: Any, width: Any, minor: Any) -> Any:
            return builder.gep(pointer, [builder.add(builder.mul(major, width), minor)])

        with cgutils.for_range(builder, n_blocks) as block:
            first = builder.mul(block.index, number(_REGISTERS))
            width = builder.mul(n_blocks, number(_REGISTERS))
            sums = {}
            for row in range(rows):
                for register in range(_REGISTERS):
                    at = place(total, number(row), width, builder.add(first, number(register)))
                    sums[row, register] = at, cgutils.alloca_once(builder, _SUMS)
            for at, accumulator in sums.values():
                builder.store(builder.load(at, align=4), accumulator)
            with cgutils.for_range(builder, n_quads) as quad:
                step = builder.add(builder.mul(block.index, n_quads), quad.index)
                weights = [
                    builder.load(place(weight, step, number(_REGISTERS), number(register)), align=1)
                    for register in range(_REGISTERS)
                ]
                for row in range(rows):
                    one = builder.load(place(x, number(row), n_quads, quad.index), align=1)
                    in_first_lane = builder.insert_element(undefined, one, ir.Constant(_INT32, 0))
                    in_all_lanes = builder.shuffle_vector(in_first_lane, undefined, ir.Constant(_SUMS, [0] * LANES))
                    inputs = builder.bitcast(in_all_lanes, _BYTES)
                    for register in range(_REGISTERS):
                        _, accumulator = sums[row, register]
                        more = _plus_products(builder, builder.load(accumulator), inputs, weights[register])
                        builder.store(more, accumulator)
            for at, accumulator in sums.values():
                builder.store(builder.load(accumulator), at, align=4)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def add(_: Any, x: Any, weights: Any, sums: Any) -> Any:
        return types.void(x, weights, sums), code

    return add


_add_int8_products, _add_int8_products_of_four = _adding_int8_products(1), _adding_int8_products(4)


def _plus_products(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """sums + products of four neighbours each."""
    module = builder.module
    if has_int8():
        of_four = ir.FunctionType(_SUMS, [_SUMS, _SUMS, _SUMS])
        words = [builder.bitcast(value, _SUMS) for value in (inputs, weights)]
        return builder.call(module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.256", (), of_four), [sums, *words])
    of_two = module.declare_intrinsic("llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(_PAIRS, [_BYTES, _BYTES]))
    of_pairs = module.declare_intrinsic("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(_SUMS, [_PAIRS, _PAIRS]))
    pairs = builder.call(of_two, [inputs, weights])
    return builder.add(sums, builder.call(of_pairs, [pairs, ir.Constant(_PAIRS, [1] * (2 * LANES))]))


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
    """Compiled, and kept in a file for other processes, where numba finds a folder for it."""
    try:
        return _compiled(nogil=True, cache=True)(function)
    except RuntimeError:  # as numba says it
        _say_that_none_is_kept()
        return _compiled(nogil=True)(function)


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
    s = _fused(q, -_LOG_2_LOW, _fused(q, -_LOG_2_HIGH, x))
    sum_ = _fused(_fused(_fused(_fused(_fused(_C7, s, _C6), s, _C5), s, _C4), s, _C3), s, _C2)
    exponential = _times_power_of_two(_ONE + _fused(s * s, sum_, s), q)
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
        cell[j] = _fused(_FOUR * _clamped(i[j]), candidate, cell[j] * _clamped(f[j]))
        output[j] = (_sigmoid(cell[j]) - _HALF) * _clamped(o[j])


class Int8Weight(NamedTuple):
    """W as whole numbers with a scale for each output."""

    values: NDArray[np.int8]
    """[outputs / BLOCK, inputs / QUAD, BLOCK, QUAD]"""
    zeros: NDArray[np.int32]
    """[outputs], the sums of activations of zero, negative."""
    scale: Floats
    """[outputs], of the sums."""


class Int8Direction(NamedTuple):
    """One direction of a layer."""

    inputs: Int8Weight
    bias: Floats
    """[4 * hidden]"""
    recurrent: Int8Weight
    reverse: bool
    """Whether time runs backwards."""


_ENCODING = Float(INT8_STEPS), Float(INT8_ZERO + 0.5)


@_compiled  # type: ignore[untyped-decorator]
def _encode(x: Any, out: Any) -> None:
    """As `kernels.Int8Encoding`, for vectors."""
    steps, half_up = _ENCODING
    for j in range(len(x)):
        out[j] = np.uint8(_fused(x[j], steps, half_up))


@_compiled  # type: ignore[untyped-decorator]
def _products(x: Any, weight: Any, sums: Any) -> None:
    """x [rows, inputs] times W', [rows, outputs], as whole numbers."""
    sums[:] = weight.zeros
    fours = len(x) // 4 * 4
    for row in range(0, fours, 4):
        _add_int8_products_of_four(x[row : row + 4], weight.values, sums[row : row + 4])
    for row in range(fours, len(x)):
        _add_int8_products(x[row : row + 1], weight.values, sums[row : row + 1])


@_compiled  # type: ignore[untyped-decorator]
def _run_int8(x: Any, direction: Any, outputs: Any) -> None:
    n_tokens, size = outputs.shape
    gates, cell, hidden = np.empty(4 * size, np.float32), np.zeros(size, np.float32), np.empty(size, np.float32)
    state = np.empty((1, size), np.uint8)
    of_inputs, of_state = np.empty((n_tokens, 4 * size), np.int32), np.empty((1, 4 * size), np.int32)
    inputs, bias, recurrent = direction.inputs.scale, direction.bias, direction.recurrent.scale
    _products(x, direction.inputs, of_inputs)
    for taken in range(n_tokens):
        step = n_tokens - 1 - taken if direction.reverse else taken
        of_step = of_inputs[step]
        for j in range(4 * size):
            gates[j] = Float(of_step[j]) * inputs[j] + bias[j]
        if taken > 0:
            _encode(hidden, state[0])
            _products(state, direction.recurrent, of_state)
            for j in range(4 * size):
                gates[j] += Float(of_state[0, j]) * recurrent[j]
        _advance(gates, cell, hidden)
        outputs[step] = hidden


@_kept
def run_int8(inputs: Floats, ahead: Int8Direction, back: Int8Direction, outputs: Floats) -> None:
    """A layer in int8.

    Args:
        inputs: [tokens, channels], halved.
        ahead, back: the directions.
        outputs: [tokens, 2 * hidden], to be filled with halved hidden states.
    """
    encoded = np.empty(inputs.shape, np.uint8)
    for token in range(len(inputs)):
        _encode(inputs[token], encoded[token])
    size = outputs.shape[1] // 2
    _run_int8(encoded, ahead, outputs[:, :size])
    _run_int8(encoded, back, outputs[:, size:])


@_compiled  # type: ignore[untyped-decorator]
def _add_products(x: Any, weights: Any, sums: Any) -> None:
    """sums += x W', of weights [inputs, outputs], input after input, as oneDNN adds them."""
    fours = len(x) // 4 * 4
    for k in range(0, fours, 4):
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        for j in range(len(sums)):
            sum_ = _fused(b, weights[k + 1, j], _fused(a, weights[k, j], sums[j]))
            sums[j] = _fused(d, weights[k + 3, j], _fused(c, weights[k + 2, j], sum_))
    for k in range(fours, len(x)):
        for j in range(len(sums)):
            sums[j] = _fused(x[k], weights[k, j], sums[j])


@_kept
def run_float(products: Floats, recurrent: Floats, reverse: bool, outputs: Floats) -> None:
    """A direction in float32.

    Args:
        products: [at least tokens, 4 * hidden], of the inputs.
        recurrent: weights, [hidden, 4 * hidden].
        reverse: whether time runs backwards.
        outputs: [tokens, hidden], to be filled with halved hidden states.
    """
    n_tokens, size = outputs.shape
    gates, cell, hidden = np.empty(4 * size, np.float32), np.zeros(size, np.float32), np.empty(size, np.float32)
    of_state = np.empty(4 * size, np.float32)
    for taken in range(n_tokens):
        step = n_tokens - 1 - taken if reverse else taken
        gates[:] = products[step]
        if taken > 0:
            of_state[:] = _ZERO
            _add_products(hidden, recurrent, of_state)
            for j in range(4 * size):
                gates[j] += of_state[j]
        _advance(gates, cell, hidden)
        outputs[step] = hidden


@_kept
def average(features: Floats, weights: Floats, mean: Floats) -> None:
    """The weighted average of a row's tokens.

    Args:
        features: [at least tokens, channels], halved.
        weights: [tokens], positive; divided by their sum.
        mean: [channels], zeros, to be filled.
    """
    total = _ZERO
    for weight in weights:
        total += weight
    for token in range(len(weights)):
        weights[token] /= total
        of_token, weight = features[token], weights[token]
        for channel in range(len(mean)):
            mean[channel] = _fused(_TWO * of_token[channel], weight, mean[channel])


@_kept
def project(x: Floats, weights: Floats, bias: Floats, n_part: int) -> Floats:
    """x W' + bias, [outputs], of weights [inputs, outputs].

    Args:
        n_part: inputs whose products are added up before they are added to those of others.
    """
    sums, of_call, of_part = np.zeros_like(bias), np.empty_like(bias), np.empty_like(bias)
    for call in range(0, len(x), UNSPLIT_INPUTS):
        of_call[:] = _ZERO
        end_of_call = min(call + UNSPLIT_INPUTS, len(x))
        for part in range(call, end_of_call, n_part):
            end = min(part + n_part, end_of_call)
            of_part[:] = _ZERO
            _add_products(x[part:end], weights[part:end], of_part)
            for j in range(len(bias)):
                of_call[j] += of_part[j]
        for j in range(len(bias)):
            sums[j] += of_call[j]
    for j in range(len(bias)):
        sums[j] += bias[j]
    return sums
