"""What is freed is kept for what comes next, also in threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from torchmoji_core.memory import keep_freed_memory
from torchmoji_core.model import Dimensions, TorchMoji, pack_ids
from torchmoji_core.training.optimization import products_in

_BATCHES = """
import resource, sys, threading
from torchmoji_core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    held = [bytearray(200_000) for _ in range(int(sys.argv[2]))]
    for _ in range(100):
        if held:
            bytearray(20_000_000)
        else:
            parts = [bytearray(200_000) for _ in range(50)]

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
@pytest.mark.parametrize("held", [0, 250], ids=["little is held", "50 MB are held"])
def test_memory_of_a_thread_is_used_again(held: int) -> None:
    """Also where the 64 MB that a thread is given at a time do not hold all of it."""

    def page_faults(what: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", _BATCHES, what, str(held)]))

    assert page_faults("keep") < page_faults("return") / 5


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")]
)
def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")
@pytest.mark.parametrize("precision", ["bf16"])
def test_training_in_bfloat16_takes_no_more_memory_with_every_batch(precision: str) -> None:
    """Products used to leave kernels behind for every number of rows and of tokens: megabytes a batch."""
    model = TorchMoji(Dimensions(vocabulary=50, embedding=32, hidden=32, classes=4))

    def train(numbers: Iterable[int]) -> None:
        for number in numbers:
            with products_in(precision):
                output = model(pack_ids([[1] * (30 + number)] + [[2] * 25] * 20))
            output.logits.square().mean().backward()

    def resident_megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    train([0, 60])
    before = resident_megabytes()
    train(range(40))
    assert resident_megabytes() - before < 30


_ALLOCATOR = "import pipelines, pyarrow; print(pyarrow.default_memory_pool().backend_name)"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
@pytest.mark.parametrize(("chosen", "used"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_allocates_where_what_is_freed_is_kept(chosen: str | None, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    if chosen is not None:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = chosen
    command = [sys.executable, "-c", _ALLOCATOR]
    assert subprocess.check_output(command, env=environment, text=True).strip() == used
