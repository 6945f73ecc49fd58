"""Recent results by token ids: retweets, spam and greetings are scored once. No model, no torch."""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from torchmoji_core.processes import renew_after_fork

DEFAULT_CACHE_MB = 320

_KEY_BYTES = 250
"""What a key and its place take in memory, for a text of 14 tokens."""
_LOGGER = logging.getLogger(__name__)


class ScoreCache:
    """Records of one type by key, the oldest dropped first. Threads may share it; after a fork each process has one.

    Only the keys are in memory. The records are in a temporary file without a name, of which the system keeps in memory
    what it has room for (all of it, if the directory of temporary files is in memory); a result of full size has 5 KB,
    and reading it back takes some hundredth of the time of making it. The records of a batch lie side by side, so that
    they are written at once. Where the file cannot be written, as on a full disk, nothing is kept any more.
    """

    def __init__(self, megabytes: int, record: DTypeLike) -> None:
        """Args:
        megabytes: bound of the records and their keys, in 10**6 bytes; at least one record is kept.
        record: numpy type of a record.
        """
        self._record = np.dtype(record)
        self.capacity = max(1, megabytes * 10**6 // (self._record.itemsize + _KEY_BYTES))
        """Most records that are kept."""
        self.renew()
        renew_after_fork(self)  # which would share its parent's file, but not know what is written there

    def renew(self) -> None:
        """Begin with an empty file."""
        self._forget()
        self._lock = Lock()
        self._file: Any = None
        try:
            self._file = tempfile.TemporaryFile(prefix="torchmoji-", buffering=0)  # noqa: SIM115
        except OSError as error:
            self._give_up(error)
        else:
            weakref.finalize(self, self._file.close)

    def _forget(self) -> None:
        self._slots: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        """Of the slots that are in use."""
        self._next_slot = 0

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, keys: Iterable[bytes]) -> tuple[list[bytes], NDArray[Any]]:
        """The keys that are there, and their records, [keys]."""
        with self._lock:
            found = {key: self._slots[key] for key in keys if key in self._slots}
            records = np.empty(len(found), self._record)
            try:
                for index, slot in enumerate(found.values()):
                    self._read(slot, records[index : index + 1])
            except OSError as error:
                self._give_up(error)
                return [], records[:0]
            return list(found), records

    def keep(self, keys: Sequence[bytes], records: NDArray[Any]) -> None:
        """Keep the record of each key, of too many the last."""
        with self._lock:
            if self._file is None:
                return
            # Another thread may have scored the same meanwhile.
            new = [index for index, key in enumerate(keys) if key not in self._slots][-self.capacity :]
            if len(new) < len(keys):
                keys, records = [keys[index] for index in new], records[new]
            first, before_end = self._next_slot, self.capacity - self._next_slot
            try:
                self._put(first, keys[:before_end], records[:before_end])
                self._put(0, keys[before_end:], records[before_end:])
                self._next_slot = (first + len(keys)) % self.capacity
            except OSError as error:
                self._give_up(error)
            except BaseException:
                # Out of memory or interrupted halfway: no key may be left that has another's record.
                self._forget()
                raise

    def _put(self, first: int, keys: Sequence[bytes], records: NDArray[Any]) -> None:
        """Put records into slots that follow each other, in the place of what is there."""
        end = first + len(keys)
        for key in self._keys[first:end]:
            self._slots.pop(key, None)
        self._write(first, records)
        self._keys[first:end] = keys
        self._slots.update(zip(keys, range(first, end), strict=True))

    def _read(self, slot: int, record: NDArray[Any]) -> None:
        self._file.seek(slot * self._record.itemsize)
        rest = _bytes(record)
        while len(rest):
            count = self._file.readinto(rest)
            if not count:
                raise OSError("the temporary file has been cut off")
            rest = rest[count:]

    def _write(self, slot: int, records: NDArray[Any]) -> None:
        self._file.seek(slot * self._record.itemsize)
        rest = _bytes(records)
        while len(rest):
            rest = rest[self._file.write(rest) :]

    def _give_up(self, error: OSError) -> None:
        _LOGGER.warning("results are not kept for texts that come again (--cache_mb): %s", error)
        if self._file is not None:
            self._file.close()
        self._file = None
        self._forget()


def _bytes(records: NDArray[Any]) -> memoryview:
    """The memory of records that lie side by side."""
    return records.view(np.uint8).data.cast("B") if len(records) else memoryview(b"")
