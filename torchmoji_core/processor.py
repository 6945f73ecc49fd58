"""What this processor can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def has_bfloat16() -> bool:
    """Whether bfloat16 products have instructions of their own; emulated ones are slower than float32."""
    capabilities: Mapping[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch before 2.13 cannot tell: taken for no
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
