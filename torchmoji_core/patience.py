"""How long servers are waited for, and what failed is tried again; for object stores as for bundles."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from torchmoji_core.errors import UnavailableError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
"""Seconds; pauses double from one to the other, each shortened by up to a half at random."""

_logger = logging.getLogger(__name__)
T = TypeVar("T")


class TransientError(OSError):
    """A failure that may pass: throttling, a server's error, a lost connection, an answer cut off or too late."""


def retrying(
    path: str,
    operation: str,
    call: Callable[[], T],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until it gives no `TransientError`.

    Args:
        path: what is called about, for messages.
        operation: what is done with it.
        call: does it; may be done twice.
        clock: tells seconds.
        sleep: waits for seconds.

    Raises:
        UnavailableError: in one line, when `retry_seconds` have passed since the first failure.
        OSError: what the call raises otherwise.
    """
    first_failure, tries, pause = None, 0, _FIRST_PAUSE
    while True:
        try:
            return call()
        except TransientError as error:
            tries += 1
            # Not from the first call: a long upload that fails at its end is worth a second one.
            first_failure = clock() if first_failure is None else first_failure
            shortened = pause * random.uniform(0.5, 1)
            if clock() + shortened > first_failure + retry_seconds():
                raise UnavailableError(
                    f"{path}: {operation} failed {tries} times in {retry_seconds():g} seconds, at last with: {error}"
                ) from error
            _logger.warning("%s: %s failed (%s), next try in %.1f s", path, operation, error, shortened)
        sleep(shortened)
        pause = min(2 * pause, _LONGEST_PAUSE)


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
