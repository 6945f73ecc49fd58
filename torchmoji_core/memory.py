"""How this process holds memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of parameters of mallopt(3), from glibc's malloc.h."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""The most that glibc takes."""
_KEPT = 512 << 20


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is allocated next, instead of giving it back to the system.

    Every batch allocates and frees the same megabytes of activations. In threads other than the first, glibc returns
    them each time, and the system has to clear each page anew: a tenth of the time of scoring with two threads, a tenth
    of training. The most that the process has had at a time stays the same.

    Returns:
        Whether the C library is one that can be asked, which is glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library, musl for instance
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
