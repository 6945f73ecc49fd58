"""Takes the lock of an output as a run does: `python -m tests.pipelines.holder OUTPUT SECONDS`.

It says that it holds the lock, and does so until its input ends.
"""

from __future__ import annotations

import sys

from pipelines.data_set.lock import Lock
from torchmoji_core.errors import LockHeldError


def main(output: str, seconds: str) -> None:
    """Do what the module says."""
    try:
        with Lock(output, float(seconds)):
            print("held", flush=True)
            sys.stdin.read()
    except LockHeldError as error:
        print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
