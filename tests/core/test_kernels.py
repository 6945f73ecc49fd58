"""Every way of computing products gives the right ones, and gives a row the same bits in any company."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
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

REAL_INT8, EXACT_INT8 = (kind for kind in ARITHMETICS if kind.precision == "int8")

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


@pytest.mark.parametrize("inputs", [32, 512, 1536])
def test_emulated_integers_are_the_real_ones(inputs: int) -> None:
    if (reason := unused(REAL_INT8)) is not None:
        pytest.skip(reason)
    x, matrix, bias = numbers(EXACT_INT8, inputs, 64)
    x[0], matrix[0] = 0.5, 1.0  # the largest sum there can be
    real, emulated = (kind.weight(matrix, bias).project(encoded(kind, x)) for kind in (REAL_INT8, EXACT_INT8))
    torch.testing.assert_close(real, emulated, rtol=1e-6, atol=1e-6)


def test_integers_are_the_nearest() -> None:
    x = torch.linspace(-0.5, 0.5, 1001)[None]
    steps = encoded(EXACT_INT8, x).double() - module.INT8_ZERO
    assert steps.min() == -127 and steps.max() == 127
    assert (steps / INT8_STEPS - x).abs().max() <= 0.5 / INT8_STEPS + 1e-7
    assert (encoded(EXACT_INT8, torch.zeros(1, 3)) == module.INT8_ZERO).all()


def test_a_channel_of_zeros_stays_one() -> None:
    for kind in (REAL_INT8, EXACT_INT8):
        if unused(kind) is None:
            x, matrix, bias = numbers(kind, 32, 32)
            matrix[3] = 0
            assert torch.equal(kind.weight(matrix, bias).project(encoded(kind, x))[:, 3], bias[3].repeat(len(x)))


def test_auto_is_native() -> None:
    assert choose("auto").is_native()


@pytest.mark.parametrize("precision", ["fp32", "fp64", "int8"])
def test_every_machine_has(precision: str) -> None:
    assert choose(precision).precision == precision


def test_without_instructions_for_it_int8_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_int8", lambda: False)
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    assert str(choose("int8")) == "int8 (emulated)"
    assert choose("auto").precision == "fp32"
    with pytest.raises(InputError, match="'bf16' needs a processor"):
        choose("bf16")


def test_what_does_not_start_is_said_and_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError("operator onednn::qlinear_prepack is gone\nand more")

    monkeypatch.setattr(module, "has_int8", lambda: True)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", gone)
    with caplog.at_level(logging.WARNING):
        assert str(choose("int8")) == "int8 (emulated)"
    assert "int8 (oneDNN) does not start here (operator onednn::qlinear_prepack is gone)" in caplog.text


def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *_: torch.zeros(len(x), 32), raising=False)
    assert str(choose("fp32")) in ("fp32 (MKL)", "fp32 (BLAS)")
    assert "wrong products" in caplog.text
