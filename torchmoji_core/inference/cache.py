"""Recent results by token ids: retweets, spam and greetings are scored once. No model, no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DEFAULT_CACHE_MB = 64


class ScoreCache:
    """Records of one type by key, the least recently used ones dropped first. Threads may share it."""

    def __init__(self, megabytes: int, record: DTypeLike) -> None:
        """Args:
        megabytes: bound of the records, in 10**6 bytes; at least one is kept.
        record: numpy type of a record.
        """
        capacity = max(1, megabytes * 10**6 // np.dtype(record).itemsize)
        self._records = np.empty(capacity, record)  # takes memory only as it fills
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def capacity(self) -> int:
        """Most records that are kept."""
        return len(self._records)

    def find(self, keys: Iterable[bytes]) -> tuple[list[bytes], NDArray[Any]]:
        """The keys that are there, and their records, [keys]."""
        with self._lock:
            found = {key: self._slots[key] for key in keys if key in self._slots}
            for key in found:
                self._slots.move_to_end(key)
            return list(found), self._records[list(found.values())]

    def keep(self, keys: Sequence[bytes], records: NDArray[Any]) -> None:
        """Keep the record of each key."""
        with self._lock:
            for key, record in zip(keys[-self.capacity :], records[-self.capacity :], strict=True):
                slot = self._slots.pop(key, None)
                if slot is None:
                    full = len(self._slots) == self.capacity
                    slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
                self._slots[key] = slot
                self._records[slot] = record
