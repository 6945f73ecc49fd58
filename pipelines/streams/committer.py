"""Commits of a stream that goes on: every few seconds, the files that it has put in place become results."""

from __future__ import annotations

import contextlib
import logging
import time

from pipelines.cli.logs import announce
from pipelines.data_set import pending
from pipelines.data_set.lock import Lock
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.recovery import commit_pending, recover
from pipelines.data_set.snapshot import DataSet
from torchmoji_core.errors import LockHeldError, TorchMojiError

LOG_SHARE = 0.05
"""The most of a stream's time that goes into the Delta log, which every publication reads: rather late than costly."""


class Committer:
    """Commits what a stream of this process has put in place, whenever it is asked to.

    `pipelines.compact` and `pipelines.verify --clean` can work on the same output at the same time. The lock
    is taken once, if it is free: to delete what streams that died before have left.
    """

    def __init__(self, data_set: DataSet, run_id: str) -> None:
        """Args:
        data_set: what the output holds.
        run_id: of the stream.
        """
        self._data_set, self._run_id = data_set, run_id
        self._next_beat = time.monotonic() + pending.BEAT_SECONDS
        self._log_is_due, self._next_log = False, 0.0
        self._has_recovered = False
        """Whether it was looked for files of streams that died before; once is enough."""
        self._said: type[Exception] | None = None

    def commit(self) -> list[Manifest]:
        """Commit what waits; if that cannot be done now, say so once and leave it to the next time."""
        try:
            return self._commit(is_last=False)
        except (TorchMojiError, OSError) as error:
            if self._said is not type(error):  # every kind of reason once, until things are well again
                announce("commit_waits", f"what was written waits to be committed: {error}", level=logging.WARNING)
            self._said = type(error)
            return []

    def finish(self, has_ended: bool = True) -> list[Manifest]:
        """Commit what is left when the stream has ended.

        Args:
            has_ended: whether nothing of the run can put a file in place any more, so that its description may be
                deleted. Otherwise that is left to the next command, which sees that this process is gone.

        Raises:
            TorchMojiError, OSError: if it cannot be committed; it stays pending.
        """
        committed = self._commit(is_last=True)
        if has_ended:
            pending.end(self._data_set.output, self._run_id)
        return committed

    def _commit(self, is_last: bool) -> list[Manifest]:
        output = self._data_set.output
        if time.monotonic() >= self._next_beat:
            pending.beat(output, self._run_id)
            self._next_beat = time.monotonic() + pending.BEAT_SECONDS
        committed: list[Manifest] = []
        if not self._has_recovered:
            with contextlib.suppress(LockHeldError), Lock(output):
                committed += recover(self._data_set)
                self._has_recovered = True
        if next(pending.pending_records(output), None) is not None:
            committed += commit_pending(self._data_set)
        self._log_is_due |= bool(committed)
        if self._log_is_due and (is_last or time.monotonic() >= self._next_log):
            begun = time.monotonic()
            self._data_set.publish()
            self._log_is_due = False
            self._next_log = time.monotonic() + (time.monotonic() - begun) / LOG_SHARE
        self._said = None
        return committed
