"""Trying again is bounded by the time since the first failure; no test here waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from torchmoji_core.errors import UnavailableError
from torchmoji_core.patience import TransientError, retrying


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def failing(self, seconds: float, times: int | None = None) -> Callable[[], str]:
        """A call that takes some seconds and then fails, so many times or for ever."""
        calls = 0

        def call() -> str:
            nonlocal calls
            calls += 1
            self.now += seconds
            if times is None or calls <= times:
                raise TransientError(f"failure {calls}")
            return "done"

        return call

    def retry(self, call: Callable[[], str]) -> str:
        return retrying("s3://bucket/key", "upload", call, lambda: self.now, self.sleep)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "60")
    return Clock()


def test_a_call_that_takes_long_before_it_fails_is_tried_again(clock: Clock) -> None:
    """The time is that since the first failure, not since the first call."""
    assert clock.retry(clock.failing(seconds=3600, times=1)) == "done"
    assert len(clock.slept) == 1


def test_what_always_fails_is_given_up_in_time(clock: Clock) -> None:
    with pytest.raises(
        UnavailableError, match=r"^s3://bucket/key: upload failed \d+ times in 60 seconds, at last with: fa"
    ):
        clock.retry(clock.failing(seconds=0))
    assert 40 < clock.now - 1000 <= 60
    assert clock.slept[0] <= 0.25 and max(clock.slept) <= 15
    assert clock.slept[0] < clock.slept[2] < clock.slept[4], "pauses grow"


def test_the_time_counts_from_the_first_of_several_failures(clock: Clock) -> None:
    with pytest.raises(UnavailableError, match="failed 4 times in 60 seconds, at last with: failure 4"):
        clock.retry(clock.failing(seconds=20))


def test_what_cannot_pass_is_raised_at_once(clock: Clock) -> None:
    def refuse() -> str:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        clock.retry(refuse)
    assert clock.slept == []
