"""PerProcess: one value in each process, however often references to it are pickled."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A place for a value that all copies of a DoFn in one process have in common.

    Copies that are unpickled in a process where the place exists refer to that place. It lives as long as any of them,
    and in the process that builds a pipeline as long as the pipeline. Beam's `Shared` keeps only the value that was
    asked for last, by any step: where DoFns are made again for every bundle, a pipeline with two of them loads its
    model again for every bundle.
    """

    def __init__(self, key: str | None = None) -> None:
        """Args:
        key: of the place; a new one if None.
        """
        self.value: T | None = None
        self.lock = RLock()
        """To be held from reading the value until it is replaced."""
        self._key = key or uuid.uuid4().hex
        _places[self._key] = self

    def get(self, make: Callable[[], T]) -> T:
        """The value; the first caller makes it, while all others wait."""
        with self.lock:
            if self.value is None:
                self.value = make()
            return self.value

    def __reduce__(self) -> tuple[Callable[[str], PerProcess[T]], tuple[str]]:
        return _place, (self._key,)


_places: WeakValueDictionary[str, PerProcess[Any]] = WeakValueDictionary()
_lock = RLock()


def _place(key: str) -> PerProcess[Any]:
    with _lock:
        return _places.get(key) or PerProcess(key)
