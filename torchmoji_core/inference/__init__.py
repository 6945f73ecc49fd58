"""The fast way to run a model: `engine` runs packed rows, `scorer` takes texts in any order, `scores` is what it gives.

No module is imported here, so that the names of options are known without loading torch.
"""

import os

PRECISIONS = ("auto", "fp32", "bf16", "int8", "fp64")
"""`auto` is the first of int8, bf16 and fp32 that the processor has instructions for."""


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
