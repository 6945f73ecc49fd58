"""A lock on an output directory, so that two runs do not do the same work; on any filesystem.

It is for that alone: commits are sound with or without it, since manifests' numbers are claimed. So a run need not be
sure that it still has the lock. It is one file, created only if there is none.

Its holder writes it again at every beat. That a holder on this machine has died is known from its process. A holder
elsewhere has died if its last beat is long ago, and none follows while another run watches: so clocks that disagree,
or step, do not matter.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.data_set.liveness import is_gone, is_here, this_process
from pipelines.data_set.manifest import now
from torchmoji_core.errors import InputError, LockHeldError, RunError, may_pass
from transforms.storage import files as storage

FILE = "_lock.json"
DEFAULT_SECONDS = 300.0
_BEATS = 10
"""So many in the time after which a silent holder is taken for dead."""
_TRIES = 3
_LOGGER = logging.getLogger(__name__)


class Lock:
    """A context manager around a run that writes to an output directory."""

    def __init__(self, output: str, seconds: float = DEFAULT_SECONDS) -> None:
        """Args:
        output: directory on any filesystem.
        seconds: how long a holder on another machine is taken for living after its last beat.
        """
        self._output, self._seconds = output, seconds
        self._content = this_process() | {
            "id": uuid.uuid4().hex, "command": Path(sys.argv[0]).stem, "started": now(), "seconds": seconds
        }  # fmt: skip
        self._path, self._temporary = f"{output}/{FILE}", f"{output}/_lock-{self._content['id']}.tmp"
        self._existed = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> Lock:
        """Take the lock.

        Raises:
            LockHeldError: if another run has it.
            InputError, RunError: if the output cannot be written.
        """
        try:
            self._existed = storage.exists(self._output)
            self._take()
        except OSError as error:
            raise unwritable(self._output, error) from error
        except KeyboardInterrupt:
            self._give_back()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._give_back()

    def check(self) -> None:
        """Make sure, before something that two must not do, that nobody has taken this run for dead.

        Raises:
            RunError: if it is gone, or another run has it now.
            OSError: if it cannot be read.
        """
        holder = read_lock(self._output)
        if holder is None:
            raise RunError(f"the lock of {self._output} is gone; was the output removed while running?")
        if holder.get("id") != self._content["id"]:
            raise RunError(f"another run has taken this one for dead, and has the lock of {self._output}; start again")

    def _give_back(self) -> None:
        try:
            if self._is_ours():
                storage.delete([self._path])
                if not self._existed:
                    storage.remove_empty(self._output)
        except OSError as error:
            _LOGGER.warning("the lock of %s could not be given back: %s", self._output, error)

    def _take(self) -> None:
        for _ in range(_TRIES):
            if storage.create_if_absent(self._path, self._beaten(), self._temporary):
                return
            holder = read_lock(self._output)
            if holder is None:
                continue
            if is_living(holder) or self._shows_itself(holder):
                raise LockHeldError(
                    f"{self._output} is being written by process {holder.get('pid')} on {holder.get('host')} since "
                    f"{holder.get('started')} ({holder.get('command')}); its last sign of life was {holder.get('beat')}"
                )
            _LOGGER.warning("who held %s has died: process %s on %s", self._path, holder.get("pid"), holder.get("host"))
            storage.delete([self._path])
        raise LockHeldError(f"{self._output} is wanted by several runs at once; try again")

    def _shows_itself(self, holder: dict[str, Any]) -> bool:
        """Whether a holder that seems to be dead writes its lock: its clock or ours may be wrong."""
        if not is_here(holder):
            time.sleep(2.5 * _seconds(holder) / _BEATS)
        return read_lock(self._output) not in (holder, None)

    def _is_ours(self) -> bool:
        return (read_lock(self._output) or {}).get("id") == self._content["id"]

    def _beaten(self) -> bytes:
        return json.dumps(self._content | {"beat": now(), "beats": time.monotonic()}).encode()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS):
            try:
                if self._is_ours():
                    storage.publish(self._path, self._beaten(), self._temporary, lasting=False)
            except OSError as error:
                _LOGGER.warning("the lock of %s could not be renewed: %s", self._output, error)


def unwritable(output: str, error: OSError) -> InputError | RunError:
    """What to say of an output in which the first file could not be written."""
    reason = getattr(error, "strerror", None) or str(error)
    if storage.is_full(error):
        return RunError(
            f"output {output} cannot be written ({reason}): disk full; pipelines.verify --clean may free space"
        )
    if may_pass(error):
        return RunError(f"output {output} cannot be written ({reason}); try again later")
    return InputError(f"output {output} cannot be written ({reason}); check path and permissions")


def read_lock(output: str) -> dict[str, Any] | None:
    """The holder of an output's lock, alive or dead; None if there is none.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(storage.read_bytes(f"{output}/{FILE}"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_living(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock shows signs of life: its process here, its last beat elsewhere."""
    if is_here(holder):
        return not is_gone(holder)
    try:
        silence = (datetime.now(UTC) - datetime.fromisoformat(holder["beat"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return False
    return abs(silence) < _seconds(holder)  # its clock may be ahead


def _seconds(holder: dict[str, Any]) -> float:
    seconds = holder.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else DEFAULT_SECONDS
