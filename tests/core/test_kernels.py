"""Every way of computing products gives the right ones, and gives a row the same bits in any company."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.processors import unused
from torchmoji_core.errors import InputError
from torchmoji_core.inference import kernels as module
from torchmoji_core.inference.kernels import (
    ARITHMETICS,
    INT8_STEPS,
    Arithmetic,
    choose,
)
from torchmoji_core.processor import has_avx2

INT8 = [kind for kind in ARITHMETICS if kind.precision == "int8"]
EXACT_INT8 = INT8[-1]

SHAPES = [(32, 32), (96, 256), (512, 2048), (2304, 64), (2048, 4096), (2304, 1)]
"""Inputs and outputs."""


@pytest.fixture(params=ARITHMETICS, ids=str)
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    arithmetic: Arithmetic = request.param
    if (reason := unused(arithmetic)) is not None:
        pytest.skip(reason)
    return arithmetic


def encoded(arithmetic: Arithmetic, x: Tensor) -> Tensor:
    encoding = arithmetic.encoding()
    result = encoding.zeros(*x.shape)
    encoding.encode(x, result)
    assert result.dtype == arithmetic.activation
    return result


def numbers(arithmetic: Arithmetic, inputs: int, outputs: int, rows: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    kind = arithmetic.elementwise
    x = (torch.rand(rows, inputs, generator=generator) - 0.5).to(kind)
    return x, torch.randn(outputs, inputs, generator=generator).to(kind), torch.randn(outputs).to(kind)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_products_are_right(arithmetic: Arithmetic, inputs: int, outputs: int) -> None:
    x, matrix, bias = numbers(arithmetic, inputs, outputs)
    weight = arithmetic.weight(matrix, bias)
    sums = weight.project(encoded(arithmetic, x))
    expected = x.double() @ matrix.t().double() + bias.double()
    tolerance = {"fp32": 1e-4, "fp64": 1e-12, "bf16": 0.15, "int8": 0.2}[arithmetic.precision]
    assert sums.dtype == arithmetic.elementwise and sums.shape == (len(x), outputs)
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=tolerance * (inputs / 32) ** 0.5)
    before = sums.clone()
    arithmetic.weight(matrix, None).add_to(sums, encoded(arithmetic, x))
    torch.testing.assert_close(sums.double(), 2 * expected - bias, rtol=0, atol=3 * tolerance * (inputs / 32) ** 0.5)
    assert not torch.equal(before, sums)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_has_the_same_bits_in_any_company(arithmetic: Arithmetic, inputs: int, outputs: int) -> None:
    x, matrix, bias = numbers(arithmetic, inputs, outputs)
    weight, rows = arithmetic.weight(matrix, bias), encoded(arithmetic, x)
    whole = weight.project(rows)
    added = whole.clone()
    weight.add_to(added, rows)
    for start, end in [(0, 1), (5, 6), (3, 5), (7, 10), (11, 28), (0, 64), (69, 70)]:
        part = weight.project(rows[start:end])
        assert torch.equal(part, whole[start:end])
        weight.add_to(part, rows[start:end])
        assert torch.equal(part, added[start:end])


@pytest.fixture(params=INT8, ids=str)
def int8(request: pytest.FixtureRequest) -> Arithmetic:
    arithmetic: Arithmetic = request.param
    if (reason := unused(arithmetic)) is not None:
        pytest.skip(reason)
    return arithmetic


def assert_sums_are_exact(int8: Arithmetic, x: Tensor, matrix: Tensor) -> None:
    """Whole numbers, summed exactly and rounded once, so that every kernel has the same bits on every processor."""
    quantized = module.QuantizedMatrix(matrix)
    whole = (encoded(int8, x).double() - module.INT8_ZERO) @ quantized.values.t().double()
    expected = whole.float() * quantized.product_scale
    bias = torch.linspace(-1, 1, len(matrix))
    weight = int8.weight(matrix, bias)
    assert torch.equal(weight.project(encoded(int8, x)), expected + bias)
    sums = bias.repeat(len(x), 1)
    weight.add_to(sums, encoded(int8, x))
    assert torch.equal(sums, bias + expected)


@pytest.mark.parametrize("inputs", [32, 512, 1536])
def test_int8_has_the_same_bits_by_every_kernel(int8: Arithmetic, inputs: int) -> None:
    x, matrix, _ = numbers(int8, inputs, 64, rows=200)
    assert_sums_are_exact(int8, x, matrix)
    assert_sums_are_exact(int8, x[:3], matrix)


@given(
    seed=st.integers(0, 2**32),
    rows=st.sampled_from([1, 2, 20, 70]),
    inputs=st.sampled_from([32, 96, 1024]),
    positive=st.sampled_from([0, 0.5, 0.9, 1]),
    largest=st.sampled_from([0.5, 0.9, 1]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_at_the_ends_of_its_range_int8_does_not_overflow(
    int8: Arithmetic, seed: int, rows: int, inputs: int, positive: float, largest: float
) -> None:
    """Weights that are all as large as they can be, or nearly all, and activations that are all at their limits."""
    generator = torch.Generator().manual_seed(seed)
    signs = [torch.where(torch.rand(count, inputs, generator=generator) < positive, 1.0, -1.0) for count in (rows, 32)]
    sizes = torch.where(torch.rand(32, inputs, generator=generator) < largest, 1.0, torch.rand(1, generator=generator))
    assert_sums_are_exact(int8, signs[0] / 2, signs[1] * sizes)
    assert_sums_are_exact(int8, torch.full((rows, inputs), 0.5), signs[1] * sizes)


def test_neighbouring_weights_fit_sixteen_bits_together() -> None:
    matrix = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    matrix[0], matrix[1], matrix[2] = 1, -1, torch.tensor([127, 1]).repeat(256)
    steps = module.QuantizedMatrix(matrix).values.int().reshape(64, -1, 2)
    for of_one_sign in (steps.clamp(min=0), steps.clamp(max=0)):
        assert of_one_sign.sum(dim=2).abs().max() * 255 < 2**15
    assert steps.abs().amax(dim=(1, 2)).min() >= 60  # and no more of the range is given away than for that


def test_integers_are_the_nearest() -> None:
    x = torch.linspace(-0.5, 0.5, 1001)[None]
    steps = encoded(EXACT_INT8, x).double() - module.INT8_ZERO
    assert steps.min() == -127 and steps.max() == 127
    assert (steps / INT8_STEPS - x).abs().max() <= 0.5 / INT8_STEPS + 1e-7
    assert (encoded(EXACT_INT8, torch.zeros(1, 3)) == module.INT8_ZERO).all()


def test_a_channel_of_zeros_stays_one(int8: Arithmetic) -> None:
    x, matrix, bias = numbers(int8, 32, 32)
    matrix[3] = 0
    assert torch.equal(int8.weight(matrix, bias).project(encoded(int8, x))[:, 3], bias[3].repeat(len(x)))


def test_auto_is_native() -> None:
    assert choose("auto").is_native()


@pytest.mark.parametrize("precision", ["fp32", "fp64", "int8"])
def test_every_machine_has(precision: str) -> None:
    assert choose(precision).precision == precision


def test_without_instructions_for_it_int8_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions in ("has_avx2", "has_int8", "has_bfloat16"):
        monkeypatch.setattr(module, instructions, lambda: False)
    assert str(choose("int8")) == "int8 (emulated)"
    assert choose("auto").precision == "fp32"
    with pytest.raises(InputError, match="'bf16' needs a processor"):
        choose("bf16")


needs_avx2 = pytest.mark.skipif(not has_avx2(), reason="kernels for AVX2")


@needs_avx2
def test_with_avx2_alone_auto_is_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_int8", lambda: False)
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    assert choose("auto") == choose("int8") == INT8[0]


@needs_avx2
@pytest.mark.parametrize(
    ("library", "operator", "left"),
    [("quantized", "linear_prepack", "int8 (oneDNN)"), ("onednn", "qlinear_prepack", "int8 (emulated)")],
)
def test_what_does_not_start_is_said_and_replaced(
    library: str, operator: str, left: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError(f"operator {operator} is gone\nand more")

    monkeypatch.setattr(getattr(torch.ops, library), operator, gone)
    with caplog.at_level(logging.WARNING):
        assert str(choose("int8")) == left
    assert f"int8 (FBGEMM, oneDNN) does not start here (operator {operator} is gone)" in caplog.text


def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *_: torch.zeros(len(x), 32), raising=False)
    assert str(choose("fp32")) in ("fp32 (MKL)", "fp32 (BLAS)")
    assert "wrong products" in caplog.text
