"""What a process listens at, as Linux' /proc tells."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

INTERNET = ("tcp", "tcp6", "udp", "udp6")
LISTENING = "0A"
"""State of a TCP socket."""
ACCEPTS = 0x10000
"""Flag of a Unix socket."""


def listeners(pid: int) -> tuple[set[str], list[Path]]:
    """What a process listens at: TCP and UDP addresses as /proc writes them, and paths of Unix sockets."""
    names = []
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                names.append(os.readlink(entry))  # noqa: PTH115
        tables = {kind: Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:] for kind in (*INTERNET, "unix")}
    except FileNotFoundError:  # the process has ended meanwhile
        return set(), []
    inodes = {name[len("socket:[") : -1] for name in names if name.startswith("socket:[")}
    internet: set[str] = set()
    for kind in INTERNET:
        for line in tables[kind]:
            fields = line.split()
            if fields[9] in inodes and (fields[3] == LISTENING or kind.startswith("udp")):
                internet.add(f"{kind} {fields[1]}")
    unix = []
    for line in tables["unix"]:
        fields = line.split()
        if fields[6] in inodes and int(fields[3], 16) & ACCEPTS:
            unix.append(Path(fields[7]) if len(fields) > 7 else Path("unnamed"))
    return internet, unix
