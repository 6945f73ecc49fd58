"""The job of examples/flink, for benchmarks.flink: each call of the scorer notes rows, clock and processor time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import job
from session import processor_seconds  # type: ignore[import-not-found]  # beside this file

from torchmoji_core import ArrowScorer

NOTES = os.environ.get("NOTES", "")
"""File, a line for each call. Its value goes to Python's workers with the scorer."""


class NotingScorer(ArrowScorer):
    def columns(self, texts: Iterable[Any]) -> dict[str, Any]:
        rows = list(texts)
        with Path(NOTES).open("a") as notes:
            print(json.dumps([len(rows), time.perf_counter(), processor_seconds()]), file=notes)
        return super().columns(rows)


if __name__ == "__main__":
    job.ArrowScorer = NotingScorer  # type: ignore[attr-defined]
    job.main()
