"""ONNX Runtime as it is on a processor with AVX2 alone, for comparisons on one that has more.

torch's libraries can be kept to AVX2 by variables in the environment. ONNX Runtime cannot: it asks the processor, by
the instruction CPUID. So a copy of its library has a breakpoint in place of each of these, and what handles the signal
answers as the processor does, but for what came after AVX2. The copy is for this process, in a temporary folder; the
installed library stays as it is. Needs a C compiler (`cc`) and `objdump`, on Linux, x86-64.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

_HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) { /* AVX-512 and AMX */
        b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
        c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
        d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
    } else if (leaf == 7 && subleaf == 1) { /* VNNI for AVX2, BF16, AVX10 */
        a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23);
        d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGTRAP, &action, 0);
}
"""
_CPUID, _BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"


def keep_onnx_runtime_to_avx2(directory: Path) -> None:
    """Have what is imported as `onnxruntime` from now on be a copy that knows no instructions after AVX2's.

    Args:
        directory: where the copy goes; it may be deleted once it is imported.

    Raises:
        ImportError: if ONNX Runtime is not installed.
        OSError, subprocess.CalledProcessError: if the tools that this needs are missing or fail.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise ImportError("no module named onnxruntime")
    package = Path(shutil.copytree(Path(spec.origin).parent, directory / "onnxruntime"))
    (library,) = package.glob("capi/onnxruntime_pybind11_state*.so")
    content = bytearray(library.read_bytes())
    for address in _addresses_of_cpuid(library):
        place = _place_in_file(content, address)
        if content[place : place + 2] != _CPUID:
            raise OSError(f"{library}: no CPUID at {address:#x}")
        content[place : place + 2] = _BREAKPOINT
    library.write_bytes(content)
    handler = directory / "handler.so"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(handler)], input=_HANDLER, text=True, check=True
    )
    ctypes.CDLL(str(handler))
    sys.path.insert(0, str(directory))


def _addresses_of_cpuid(library: Path) -> list[int]:
    """Of whole instructions only: the same bytes may be part of others."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(address, 16) for address in re.findall(r"^\s*([0-9a-f]+):\s+cpuid", listing, re.MULTILINE)]


def _place_in_file(elf: bytes | bytearray, address: int) -> int:
    """Where in an ELF file of 64 bits the byte is that is loaded to an address."""
    (table,), (count,) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<H", elf, 56)
    for number in range(count):
        kind, _, offset, begin, _, size = struct.unpack_from("<IIQQQQ", elf, table + 56 * number)
        if kind == 1 and begin <= address < begin + size:
            return int(offset + address - begin)
    raise OSError(f"nothing is loaded to {address:#x}")
