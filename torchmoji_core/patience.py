"""How long servers are waited for; the environment decides it, for object stores as for bundles."""

from __future__ import annotations

import os


def retry_seconds() -> float:
    """How long after its first failure an operation is tried again: $TORCHMOJI_RETRY_SECONDS, or 120."""
    return _seconds("TORCHMOJI_RETRY_SECONDS", 120)


def request_seconds() -> float:
    """How long a silent server is waited for: $TORCHMOJI_REQUEST_SECONDS, or 20."""
    return _seconds("TORCHMOJI_REQUEST_SECONDS", 20)


def _seconds(name: str, default: float) -> float:
    try:
        seconds = float(os.environ.get(name, default))
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise OSError(f"{name} must be a positive number of seconds, not {os.environ[name]!r}")
    return seconds
