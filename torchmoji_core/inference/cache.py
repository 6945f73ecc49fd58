"""Recent results by token ids: retweets, spam and greetings are scored once. No model, no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

DEFAULT_CACHE_MB = 32


class ScoreCache:
    """Vectors of float32 by key, the least recently used ones dropped first. Threads may share it."""

    def __init__(self, megabytes: int, width: int) -> None:
        """Args:
        megabytes: bound of the vectors, in 10**6 bytes; at least one is kept.
        width: values of a vector.
        """
        capacity = max(1, megabytes * 10**6 // (4 * width))
        self._vectors = np.empty((capacity, width), np.float32)  # takes memory only as it fills
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def capacity(self) -> int:
        """Most vectors that are kept."""
        return len(self._vectors)

    def find(self, keys: Iterable[bytes]) -> tuple[list[bytes], NDArray[np.float32]]:
        """The keys that are there, and their vectors, [keys, width]."""
        with self._lock:
            found = {key: self._slots[key] for key in keys if key in self._slots}
            for key in found:
                self._slots.move_to_end(key)
            return list(found), self._vectors[list(found.values())]

    def keep(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep the vector of each key."""
        with self._lock:
            for key, vector in zip(keys[-self.capacity :], vectors[-self.capacity :], strict=True):
                slot = self._slots.pop(key, None)
                if slot is None:
                    full = len(self._slots) == self.capacity
                    slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
                self._slots[key] = slot
                self._vectors[slot] = vector
