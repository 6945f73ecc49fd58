"""Instructions that numba has no names for, as functions for its compiled loops: what products take.

LLVM makes them for this processor. numba fuses nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from torchmoji_core.processor import has_int8

LANES = 8
"""32-bit words in a register of AVX2."""
_REGISTERS = 4
"""Of sums that are computed at a time for each row: four are enough that none waits for the one before it."""
ROWS = 3
"""That are computed together, so that weights are loaded once for all: their sums fit into AVX2's 16 registers."""
BLOCK = LANES * _REGISTERS
"""Outputs that are computed together."""
QUAD = 4
"""Neighbouring 8-bit inputs, a word, whose products go to one sum."""

_INT8, _INT16, _INT32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_WORDS, _PAIRS, _BYTES, _FLOATS = (
    ir.VectorType(_INT32, LANES), ir.VectorType(_INT16, 2 * LANES), ir.VectorType(_INT8, 4 * LANES),
    ir.VectorType(_FLOAT, LANES),
)  # fmt: skip


@intrinsic  # type: ignore[untyped-decorator]
def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return types.float32(
        types.float32, types.float32, types.float32
    ), lambda context, builder, signature, values: builder.fma(*values)


@intrinsic  # type: ignore[untyped-decorator]
def times_power_of_two(_: Any, value: Any, exponent: Any) -> Any:
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


def _adding_products(rows: int) -> Any:
    """Makes an intrinsic function of x [rows, words], weights [outputs / BLOCK, words, BLOCK words], and sums.

    sums [rows, outputs] += x W'. A word is an input in float32, or `QUAD` in int8, and those of a row or a block are
    contiguous. A block's sums stay in registers while all words are added to them, one after the other.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        plus_products = _plus_int8_products if signature.args[1].dtype == types.int8 else _plus_float_products
        x, weights, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, values, strict=True)
        )
        n_blocks, n_words, *_ = cgutils.unpack_tuple(builder, weights.shape)
        number: Callable[[int], Any] = lambda value: ir.Constant(n_words.type, value)  # noqa: E731

        def part(array: Any, index: Any, kind: Any) -> Any:
            """Pointer to what is at an index of the first axis."""
            stride, *_ = cgutils.unpack_tuple(builder, array.strides)
            begin = builder.gep(builder.bitcast(array.data, _INT8.as_pointer()), [builder.mul(index, stride)])
            return builder.bitcast(begin, kind.as_pointer())

        x_of_row = [part(x, number(row), _INT32) for row in range(rows)]
        sums_of_row = [part(sums, number(row), _WORDS) for row in range(rows)]
        registers = [number(register) for register in range(_REGISTERS)]
        accumulators = [[cgutils.alloca_once(builder, _WORDS) for _ in registers] for _ in x_of_row]
        with cgutils.for_range(builder, n_blocks) as block:
            weight = part(weights, block.index, _WORDS)
            first = builder.mul(block.index, number(_REGISTERS))
            places = [
                (builder.gep(of_row, [builder.add(first, register)]), accumulator)
                for of_row, of_registers in zip(sums_of_row, accumulators, strict=True)
                for register, accumulator in zip(registers, of_registers, strict=True)
            ]
            for place, accumulator in places:
                builder.store(builder.load(place, align=4), accumulator)
            with cgutils.for_range(builder, n_words) as word:
                first = builder.mul(word.index, number(_REGISTERS))
                loaded = [
                    builder.load(builder.gep(weight, [builder.add(first, register)]), align=1) for register in registers
                ]
                for of_row, of_registers in zip(x_of_row, accumulators, strict=True):
                    inputs = _in_all_lanes(builder, builder.load(builder.gep(of_row, [word.index]), align=1))
                    for of_register, accumulator in zip(loaded, of_registers, strict=True):
                        more = plus_products(builder, builder.load(accumulator), inputs, of_register)
                        builder.store(more, accumulator)
            for place, accumulator in places:
                builder.store(builder.load(accumulator), place, align=4)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def add(_: Any, x: Any, weights: Any, sums: Any) -> Any:
        return types.void(x, weights, sums), code

    return add


add_products_of_one_row, add_products_of_rows = _adding_products(1), _adding_products(ROWS)


def _in_all_lanes(builder: Any, word: Any) -> Any:
    undefined = ir.Constant(_WORDS, ir.Undefined)
    in_first_lane = builder.insert_element(undefined, word, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(in_first_lane, undefined, ir.Constant(_WORDS, [0] * LANES))


def _plus_float_products(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """sums + products, rounded once, as oneDNN adds them."""
    function = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, _FLOATS])
    fused = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), function)
    values = [builder.bitcast(value, _FLOATS) for value in (inputs, weights, sums)]
    return builder.bitcast(builder.call(fused, values), _WORDS)


def _plus_int8_products(builder: Any, sums: Any, inputs: Any, weights: Any) -> Any:
    """sums + products of four neighbours each, of uint8 and int8.

    AVX2 adds the products of two neighbours in 16 bits, which `QuantizedMatrix` leaves room for.
    """
    module = builder.module
    if has_int8():
        of_four = ir.FunctionType(_WORDS, [_WORDS, _WORDS, _WORDS])
        return builder.call(
            module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.256", (), of_four), [sums, inputs, weights]
        )
    of_two = module.declare_intrinsic("llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(_PAIRS, [_BYTES, _BYTES]))
    of_pairs = module.declare_intrinsic("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(_WORDS, [_PAIRS, _PAIRS]))
    pairs = builder.call(of_two, [builder.bitcast(value, _BYTES) for value in (inputs, weights)])
    return builder.add(sums, builder.call(of_pairs, [pairs, ir.Constant(_PAIRS, [1] * (2 * LANES))]))
