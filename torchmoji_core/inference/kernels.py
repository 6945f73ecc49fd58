"""Matrix products of the engine, and the table of all ways to compute them on a processor.

A precision says which numbers come out, to within rounding; an arithmetic is one implementation of it. Several
may have the same precision, and `choose` takes the first that starts on this machine: the fast ones use operators
that are internal to torch, so each is tried on numbers with a known answer before it is trusted.

    precision   arithmetic              activations   weights               products summed in
    fp32        oneDNN, MKL             float32       float32               float32
    bf16        oneDNN                  bfloat16      bfloat16              float32, then rounded to bfloat16
    int8        FBGEMM, oneDNN, exact   uint8         int8, scale a channel int32
    fp64        MKL                     float64       float64               float64

All inputs of the LSTMs' products lie in [-1, 1], and the engine keeps them halved, in [-1/2, 1/2]. So int8 has one
fixed scale, 1/254, with zero at 128: no calibration, and a row's result cannot depend on its neighbours.

Where there are no instructions that sum in 32 bits (AVX-512 VNNI and the like), kernels add the products of two
neighbouring inputs in 16, and what does not fit is cut off. So a weight channel has the smallest scale with which
neither a weight exceeds 127 nor two neighbours of one sign exceed 128 together; others cannot add up, since no
activation is negative. All sums are exact then, and each is rounded once, when it is multiplied by the scale: int8 has
the same bits by every kernel, on every processor.

Tried for int8 and not kept: scales that minimize the squared error of the weights, the first layer's input products in
float32, and scales without regard to neighbours, finer by a quarter (none changes the agreement of first choices
beyond noise, of which rounded activations make the most).

Every arithmetic gives a row the same bits whatever rows stand beside it (tests/core/test_kernels.py).
"""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchmoji_core.errors import InputError, first_line, raise_shortage
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.options import check_choice
from torchmoji_core.processor import has_avx2, has_bfloat16, has_int8

_LOGGER = logging.getLogger(__name__)

INT8_STEPS = 254
"""Steps of a uint8 activation between -1/2 and 1/2."""
INT8_ZERO = 128
_MKL_ROWS, _MKL_COLUMNS = 24, 16
"""MKL takes other kernels, which differ by an ulp or two, for other numbers of rows: on AVX-512 for one to three, with
AVX2 for almost any. So it is always given as many. Of 24, all are summed in the same order whatever the kernels
(a multiple of 12 with AVX2, of 4 and 8 else), if the columns are a multiple of 16."""


_filtering_warnings = Lock()
"""The filters are the whole process's: threads that load a model each must not restore them in another order."""


@contextmanager
def ignoring(category: type[Warning]) -> Iterator[None]:
    """Without torch's warnings of what it will drop one day; what is used instead then is there already."""
    with _filtering_warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


class Weight(nn.Module, ABC):
    """A matrix W [outputs, inputs] prepared for products with encoded activations x [rows, inputs]."""

    has_one_order = True
    """Whether an output is summed in the same order however many outputs there are."""

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
    has_one_order = False

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


