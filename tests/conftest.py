"""Hooks for all tests: what a processor lacks is said here, so a test with a parameter `precision` need not ask."""

from __future__ import annotations

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose precision does not start on this processor, with the reason that a user is given."""
    callspec = getattr(item, "callspec", None)
    precision = callspec.params.get("precision") if callspec else None
    if precision is None:
        return
    from tests.processors import lacking  # torch, which the environment of test-airflow has not
    from torchmoji_core.inference import PRECISIONS

    if precision in PRECISIONS and (reason := lacking(precision)):
        pytest.skip(reason)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Contents of files name no tests: some differ in each process, and workers of xdist compare the names."""
    return argname if isinstance(val, bytes) and len(val) > 100 else None
