"""What a local stream reads from, and publishes to: one small interface for all systems of messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from pipelines.data_set.coverage import Covers
from transforms.records import Message


class SourceUnavailableError(Exception):
    """A request failed for now; another try may help. The message is one line."""


class Received(NamedTuple):
    """A message that was delivered to us, and is ours for a while."""

    message: Message
    receipt: str
    """With which it is acknowledged; another one each time that it is delivered."""


class Source(Protocol):
    """A subscription or a topic. Its methods may be called by several threads at a time."""

    uri: str
    """What the tweets of its messages have as their source."""
    passed_over: Covers
    """What is never read, since it begins behind it; to be recorded before anything is pulled."""

    def pull(self, count: int) -> list[Received]:
        """Wait for messages, a few seconds at most.

        Args:
            count: the most that may come.

        Raises:
            SourceUnavailableError: if another try may help.
            RunError: if the subscription cannot be read any more.
        """

    def covers(self, receipts: Sequence[str]) -> Covers:
        """What the record of files says that are made from such messages; empty where the source itself remembers what
        was acknowledged."""

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """Keep messages from being delivered again for so long; 0 gives them back.

        Raises:
            SourceUnavailableError, RunError: as `pull`.
        """

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Have messages never delivered again; their files are in place, with a record that says so.

        Raises:
            SourceUnavailableError, RunError: as `pull`.
        """

    def stop(self) -> None:
        """End a `pull` that waits; none is begun any more."""


class Publisher(Protocol):
    """A topic."""

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Publish rows. On return the topic has them.

        Raises:
            RunError: if it does not take them.
        """
