"""What is freed is kept for what comes next, also in threads."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from torchmoji_core.memory import keep_freed_memory

_BATCHES = """
import resource, sys, threading
from torchmoji_core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    for _ in range(100):
        parts = [bytearray(200_000) for _ in range(50)]

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_memory_of_a_thread_is_used_again() -> None:
    def page_faults(what: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", _BATCHES, what]))

    assert page_faults("keep") < page_faults("return") / 5


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")]
)
def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()
