"""The environment of engines that are too large for that of all tests."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-engines" / "bin"
"""`make test-spark` and `make test-readers` make it."""


def engine_environment() -> dict[str, str]:
    """Of a process of that environment, as if it had been activated."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1", "OMP_NUM_THREADS": "1"}
