"""Takes the lease of an output as a run does: `python -m tests.pipelines.holder OUTPUT SECONDS ROUNDS MARKER`.

With 0 rounds it says that it holds the lease, and does so until its input ends. Else several threads take the lease
again and again, and each makes a file that must not be there yet while it has it.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.lease import Lease
from torchmoji_core.errors import LeaseHeldError

THREADS = 2


def hold(output: str, seconds: float) -> None:
    """Hold the lease until the input ends."""
    try:
        with Lease(output, seconds):
            print("held", flush=True)
            sys.stdin.read()
    except LeaseHeldError as error:
        print(f"refused: {error}", flush=True)


def contend(output: str, seconds: float, rounds: int, marker: Path) -> int:
    """Take the lease so many times; gives how often that was allowed.

    Raises:
        FileExistsError: if another has it at the same time.
    """
    allowed = 0
    for _ in range(rounds):
        try:
            with Lease(output, seconds) as lease:
                marker.touch(exist_ok=False)
                time.sleep(random.uniform(0, 0.02))
                lease.check()
                marker.unlink()
                allowed += 1
        except LeaseHeldError:
            time.sleep(random.uniform(0, 0.05))
    return allowed


def main(output: str, seconds: str, rounds: str, marker: str) -> None:
    """Do what the module says."""
    if rounds == "0":
        hold(output, float(seconds))
        return
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(contend, output, float(seconds), int(rounds), Path(marker)) for _ in range(THREADS)]
        print(sum(one.result() for one in running), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
