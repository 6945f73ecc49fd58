"""How this process holds memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Names of parameters of mallopt(3), from glibc's malloc.h."""
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""The most that glibc takes."""
_KEPT = 64 << 20
"""Threads other than the first have their memory in pieces of this size. The trim threshold keeps what is free in one,
the pad a piece that is free as a whole.
"""
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_ARROWS_ALLOCATOR = "ARROW_DEFAULT_MEMORY_POOL"


def have_arrow_use_malloc() -> None:
    """Have Arrow allocate by the C library, where that can be told to keep what is freed (`keep_freed_memory`).

    Arrow's own allocator gives freed memory back ten milliseconds later, and writing Parquet asks for megabytes a few
    times a second: a third of its time went into pages that the system had to clear again. Arrow reads the setting
    once, so this does something only before pyarrow is imported, and nothing where ARROW_DEFAULT_MEMORY_POOL is set.
    """
    if _is_glibc():
        os.environ.setdefault(_ARROWS_ALLOCATOR, "system")


def _is_glibc() -> bool:
    try:
        return sys.platform.startswith("linux") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (ValueError, OSError):
        return False  # another C library, musl for instance


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is allocated next, instead of giving it back to the system.

    Every batch allocates and frees the same megabytes of activations. In threads other than the first, glibc returns
    them each time, and the system has to clear each page again: a tenth of the time of scoring with two threads, and
    of training. In return each thread holds on to the most that it has had. If malloc is set up in the
    environment (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), nothing is changed.

    Returns:
        Whether it does now.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or "glibc.malloc" in tunables or any(map(os.environ.get, _SET_BY_USER)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library, musl for instance
    values = {_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _KEPT}
    return all(mallopt(name, value) for name, value in values.items())
