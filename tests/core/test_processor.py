"""What the processor is taken to be able to do, and the kernels of those that can do less."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processors import CAPS
from torchmoji_core.inference import compiled_loops
from torchmoji_core.processor import has_avx2, has_avx512, has_bfloat16, has_int8

LAPTOP = {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_vnni": False, "avx512_bf16": False}
ALDER_LAKE = LAPTOP | {"avx_vnni": True}
SKYLAKE_X = LAPTOP | {"avx512_f": True}
SAPPHIRE_RAPIDS = SKYLAKE_X | {"avx512_vnni": True, "avx512_bf16": True, "amx_bf16": True, "amx_int8": True}
GRAVITON_2 = {"architecture": "arm64", "neon": True, "bf16": False, "dot": True}
GRAVITON_3 = GRAVITON_2 | {"bf16": True, "i8mm": True, "sve": True}


@pytest.mark.parametrize(
    ("capabilities", "cap", "bfloat16", "int8", "avx512", "avx2"),
    [
        (LAPTOP, None, False, False, False, True),
        (ALDER_LAKE, None, False, True, False, True),
        (SKYLAKE_X, None, False, False, True, True),
        (SAPPHIRE_RAPIDS, None, True, True, True, True),
        (SAPPHIRE_RAPIDS, "", True, True, True, True),
        (SAPPHIRE_RAPIDS, "DEFAULT", True, True, True, True),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", True, True, True, True),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_VNNI", False, True, True, True),
        (SAPPHIRE_RAPIDS, "AVX512_CORE", False, False, True, True),
        (SAPPHIRE_RAPIDS, "AVX2_VNNI", False, True, False, True),
        (SAPPHIRE_RAPIDS, "avx2", False, False, False, True),
        (SAPPHIRE_RAPIDS, "AVX", False, False, False, False),
        (SAPPHIRE_RAPIDS, "SSE41", False, False, False, False),
        (GRAVITON_2, None, False, False, False, False),
        (GRAVITON_3, None, True, False, False, False),
        ({"architecture": "s390x"}, None, False, False, False, False),
    ],
)
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_instructions_count_if_the_processor_has_them_and_onednn_may_use_them(
    capabilities: dict[str, object],
    cap: str | None,
    bfloat16: bool,
    int8: bool,
    avx512: bool,
    avx2: bool,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    if cap is not None:
        monkeypatch.setenv(name, cap)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert (has_bfloat16(), has_int8(), has_avx512(), has_avx2()) == (bfloat16, int8, avx512, avx2)


def test_a_torch_that_cannot_list_them_is_asked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True, raising=False)
    assert (has_bfloat16(), has_int8(), has_avx512(), has_avx2()) == (False, True, False, True)


_CHOICES = """
import sys, pytest
from torchmoji_core.errors import InputError
from torchmoji_core.inference import compiled_loops
from torchmoji_core.inference.kernels import choose
fastest, int8, loops = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
assert str(choose("int8")) == int8, choose("int8")
assert choose("auto").precision == fastest, choose("auto")
assert compiled_loops.run.__qualname__ != loops, "kept loops of other instructions would be taken"
try:
    choose("bf16")
except InputError:
    pass
else:
    raise AssertionError("bf16 without instructions")
sys.exit(pytest.main(sys.argv[1:]))
"""
_CHOSEN = {"avx2": ["int8", "int8 (FBGEMM, oneDNN)"], "sse41": ["fp32", "int8 (emulated)"]}
_ON_KERNELS = "overflow or (same_bits and not 4096) or last_bit or formulas or listed_precision or (of_torch and 65)"


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="variables for x86-64")
@pytest.mark.parametrize("cap", CAPS)
def test_the_kernels_of_older_processors_keep_the_same_promises(cap: str, tmp_path: Path) -> None:
    files = [f"tests/core/test_{name}.py" for name in ("kernels", "engine", "scorer", "compiled")]
    loops_of_others = compiled_loops.run.__qualname__ if has_int8() else ""
    program = [sys.executable, "-c", _CHOICES, *_CHOSEN[cap], loops_of_others]
    command = [*program, *files, "-k", _ON_KERNELS, "-p", "no:cacheprovider", "-p", "no:xdist"]
    finished = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "inner"), "-o", "addopts=-q --import-mode=importlib"],
        cwd=Path(__file__).parents[2],
        env=os.environ | CAPS[cap],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
