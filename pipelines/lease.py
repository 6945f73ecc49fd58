"""A lease on an output directory: of several runs that want to write there, one does, on any filesystem.

Every contender writes a file of its own, then lists the others; who finds another living one withdraws. Of two that
start together at least one sees the other, since each writes before it lists; so both may withdraw, wait a random
time and try again, but never do both go on. It needs no rename, no lock and no conditional write, only that a listing
shows what was written before it, which disks and today's object stores do.

A holder writes its file anew at every beat. Who has died on this machine is known from its process; of who has died
elsewhere, the last beat is older than the lease and no beat follows while another run watches, so clocks that
disagree, or step, cannot take a lease from a living holder.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from torchmoji_core.errors import InputError, LeaseHeldError, RunError
from transforms import storage

DIRECTORY = "_lease"
DEFAULT_SECONDS = 300.0
_BEATS_PER_LEASE = 10
_TRIES = 10
_LOGGER = logging.getLogger(__name__)


class Lease:
    """The right to write to an output directory; a context manager around a run."""

    def __init__(self, output: str, seconds: float = DEFAULT_SECONDS, brief: bool = False) -> None:
        """Args:
        output: directory on any of Beam's filesystems.
        seconds: how long a holder on another machine is taken for living after its last beat.
        brief: whether it will be held for a moment only, so that others better wait than give up.
        """
        self._output = output
        self._directory = f"{output}/{DIRECTORY}"
        self._seconds = seconds
        self._brief = brief
        self._id = uuid.uuid4().hex
        self._path = f"{self._directory}/{self._id}.json"
        self._started = _now()
        self._beats = 0
        self._last_beat = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._existed = True
        self._held = False

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            LeaseHeldError: if another run has it.
            InputError, RunError: if the output cannot be written.
        """
        try:
            self._existed = storage.exists(self._output)
            storage.make_directory(self._output)
            self._acquire()
        except OSError as error:
            self._withdraw()
            raise unwritable(self._output, error) from error
        except BaseException:
            self._withdraw()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._withdraw()

    def check(self) -> None:
        """Make sure, before a commit, that the lease is still ours.

        Raises:
            RunError: if it was taken, or could not be renewed for too long.
        """
        leases = read_leases(self._output)
        others = [
            content for path, content in leases.items() if path != self._path and content.get("state") == "holder"
        ]
        if time.monotonic() - self._last_beat > self._seconds or self._path not in leases or others:
            raise RunError(
                f"the lease of {self._output} was lost: another run may be writing there; nothing more was committed"
            )

    def _acquire(self) -> None:
        for _ in range(_TRIES):
            self._write("contender")
            others = self._living_others()
            if not others:
                self._write("holder")
                self._held = True
                return
            storage.delete([self._path])
            for other in others:
                if other.get("state") != "contender" and not other.get("brief"):
                    raise LeaseHeldError(
                        f"{self._output} is being written by process {other.get('pid')} on {other.get('host')} "
                        f"since {other.get('started')} ({other.get('command')}); its last sign of life was "
                        f"{other.get('beat')}"
                    )
            time.sleep(random.uniform(0.05, 1.0))
        raise LeaseHeldError(f"{self._output} is wanted by several runs at once; try again")

    def _write(self, state: str) -> None:
        self._beats += 1
        content = {
            "state": state,
            **this_process(),
            "brief": self._brief,
            "command": Path(sys.argv[0]).stem,
            "started": self._started,
            "beat": _now(),
            "beats": self._beats,
            "seconds": self._seconds,
        }
        storage.publish(self._path, json.dumps(content).encode(), f"{self._directory}/{self._id}.tmp", lasting=False)
        self._last_beat = time.monotonic()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS_PER_LEASE):
            try:
                if storage.exists(self._path):
                    self._write("holder")
            except OSError as error:
                _LOGGER.warning("the lease of %s could not be renewed: %s", self._output, error)

    def _withdraw(self) -> None:
        try:
            if self._held and not self._existed:
                storage.remove_empty(self._output)
            storage.delete([self._path, f"{self._directory}/{self._id}.tmp"])
            storage.remove_empty(self._directory, deep=False)
            if not self._existed:
                storage.remove_empty(self._output, deep=False)
        except OSError as error:
            _LOGGER.warning("the lease of %s could not be given back: %s", self._output, error)

    def _living_others(self) -> list[dict[str, Any]]:
        return [
            content
            for path, content in read_leases(self._output).items()
            if path != self._path and self._is_living(path, content)
        ]

    def _is_living(self, path: str, content: dict[str, Any]) -> bool:
        """Whether another contender lives; the file of a dead one is deleted."""
        if is_living(content):
            return True
        if not _is_here(content):
            # Its clock or ours may be wrong: what it does while we watch is what counts.
            time.sleep(2.5 * _seconds(content) / _BEATS_PER_LEASE)
            if read_leases(self._output).get(path, content) != content:
                return True
        _LOGGER.warning("the run that held %s has died: %s on %s", path, content.get("pid"), content.get("host"))
        storage.delete([path])
        return False


def unwritable(output: str, error: OSError) -> InputError | RunError:
    """What to say of an output in which the first file could not be written."""
    reason = getattr(error, "strerror", None) or str(error)
    if storage.is_full(error):
        return RunError(
            f"output {output} cannot be written ({reason}): disk full; pipelines.verify --clean may free space"
        )
    if storage.may_pass(error):
        return RunError(f"output {output} cannot be written ({reason}); try again later")
    return InputError(f"output {output} cannot be written ({reason}); check path and permissions")


def read_leases(output: str) -> dict[str, dict[str, Any]]:
    """The leases on an output, by path: of the holder, of contenders, and of those who died.

    Raises:
        OSError: if they cannot be read.
    """
    leases = {}
    for file in storage.match([f"{output}/{DIRECTORY}/*.json"]):
        try:
            content = json.loads(storage.read_bytes(file.path))
        except FileNotFoundError:
            continue  # given back meanwhile
        except (ValueError, RecursionError):
            content = {}
        leases[file.path] = content if isinstance(content, dict) else {}
    return leases


def is_living(content: dict[str, Any]) -> bool:
    """Whether a lease's holder shows signs of life: its process here, its last beat elsewhere."""
    if _is_here(content):
        return bool(process_key(int(content["pid"])) == content["process"])
    try:
        silence = (datetime.now(UTC) - datetime.fromisoformat(content["beat"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return False
    return abs(silence) < _seconds(content)  # its clock may be ahead


def is_gone(content: dict[str, Any]) -> bool:
    """Whether a process of this machine that wrote `this_process` is known to be there no longer."""
    return _is_here(content) and not is_living(content)


def this_process() -> dict[str, Any]:
    """What `is_gone` and `is_living` need to know of a process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": process_key(os.getpid())}


def _seconds(content: dict[str, Any]) -> float:
    seconds = content.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else DEFAULT_SECONDS


def _is_here(content: dict[str, Any]) -> bool:
    """Whether a lease's process is one of this machine and this container, so that we can look for it."""
    ours, process = process_key(os.getpid()), content.get("process")
    if ours is None or not isinstance(process, list) or not isinstance(content.get("pid"), int):
        return False
    return content.get("host") == socket.gethostname() and process[:2] == ours[:2]


def process_key(pid: int) -> list[str] | None:
    """What tells a process from others that had its number: boot, namespace of numbers, time of start; Linux only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
        # Behind the command's name, which may hold anything, field 22 of the whole line is the time of start.
        fields = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
        return None if fields[0] == "Z" else [boot, namespace, fields[19]]
    except (OSError, IndexError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
