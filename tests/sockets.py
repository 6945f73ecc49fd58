"""What a process listens at, as Linux' /proc tells."""

from __future__ import annotations

import os
from pathlib import Path

LISTENING = "0A"


def listeners(pid: int) -> tuple[set[str], list[Path]]:
    """What a process listens at: TCP and UDP addresses as /proc writes them, and paths of Unix sockets."""
    try:
        names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115
        inodes = {name[len("socket:[") : -1] for name in names if name.startswith("socket:[")}
        internet: set[str] = set()
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes and (fields[3] == LISTENING or kind.startswith("udp")):
                    internet.add(f"{kind} {fields[1]}")
        unix = []
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            # Flag 0x10000 is of sockets that accept connections.
            if fields[6] in inodes and int(fields[3], 16) & 0x10000:
                unix.append(Path(fields[7]) if len(fields) > 7 else Path("unnamed"))
        return internet, unix
    except FileNotFoundError:  # it has ended, or closed something, meanwhile
        return set(), []
