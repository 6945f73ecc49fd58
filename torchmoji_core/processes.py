"""What must not be taken over from another process: threads, files that are written to, and torch's own threads.

Imports no torch before it is needed, so that the default size of a cache is known without it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class OfOneProcess(Protocol):
    """What has parts that a forked process must make anew."""

    def renew(self) -> None:
        """Make them, without touching the parent's."""


def renew_after_fork(thing: OfOneProcess) -> None:
    """Have `renew` called in each process that is forked from this one, as long as the thing is there."""
    _things.add(thing)


_things: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()


def _renew_all() -> None:
    for thing in _things:
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Have the operations of this thread computed by it alone; also a decorator.

    The threads that torch shares an operation out to are not there in a forked process, which would wait for them for
    ever. The operations of loading a model are short, and those of scoring are shared out by batches.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
