"""Messages between their delivery and their acknowledgement, in a process that reads them itself.

A message is done when its row, or its dead letter, is in a file that is in place. Which rows those are is read back
from the file, so what is acknowledged is known to be readable.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import apache_beam as beam
import pyarrow.parquet as pq

from transforms import storage
from transforms.commit import WrittenFile


@dataclass
class _Delivery:
    receipt: str
    """With which it is acknowledged; another one each time that it is delivered."""
    size: int
    key: str | None = None
    """Id of its row, or position of its dead letter, once that is known."""


@dataclass
class _Rows:
    """What is to be written under one id: several messages may have the same."""

    waiting: int = 0
    positions: list[str] = field(default_factory=list)


class Deliveries:
    """Messages in flight: bounded in number and size, found again by the ids of their rows. Safe for threads."""

    _by_name: ClassVar[dict[str, Deliveries]] = {}

    def __init__(self, name: str, max_messages: int, max_bytes: int) -> None:
        """Args:
        name: by which DoFns of this process find it.
        max_messages, max_bytes: what may be in flight; one message always may.
        """
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._deliveries: dict[str, _Delivery] = {}
        self._rows: dict[str, _Rows] = {}
        self._bytes = 0
        self.done = 0
        """Messages that are in flight no longer, since the start."""
        self._changed = threading.Condition()
        self.written: queue.SimpleQueue[WrittenFile] = queue.SimpleQueue()
        """Files that are in place, and whose rows are to be settled."""
        self._by_name[name] = self

    @classmethod
    def named(cls, name: str) -> Deliveries:
        """The one of that name in this process."""
        return cls._by_name[name]

    def __len__(self) -> int:
        return len(self._deliveries)

    def room(self, seconds: float) -> int:
        """Wait until further messages may be taken on, but not longer than that. Returns how many; 0 for none."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                room = self._max_messages - len(self._deliveries)
                if not self._deliveries or (room > 0 and self._bytes < self._max_bytes):
                    return max(room, 1)
                if not self._changed.wait(end - time.monotonic()):
                    return 0

    def add(self, position: str, receipt: str, size: int) -> bool:
        """Take on a message. Returns whether it is new: one in flight that comes again only has a new receipt."""
        with self._changed:
            known = self._deliveries.get(position)
            if known is not None:
                known.receipt = receipt
                return False
            self._deliveries[position] = _Delivery(receipt, size)
            self._bytes += size
            return True

    def became(self, position: str, key: str) -> None:
        """Note under which id a message is going to be written. Said again, as after a retry, it changes nothing."""
        with self._changed:
            delivery = self._deliveries.get(position)
            if delivery is None or delivery.key is not None:
                return
            delivery.key = key
            rows = self._rows.setdefault(key, _Rows())
            rows.waiting += 1
            rows.positions.append(position)

    def settle(self, keys: Iterable[str]) -> list[str]:
        """Note that rows are in place. Returns the receipts of the messages that are done.

        Of messages with the same id none is done before all are: which row is whose cannot be told.
        """
        receipts = []
        with self._changed:
            for key in keys:
                rows = self._rows.get(key)
                if rows is None:
                    continue
                rows.waiting -= 1
                if rows.waiting == 0:
                    receipts += [self._remove(position) for position in rows.positions]
                    del self._rows[key]
            self._changed.notify_all()
        return receipts

    def give_up(self, positions: Iterable[str] | None = None) -> list[str]:
        """Let go of messages, None for all, that are to be delivered again. Returns their receipts."""
        with self._changed:
            receipts = [
                self._remove(position) for position in list(self._deliveries if positions is None else positions)
            ]
            if positions is None:
                self._rows.clear()
            self._changed.notify_all()
        return receipts

    def receipts(self) -> list[str]:
        """Of all messages in flight."""
        with self._changed:
            return [delivery.receipt for delivery in self._deliveries.values()]

    def _remove(self, position: str) -> str:
        delivery = self._deliveries.pop(position)
        self._bytes -= delivery.size
        self.done += 1
        return delivery.receipt


def keys_in(file: WrittenFile) -> list[str]:
    """The ids of a file's rows, or the positions of its dead letters, read from the file.

    Raises:
        OSError: if it cannot be read.
    """
    with storage.open_raw(file.final) as opened:
        if file.final.endswith(".parquet"):
            return pq.ParquetFile(opened).read(columns=["id"])["id"].to_pylist()
        return [json.loads(line)["position"] for line in opened.read().splitlines()]


class SettleDeliveries(beam.PTransform):
    """Hand files that are in place to the `Deliveries` of this process."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def expand(self, files: beam.PCollection[WrittenFile]) -> beam.PCollection[None]:
        return files | "Settle" >> beam.FlatMap(_settle, self._name).with_output_types(None)


def _settle(file: WrittenFile, name: str) -> tuple[()]:
    Deliveries.named(name).written.put(file)
    return ()
