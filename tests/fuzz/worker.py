"""One process of `python -m tests.fuzz`: libFuzzer on one target, guided by what our Python code executes.

    python -m tests.fuzz.worker TARGET SLOWEST [libFuzzer's options, corpus]

SLOWEST is a file in which the slowest input so far is kept, with its processor time in seconds and its size.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["transforms", "torchmoji_core"]):
    from tests.fuzz.targets import BOUNDS, TARGETS


def main() -> None:
    name, slowest, *options = sys.argv[1:]
    run, longest = TARGETS[name].run, 0.0
    for module, bound, value in BOUNDS:
        setattr(module, bound, value)

    def run_timed(data: bytes) -> None:
        nonlocal longest
        started = time.process_time()
        run(data)
        seconds = time.process_time() - started
        if seconds > longest:
            longest = seconds
            Path(slowest).write_text(
                json.dumps({"seconds": round(seconds, 3), "bytes": len(data), "input": data.hex()})
            )

    atheris.Setup([sys.argv[0], *options], run_timed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
