"""Whether the process that has written a file is still running, as far as this machine can tell."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def is_gone(content: dict[str, Any]) -> bool:
    """Whether the process that `this_process` described is of this machine, and known to have ended."""
    return is_here(content) and process_key(int(content["pid"])) != content["process"]


def this_process() -> dict[str, Any]:
    """What tells this process from others, for a file that says whose it is."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": process_key(os.getpid())}


def is_here(content: dict[str, Any]) -> bool:
    """Whether a process is one of this machine and this container, so that we can look for it."""
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
