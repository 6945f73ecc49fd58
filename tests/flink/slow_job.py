"""The job of examples/flink with a scorer that takes its time, so that a kill finds bundles that are full."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import job

from torchmoji_core import ArrowScorer

SECONDS = 0.005
"""A text."""


class SlowScorer(ArrowScorer):
    def columns(self, texts: Iterable[Any]) -> dict[str, Any]:
        rows = list(texts)
        time.sleep(SECONDS * len(rows))
        return super().columns(rows)


if __name__ == "__main__":
    job.ArrowScorer = SlowScorer  # type: ignore[attr-defined]
    job.main()