class PackedWeight(Weight):
    """Packed once into the layout that oneDNN's kernels read."""

    def __init__(self, activation: torch.dtype, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.activation = activation
        self.bias = bias
        # A single output has one order of summation anyway.
        self._inputs = matrix.shape[1] if len(matrix) == 1 else UNSPLIT_INPUTS
        self._parts = [
            torch.ops.mkldnn._reorder_linear_weight(part.to(activation).contiguous(), _PACKED_FOR_ROWS)
            for part in matrix.split(self._inputs, dim=1)
        ]

    def project(self, x: Tensor) -> Tensor:
        sums = self._product(x, 0).float()
        for part in range(1, len(self._parts)):
            sums += self._product(x, part)
        bias = self.bias
        return sums if bias is None else sums.add_(bias)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        for part in range(len(self._parts)):
            sums += self._product(x, part)

    def matrix(self) -> Tensor:
        """W as it was before it was packed, in the products' type."""
        return torch.cat([part.to_dense() for part in self._parts], 1)

    def _product(self, x: Tensor, part: int) -> Tensor:
        values = x[:, part * self._inputs : (part + 1) * self._inputs]
        if len(x) == 1:
            # Without AVX2, oneDNN's kernel for a single row sums in another order.
            values = values.repeat(2, 1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self._parts[part], None, "none", [], "")
        return product[: len(x)]


_PACKED_FOR_ROWS = 64
"""A hint for the layout; it fits any number of rows."""
UNSPLIT_INPUTS = 1024
"""With more inputs, oneDNN splits sums into parts that depend on the number of rows."""


class QuantizedMatrix:
    """W as int8 with a scale for each output channel, small enough that no kernel's sums overflow."""

    def __init__(self, matrix: Tensor) -> None:
        """Args:
        matrix: [outputs, inputs], an even number of them.
        """
        even, odd = matrix[:, ::2], matrix[:, 1::2]
        # Activations are not negative, so only weights of the same sign add up.
        of_pairs = [even.clamp(min=0).add_(odd.clamp(min=0)).amax(1), -even.clamp(max=0).add_(odd.clamp(max=0)).amin(1)]
        largest = torch.maximum(torch.stack(of_pairs).amax(0) / _LARGEST_PAIR, matrix.abs().amax(dim=1) / 127)
        # A channel of zeros would have the scale 0; any other does for it.
        self.scale = largest.clamp(min=torch.finfo(matrix.dtype).tiny * 127)
        self.values = (matrix / self.scale[:, None]).round_().to(torch.int8)
        self.product_scale = self.scale / INT8_STEPS
        """Of a sum of products of whole numbers."""


_LARGEST_PAIR = 127.5
"""Bound of the sum of two neighbouring weights, in steps: 128 when they are rounded, and 128 * 255 < 2 ** 15."""


class _OneDnnInt8Weight(Weight):
    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias, self._x_zero = bias, INT8_ZERO
        self._zeros = torch.zeros(len(matrix), dtype=torch.int64)
        self._pack(QuantizedMatrix(matrix))

    def _pack(self, quantized: QuantizedMatrix) -> None:
        self._scale = quantized.product_scale
        self._packed = torch.ops.onednn.qlinear_prepack(quantized.values, [_PACKED_FOR_ROWS, quantized.values.shape[1]])

    def project(self, x: Tensor) -> Tensor:
        return self._project_many(x)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        self._add_many_to(sums, x)

    def _project_many(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, self._x_zero, self._packed, self._scale, self._zeros, self.bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product

    def _add_many_to(self, sums: Tensor, x: Tensor) -> None:
        same = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, self._x_zero, self._packed, self._scale, self._zeros, sums, None,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        # It writes to `sums`, but its signature does not say so: without a use TorchScript would leave it out.
        if same.size(0) != sums.size(0):
            raise RuntimeError("a product of another shape")


class FastestInt8Weight(_OneDnnInt8Weight):
    """FBGEMM for few rows, oneDNN for many. (One module with both: TorchScript takes its time for each.)"""

    def _pack(self, quantized: QuantizedMatrix) -> None:
        super()._pack(quantized)
        self._few_rows = 16 if has_int8() else 64
        self._x_zero_float = torch.tensor(float(INT8_ZERO))
        scale = quantized.product_scale.double()
        with ignoring(UserWarning):  # that torch means to drop such tensors
            values = torch._make_per_channel_quantized_tensor(quantized.values, scale, self._zeros, 0)
        self._packed_for_few = torch.ops.quantized.linear_prepack(values, None)

    def project(self, x: Tensor) -> Tensor:
        if len(x) > self._few_rows:
            return self._project_many(x)
        product = self._product_of_few(x)
        bias = self.bias
        # By itself: the operator would round the product and the sum at once, as no other kernel does.
        return product if bias is None else product.add_(bias)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        if len(x) > self._few_rows:
            self._add_many_to(sums, x)
        else:
            sums += self._product_of_few(x)

    def quantized(self) -> tuple[Tensor, Tensor]:
        """`values` and `product_scale` of `QuantizedMatrix`."""
        values, _ = torch.ops.quantized.linear_unpack(self._packed_for_few)
        return values.int_repr(), self._scale

    def _product_of_few(self, x: Tensor) -> Tensor:
        # The operator takes floats and rounds them; these are whole numbers already.
        steps = x.float().sub_(self._x_zero_float)
        product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            steps, 1.0, self._x_zero, self._packed_for_few
        )
        return product


class _ExactInt8Weight(Weight):
    """The same integers in float32, which is exact up to 1,040 inputs at a time (1040 * 127 * 127 < 2 ** 24)."""

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        quantized = QuantizedMatrix(matrix)
        self._outputs = len(matrix)
        self._parts = [_for_mkl(part.float()) for part in quantized.values.split(_EXACT_INPUTS, dim=1)]
        self._scale, self._bias = quantized.product_scale, bias
        self._inputs, self._x_zero = _EXACT_INPUTS, INT8_ZERO

    def project(self, x: Tensor) -> Tensor:
        product = self._product(x)
        bias = self._bias
        return product if bias is None else product.add_(bias)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        sums += self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        values = (x.float() - self._x_zero).split(self._inputs, 1)
        products = [torch.mm(values[part], matrix) for part, matrix in enumerate(self._parts)]
        return torch.stack(products).sum(0)[:, : self._outputs] * self._scale


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
        return self.is_native() or "oneDNN" not in self.library

    def encoding(self) -> Encoding:
        """How activations are given to the products."""
        return Int8Encoding() if self.activation == torch.uint8 else Encoding(self.activation)


_MKL = "MKL" if torch.backends.mkl.is_available() else "BLAS"
_HALF, _BRAIN, _SINGLE, _DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ARITHMETICS = (
    Arithmetic("int8", "FBGEMM, oneDNN", torch.uint8, FastestInt8Weight, lambda: has_avx2(), table=_HALF),
    Arithmetic("int8", "oneDNN", torch.uint8, _OneDnnInt8Weight, lambda: has_avx2(), table=_HALF),
    Arithmetic("bf16", "oneDNN", _BRAIN, partial(PackedWeight, _BRAIN), lambda: has_bfloat16(), table=_HALF),
    # oneDNN's own kernels, instead of the library that torch's ordinary product goes to, are up to twice as fast.
    Arithmetic("fp32", "oneDNN", _SINGLE, partial(PackedWeight, _SINGLE)),
    # The same results as the first, slower than fp32.
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
    # Every other weight, another half in each row: alone a largest one is exact in every precision (`QuantizedMatrix`).
    halves = (torch.arange(outputs)[:, None] + torch.arange(inputs)) % 2
    matrix, bias = (2 * halves * signs(outputs, inputs)).to(x.dtype), torch.arange(outputs).to(x.dtype)
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
