"""Which parts of the promises this processor, or what keeps torch from using all of it, leaves to be tested."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from torchmoji_core.errors import InputError
from torchmoji_core.inference.kernels import Arithmetic, choose, fault_of

CAPS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Variables that keep torch's libraries to older instructions: most laptops', and the oldest that torch runs on."""

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="equal to the last bit with MKL only")


@cache
def lacking(precision: str) -> str | None:
    """Why a precision is not to be had here; None if it is."""
    try:
        choose(precision)
    except InputError as error:
        return str(error)
    return None


@cache
def unused(arithmetic: Arithmetic) -> str | None:
    """Why an arithmetic is never chosen here; None if it may be."""
    if not arithmetic.is_possible():
        return f"{arithmetic}: the processor has no instructions for it"
    fault = fault_of(arithmetic)
    return f"{arithmetic} does not start here: {fault}" if fault else None
