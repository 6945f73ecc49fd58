"""What this processor can do, as far as oneDNN, whose kernels use it, may."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

_BEFORE_AVX2 = ("SSE41", "AVX")
_BEFORE_AVX512 = (*_BEFORE_AVX2, "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
_BEFORE_INT8 = (*_BEFORE_AVX2, "AVX2", "AVX512_CORE")
_BEFORE_BFLOAT16 = (*_BEFORE_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA, by which a user keeps oneDNN to older instructions than the processor has."""


def has_avx2() -> bool:
    """Whether 8-bit integers can be multiplied faster than floats, in pairs that are summed in 16 bits."""
    return _highest_allowed() not in _BEFORE_AVX2 and _any_of("avx2")


def has_avx512() -> bool:
    """Whether registers have 512 bits."""
    return _highest_allowed() not in _BEFORE_AVX512 and _any_of("avx512_f")


def has_bfloat16() -> bool:
    """Whether bfloat16 products have instructions of their own; emulated ones are slower than float32."""
    return _highest_allowed() not in _BEFORE_BFLOAT16 and _any_of(
        "avx512_bf16", "amx_bf16", "bf16"
    )  # the last is ARM's


def has_int8() -> bool:
    """Whether products of 8-bit integers have instructions that sum in 32 bits, so that nothing overflows.

    ARM's are not asked for: they take signed activations, and the kernels in use unsigned ones.
    """
    return _highest_allowed() not in _BEFORE_INT8 and _any_of("avx512_vnni", "avx_vnni", "amx_int8")


def _highest_allowed() -> str:
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the second is the old name of the first
    return next((os.environ[name] for name in names if os.environ.get(name)), "").upper()


def _any_of(*names: str) -> bool:
    return any(_capabilities().get(name) for name in names)


def _capabilities() -> Mapping[str, Any]:
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # torch before 2.13 is asked one by one, and knows fewer
    known = {
        "avx2": "_is_avx2_supported",
        "avx512_f": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "avx512_vnni": "_is_vnni_supported",
    }
    return {name: getattr(torch.cpu, function, bool)() for name, function in known.items()}
