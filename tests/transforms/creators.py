"""Several writers of the same names at a time."""

from __future__ import annotations

import threading

from transforms.storage import files as storage

HANG_GUARD = 120
"""Seconds."""
FILES = 8
_WRITERS = 6


def create_at_once(place: str) -> list[tuple[str, bytes]]:
    """Have threads create `FILES` files each, all the same ones: who has won which, and its content."""
    barrier = threading.Barrier(_WRITERS)
    won: list[tuple[str, bytes]] = []

    def create(content: bytes) -> None:
        for name in map(str, range(FILES)):
            barrier.wait(HANG_GUARD)
            if storage.create_if_absent(f"{place}/{name}", content, f"{place}/_tmp/{content.decode()}"):
                won.append((name, content))

    threads = [threading.Thread(target=create, args=(f"writer {number}".encode(),)) for number in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_GUARD)
    return won
