"""Matrix products of the engine, and the table of all ways to compute them on a processor.

A precision says which numbers come out, to within rounding; an arithmetic is one implementation of it. Several
may have the same precision, and `choose` takes the first that starts on this machine: the fast ones use operators
that are internal to torch, so each is tried on numbers with a known answer before it is trusted.

    precision   arithmetic      activations   weights               products summed in
    fp32        oneDNN, MKL     float32       float32               float32
    bf16        oneDNN          bfloat16      bfloat16              float32, then rounded to bfloat16
    int8        oneDNN, exact   uint8         int8, scale a channel int32
    fp64        MKL             float64       float64               float64

All inputs of the LSTMs' products lie in [-1, 1], and the engine keeps them halved, in [-1/2, 1/2]. So int8 has one
fixed scale, 1/254, with zero at 128: no calibration, and a row's result cannot depend on its neighbours. A weight
channel has the scale max|w| / 127.

Tried for int8 and not kept: scales that minimize the squared error of the weights, and the first layer's input products
in float32 (neither changes the agreement of first choices beyond noise); FBGEMM's kernels, which quantize inside
(faster below 32 rows, 5 to 10 % slower above).

Every arithmetic gives a row the same bits whatever rows stand beside it (tests/core/test_kernels.py).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchmoji_core.errors import InputError, first_line, raise_shortage
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.options import check_choice
from torchmoji_core.processor import has_bfloat16, has_int8

_LOGGER = logging.getLogger(__name__)

INT8_STEPS = 254
"""Steps of a uint8 activation between -1/2 and 1/2."""
INT8_ZERO = 128
_MKL_ROWS, _MKL_COLUMNS = 24, 16
"""MKL takes other kernels, which differ by an ulp or two, for other numbers of rows: on AVX-512 for one to three, with
AVX2 for almost any. So it is always given as many. Of 24, all are summed in the same order whatever the kernels
(a multiple of 12 with AVX2, of 4 and 8 else), if the columns are a multiple of 16."""


class Weight(nn.Module, ABC):
    """A matrix W [outputs, inputs] prepared for products with encoded activations x [rows, inputs]."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """x W' + bias, [rows, outputs]."""

    @abstractmethod
    def add_to(self, sums: Tensor, x: Tensor) -> None:
        """sums += x W', [rows, outputs], of the elementwise type."""


class Encoding(nn.Module):
    """Activations in the products' type: here, one of torch's floats."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self._empty = torch.empty(0, dtype=kind)

    def zeros(self, rows: int, columns: int) -> Tensor:
        """[rows, columns] of the products' type, to be filled."""
        return self._empty.new_zeros([rows, columns])

    def encode(self, x: Tensor, out: Tensor) -> None:
        """Activations in [-1/2, 1/2] -> `out`, in the products' type. Overwrites nothing else."""
        out.copy_(x)


class Int8Encoding(Encoding):
    """uint8 of `INT8_STEPS` around `INT8_ZERO`."""

    def __init__(self) -> None:
        super().__init__(torch.uint8)
        # Conversion to an integer cuts off: half a step more makes it round to the nearest.
        self._half_up = torch.tensor(INT8_ZERO + 0.5)
        self._steps = INT8_STEPS

    def encode(self, x: Tensor, out: Tensor) -> None:
        out.copy_(torch.add(self._half_up, x, alpha=self._steps))


def _for_mkl(matrix: Tensor) -> Tensor:
    """W [outputs, inputs] -> [inputs, outputs rounded up]."""
    return pad(matrix, (0, 0, 0, -len(matrix) % _MKL_COLUMNS)).t().contiguous()


def _mkl_product(x: Tensor, matrix: Tensor, rows: int = _MKL_ROWS) -> Tensor:
    """x W' by torch's ordinary product, [rows, outputs rounded up], of W as `_for_mkl` has it."""
    missing = -len(x) % rows
    whole = pad(x, [0, 0, 0, missing]) if missing > 0 else x
    products = x.new_empty([len(whole), matrix.size(1)])
    for start in range(0, len(whole), rows):
        torch.mm(whole[start : start + rows], matrix, out=products[start : start + rows])
    return products[: len(x)]


