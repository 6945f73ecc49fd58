"""Bounds that small files reach."""

from __future__ import annotations

import pytest

from transforms.input import raw_records


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_records, "MAX_RECORD_BYTES", 64)
    monkeypatch.setattr(raw_records, "RAW_KEPT", 16)
