"""What a run tells people: progress while it runs, a summary at its end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pipelines.cli import logs
from pipelines.data_set.manifest import Manifest
from torchmoji_core.errors import RunError
from transforms import metrics

LINE_SECONDS = 10.0
POLL_SECONDS = 0.5


class ProgressDisplay:
    """Shows the counts that a local run's processes leave in a directory; a context manager around the run."""

    def __init__(self, directory: str, total_bytes: int, mode: str) -> None:
        """Args:
        directory: where `metrics.Progress` leaves its counts.
        total_bytes: size of all input.
        mode: bar, lines, off, or auto for a bar on a terminal and lines elsewhere; in JSON, a bar is lines.
        """
        self._directory = directory
        self._total = total_bytes
        self._mode = ("bar" if sys.stderr.isatty() else "lines") if mode == "auto" else mode
        if self._mode == "bar" and logs.is_json():
            self._mode = "lines"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._bar if self._mode == "bar" else self._lines, daemon=True)
        self._stream = sys.stderr  # as it is now: while the run lasts, it is the workers'
        self._started = time.monotonic()

    def __enter__(self) -> ProgressDisplay:
        if self._mode != "off":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._mode != "off":
            self._thread.join()

    def _bar(self) -> None:
        with tqdm(total=self._total, unit="B", unit_scale=True, desc="read", file=self._stream) as bar:
            while True:
                stopped = self._stop.wait(POLL_SECONDS)
                rows, bytes_read = metrics.Progress.total(self._directory)
                bar.set_postfix_str(f"{rows:,} tweets scored, {self._rate(rows):,.0f}/s", refresh=False)
                bar.update(min(bytes_read, self._total) - bar.n)
                bar.refresh()
                if stopped:
                    return

    def _lines(self) -> None:
        while not self._stop.wait(LINE_SECONDS):
            rows, bytes_read = metrics.Progress.total(self._directory)
            share = bytes_read / self._total if self._total else 1.0
            logs.announce(
                "progress",
                f"{rows:,} tweets scored, {share:.0%} of the input read, {self._rate(rows):,.0f} tweets/s",
                stream=self._stream,
                rows=rows,
                share=round(share, 4),
            )

    def _rate(self, rows: int) -> float:
        return rows / max(time.monotonic() - self._started, 1e-9)


def counters(result: Any) -> dict[str, int]:
    """Our counters of a finished run by name, summed over steps.

    Raises:
        RunError: if the runner has none.
    """
    try:
        found = result.metrics().query()["counters"]
    except NotImplementedError:
        raise RunError(
            "the runner does not say what it has counted, so nobody knows whether all was read; docs/runners.md has "
            "others"
        ) from None
    totals: dict[str, int] = {}
    for counter in found:
        if counter.key.metric.namespace == metrics.NAMESPACE:
            name = counter.key.metric.name
            totals[name] = totals.get(name, 0) + int(counter.result or 0)  # None is how some runners say 0
    return totals


def announce_summary(counts: dict[str, int], seconds: float, classes: Sequence[str], figures: dict[str, Any]) -> None:
    """Say how a run has ended, and add its counts to the figures of its report."""
    figures.update(counts)
    text = summary(counts, seconds, classes, figures["fingerprint"], figures["output"])
    logs.announce("summary", text, seconds=round(seconds, 3), **figures)


def summary(counts: dict[str, int], seconds: float, classes: Sequence[str], fingerprint: str, output: str) -> list[str]:
    """The end of a run in a few lines."""

    def get(name: str) -> int:
        return counts.get(name, 0)

    rows, files = get(metrics.SCORED) + get(metrics.EMPTY), get(metrics.FILES_READ)
    tops = {label: get(f"{metrics.TOP_PREFIX}{index}") for index, label in enumerate(classes)}
    commonest = sorted(tops.items(), key=lambda item: -item[1])[:10]
    shown = "  ".join(f"{label} {count / max(get(metrics.SCORED), 1):.1%}" for label, count in commonest if count)
    return [
        f"read        {get(metrics.READ):,}" + (f" from {files:,} file(s)" if files else ""),
        f"scored      {get(metrics.SCORED):,}",
        f"empty       {get(metrics.EMPTY):,} without tokens",
        f"dead        {get(metrics.DEAD):,} dead letters",
        *(each.remark.format(get(name)) for name, each in metrics.OF_RUNS.items() if each.remark and get(name)),
        f"tokens      {get(metrics.TOKENS):,}, {_share(get(metrics.UNKNOWN), get(metrics.TOKENS))} unknown; "
        f"{_share(get(metrics.TRUNCATED), rows)} of texts truncated",
        f"reused      {get(metrics.REUSED):,} had the same tokens as a recent text and were not scored again",
        f"speed       {rows / max(seconds, 1e-9):,.0f} tweets/s over {seconds:.1f} s, start-up included",
        f"written     {get(metrics.ROWS_WRITTEN):,} rows in {get(metrics.FILES_WRITTEN):,} file(s), "
        f"{get(metrics.BYTES_WRITTEN):,} bytes, in {output}",
        f"model       fingerprint {fingerprint}",
        f"commonest   {shown or 'none'}",
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def announce_taken_in(change: Manifest) -> None:
    """Say that the result of a job that nobody waited for has become a part of the data set."""
    rows, dead = change.counts[metrics.ROWS_WRITTEN], change.counts[metrics.DEAD]
    said = f"took in     a job submitted at {change.started}: {rows:,} rows, {dead:,} dead letters"
    logs.announce("took_in", said, run=change.run_id, rows=rows, dead=dead)
