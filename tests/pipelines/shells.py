"""Commands as a user's shell runs them, and what may happen to them there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def shell(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one to its end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def kill_while_training(module: str, arguments: Sequence[object], checkpoint: Path) -> None:
    """kill -9 as soon as it has written its next checkpoint."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
