"""What this processor can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def has_bfloat16() -> bool:
    """Whether bfloat16 products have instructions of their own; emulated ones are slower than float32."""
    return _any_of("avx512_bf16", "amx_bf16")


def has_int8() -> bool:
    """Whether products of 8-bit integers have instructions that sum in 32 bits, so that nothing overflows."""
    return _any_of("avx512_vnni", "avx_vnni", "amx_int8")


def _any_of(*names: str) -> bool:
    # torch before 2.13 cannot tell: taken for no
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in names)