class _MklWeight(Weight):
    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._outputs = len(matrix)
        self._matrix = _for_mkl(matrix)
        self._bias = bias

    def project(self, x: Tensor) -> Tensor:
        products = _mkl_product(x, self._matrix)[:, : self._outputs]
        bias = self._bias
        return products if bias is None else products + bias

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        sums += _mkl_product(x, self._matrix)[:, : self._outputs]


class _PackedWeight(Weight):
    """Packed once into the layout that oneDNN's kernels read."""

    def __init__(self, activation: torch.dtype, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._bias = bias
        # A single output has one order of summation anyway.
        self._inputs = matrix.shape[1] if len(matrix) == 1 else _UNSPLIT_INPUTS
        self._parts = [
            torch.ops.mkldnn._reorder_linear_weight(part.to(activation).contiguous(), _PACKED_FOR_ROWS)
            for part in matrix.split(self._inputs, dim=1)
        ]

    def project(self, x: Tensor) -> Tensor:
        sums = self._product(x, 0).float()
        for part in range(1, len(self._parts)):
            sums += self._product(x, part)
        bias = self._bias
        return sums if bias is None else sums.add_(bias)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        for part in range(len(self._parts)):
            sums += self._product(x, part)

    def _product(self, x: Tensor, part: int) -> Tensor:
        values = x[:, part * self._inputs : (part + 1) * self._inputs]
        if len(x) == 1:
            # Without AVX2, oneDNN's kernel for a single row sums in another order.
            values = values.repeat(2, 1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self._parts[part], None, "none", [], "")
        return product[: len(x)]


_PACKED_FOR_ROWS = 64
"""A hint for the layout; it fits any number of rows."""
_UNSPLIT_INPUTS = 1024
"""With more inputs, oneDNN splits sums into parts that depend on the number of rows."""


class _QuantizedMatrix:
    """W as int8 with a scale for each output channel."""

    def __init__(self, matrix: Tensor) -> None:
        # A channel of zeros would have the scale 0; any other does for it.
        largest = matrix.abs().amax(dim=1).clamp(min=torch.finfo(matrix.dtype).tiny * 127)
        self.scale = largest / 127
        self.values = (matrix / self.scale[:, None]).round().to(torch.int8)


class _OneDnnInt8Weight(Weight):
    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        quantized = _QuantizedMatrix(matrix)
        self._scale, self._bias = quantized.scale, bias
        self._zeros = torch.zeros(len(matrix), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(quantized.values, [_PACKED_FOR_ROWS, matrix.shape[1]])
        self._x_scale, self._x_zero = 1 / INT8_STEPS, INT8_ZERO

    def project(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self._x_scale, self._x_zero, self._packed, self._scale, self._zeros, self._bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        same = torch.ops.onednn.qlinear_pointwise(
            x, self._x_scale, self._x_zero, self._packed, self._scale, self._zeros, sums, None,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        # It writes to `sums`, but its signature does not say so: without a use TorchScript would leave it out.
        if same.size(0) != sums.size(0):
            raise RuntimeError("a product of another shape")


class _ExactInt8Weight(Weight):
    """The same integers in float32, which is exact up to 1,040 inputs at a time (1040 * 127 * 127 < 2 ** 24)."""

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        quantized = _QuantizedMatrix(matrix)
        self._outputs = len(matrix)
        self._parts = [_for_mkl(part.float()) for part in quantized.values.split(_EXACT_INPUTS, dim=1)]
        self._scale = quantized.scale / INT8_STEPS
        self._bias = matrix.new_zeros(len(matrix)) if bias is None else bias
        self._inputs, self._x_zero = _EXACT_INPUTS, INT8_ZERO

    def project(self, x: Tensor) -> Tensor:
        sums = self._bias.repeat(len(x), 1)
        self.add_to(sums, x)
        return sums

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        values = (x.float() - self._x_zero).split(self._inputs, 1)
        products = [torch.mm(values[part], matrix) for part, matrix in enumerate(self._parts)]
        sums.addcmul_(torch.stack(products).sum(0)[:, : self._outputs], self._scale)


_EXACT_INPUTS = 1024


@dataclass(frozen=True)
class Arithmetic:
    """How products are computed."""

    precision: str
    library: str
    activation: torch.dtype
    """Of encoded activations."""
    weight: Callable[[Tensor, Tensor | None], Weight]
    """Prepares W [outputs, inputs] and a bias [outputs], both of the elementwise type."""
    is_native: Callable[[], bool] = lambda: True
    """Whether this processor has instructions for it, so that it is not slower than the next best."""
    elementwise: torch.dtype = torch.float32
    """Of everything but the products."""
    table: torch.dtype = torch.float32
    """Of the embedding table: half precision where that is finer than what the products make of it."""
    exact: str = "fp32"
    """Precision of what is behind the LSTMs: it is a hundredth of the work, and keeps its own."""

    def __str__(self) -> str:
        return f"{self.precision} ({self.library})"

    def is_possible(self) -> bool:
        """Whether it may be used here: oneDNN's stand-ins for missing instructions are slow, and not all are right."""
        return self.is_native() or self.library != "oneDNN"

    def encoding(self) -> Encoding:
        """How activations are given to the products."""
        return Int8Encoding() if self.activation == torch.uint8 else Encoding(self.activation)


_MKL = "MKL" if torch.backends.mkl.is_available() else "BLAS"
_HALF, _BRAIN, _SINGLE, _DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ARITHMETICS = (
    # Only where the processor adds such products without saturating: older ones add pairs in 16 bits, which overflow.
    Arithmetic("int8", "oneDNN", torch.uint8, _OneDnnInt8Weight, lambda: has_int8(), table=_HALF),
    Arithmetic("bf16", "oneDNN", _BRAIN, partial(_PackedWeight, _BRAIN), lambda: has_bfloat16(), table=_HALF),
    # oneDNN's own kernels, instead of the library that torch's ordinary product goes to, are up to twice as fast.
    Arithmetic("fp32", "oneDNN", _SINGLE, partial(_PackedWeight, _SINGLE)),
    # The same results as the first to within rounding, slower than fp32.
    Arithmetic("int8", "emulated", torch.uint8, _ExactInt8Weight, lambda: False, table=_HALF),
    Arithmetic("fp32", _MKL, _SINGLE, _MklWeight),
    Arithmetic("fp64", _MKL, _DOUBLE, _MklWeight, elementwise=_DOUBLE, table=_DOUBLE, exact="fp64"),
)
"""Fastest first."""


def choose(precision: str) -> Arithmetic:
    """The fastest arithmetic of a precision that starts on this machine.

    Args:
        precision: one of `PRECISIONS`; auto is the fastest of all that have instructions of their own here.

    Raises:
        InputError: for an unknown precision, or one that does not start here.
    """
    check_choice("precision", precision, PRECISIONS)
    for arithmetic in ARITHMETICS:
        wanted = arithmetic.is_native() if precision == "auto" else arithmetic.precision == precision
        if not wanted or not arithmetic.is_possible():
            continue
        fault = fault_of(arithmetic)
        if fault is None:
            return arithmetic
        _LOGGER.warning("%s does not start here (%s); the next best is used", arithmetic, fault)
    raise InputError(f"precision {precision!r} needs a processor with instructions for it; choose fp32 or auto")


def fault_of(arithmetic: Arithmetic) -> str | None:
    """What is wrong with an arithmetic on this machine, found by products of known result at the ends of its range."""
    rows, inputs, outputs = 5, 64, 32
    signs: Callable[[int, int], Tensor] = lambda rows, columns: torch.where(  # noqa: E731
        torch.arange(rows * columns).reshape(rows, columns) % 3 == 0, -1.0, 1.0
    )
    x = (signs(rows, inputs) / 2).to(arithmetic.elementwise)
    matrix, bias = (2 * signs(outputs, inputs)).to(x.dtype), torch.arange(outputs).to(x.dtype)
    try:
        weight = arithmetic.weight(matrix, bias)
        encoding = arithmetic.encoding()
        encoded = encoding.zeros(rows, inputs)
        encoding.encode(x, encoded)
        sums = weight.project(encoded)
        weight.add_to(sums, encoded)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        if "primitive" not in str(error):  # which is what oneDNN says of anything that it has no kernel for
            raise_shortage(error)  # or else rows would be computed otherwise than on a machine that has enough
        return first_line(error)
    expected = 2 * (x @ matrix.t()) + bias
    if sums.shape != expected.shape or not torch.allclose(sums.to(x.dtype), expected, rtol=1e-2, atol=1e-2):
        return "wrong products"
    return None
