"""What a run tells machines: its figures in a file, as JSON and, beside it, for Prometheus.

The Prometheus file is for the textfile collector of its node exporter. Its metrics are gauges that describe the last
run, since a batch job has no counters that go on. Names follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from pipelines.cli.exits import DONE, LOCK_HELD, exit_status
from pipelines.cli.logs import printable
from pipelines.cli.redaction import redact_all
from torchmoji_core import durable
from torchmoji_core.errors import InputError
from transforms import metrics

_LOGGER = logging.getLogger(__name__)

VERSION = 1
INPUT_STATES = ("new", "changed", "vanished", "unsettled", "passed_over", "unreadable", "committed")
"""Figures `inputs_<state>`: how many inputs a run over what is new found in which state."""

_RUN, _STREAM = "torchmoji_last_run", "torchmoji_stream"
_ALWAYS = {"output", "exit_status", "started", "finished", "last_success"}
"""Fields of every report, by which our own reports are recognized."""
_MAX_BYTES = 16 << 20
"""No report is as long; a longer file is not read."""


def check_report(path: str) -> None:
    """Make sure, before any work, that a report can be written.

    Raises:
        InputError: naming --report, if it is no local file in a directory that can be written to, or if something else
            than a report is there, or beside it under the name of its metrics.
    """
    if path == "-" or "://" in path:
        raise InputError(f"--report {path}: reports are local files; give the path of one")
    file = Path(path)
    if file.suffix == ".prom" or not file.name:
        raise InputError(f"--report {path}: give the name of the JSON file, such as report.json; .prom goes beside it")
    try:
        for name in (file, _prometheus_file(file)):
            _check_ours(name)
        probe = durable.unused_name(file)
        probe.touch()
        probe.unlink()
    except _NotOursError as error:
        raise InputError(f"--report {path}: {error}; give another name, or move it away") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--report {path}: cannot be written ({reason}); check path and permissions") from None


@contextlib.contextmanager
def reported(path: str | None, dry_run: bool = False, **figures: Any) -> Iterator[dict[str, Any]]:
    """Report the run in this block, however it ends, unless it was kept out by another run: then that one will.

    Args:
        path: of the report; None for no report.
        dry_run: check the path and leave it at that.
        **figures: what is known beforehand; `output` is what the metrics are labelled with.

    Yields:
        The figures, for the block to add to: `exit_status` and our counters, and, where they are known, `model`,
        `fingerprint`, `run_id` and `inputs_<state>`. Times and errors are added here.

    Raises:
        InputError: from `check_report`, before the block.
    """
    if path is not None:
        check_report(path)
    started = datetime.now(UTC)
    try:
        yield figures
    except BaseException as error:
        figures |= {"exit_status": exit_status(error), "error": str(error)}
        raise
    finally:
        if not dry_run and figures.setdefault("exit_status", DONE) != LOCK_HELD:
            report_so_far(path, figures, started)


def report_so_far(path: str | None, figures: Mapping[str, Any], started: datetime) -> None:
    """Write a report of what was done so far, if one is wanted; if it cannot be written, that is a warning."""
    if path is not None:
        try:
            write_report(path, {**figures, "started": started, "finished": datetime.now(UTC)})
        except OSError as error:  # the run's own end matters more than what is told of it
            _LOGGER.error("--report %s could not be written: %s", path, error)


def write_report(path: str, figures: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all.

    Args:
        path: of the JSON file; the other has the suffix .prom instead.
        figures: `output`, `exit_status`, `started`, `finished` (datetimes) and what else is known.

    Raises:
        OSError: if they cannot be written, or something else is there by now.
    """
    file = Path(path)
    for name in (file, _prometheus_file(file)):
        _check_ours(name)
    former = _former(file)
    successful = figures["exit_status"] == DONE
    kept = former.get("last_success") if former.get("output") == redact_all(figures["output"]) else None
    seconds = (figures["finished"] - figures["started"]).total_seconds()
    rows = figures.get("scored", 0) + figures.get("empty", 0)
    report = {
        "version": VERSION,
        **figures,
        "started": figures["started"].isoformat(timespec="milliseconds"),
        "finished": figures["finished"].isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
        "records_per_second": round(rows / seconds, 1) if seconds > 0 else 0.0,
        "last_success": figures["finished"].isoformat(timespec="milliseconds") if successful else kept,
    }
    report = redact_all(report)
    _write_whole(file, (json.dumps(report, indent=1) + "\n").encode())
    _write_whole(_prometheus_file(file), generate_latest(_Metrics(report)))


class _Metrics(Collector):
    """The metrics of one report, as prometheus_client wants to collect them."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report, output = self._report, _label(self._report["output"])

        def gauge(name: str, meaning: str, value: float) -> Metric:
            family = GaugeMetricFamily(name, meaning, labels=["output"])
            family.add_metric([output], value)
            return family

        yield gauge(f"{_RUN}_start_timestamp_seconds", "When the run began.", _timestamp(report["started"]))
        yield gauge(f"{_RUN}_end_timestamp_seconds", "When the run ended.", _timestamp(report["finished"]))
        yield gauge(f"{_RUN}_duration_seconds", "How long the run took.", report["seconds"])
        yield gauge(f"{_RUN}_exit_status", "Exit status of the run; 0 is success.", report["exit_status"])
        yield gauge(f"{_RUN}_records_per_second", "Speed, start-up included.", report["records_per_second"])
        figures = [(_RUN, metrics.OF_RUNS), *([(_STREAM, metrics.OF_STREAMS)] if metrics.IN_FLIGHT in report else [])]
        for before, reported in figures:
            for figure, (name, meaning, _, unit) in reported.items():
                yield gauge(f"{before}_{name}", meaning, report.get(figure, 0) * unit)
        if any(f"inputs_{state}" in report for state in INPUT_STATES):
            inputs = GaugeMetricFamily(f"{_RUN}_inputs", "Inputs by state.", labels=["output", "state"])
            for state in INPUT_STATES:
                inputs.add_metric([output, state], report.get(f"inputs_{state}", 0))
            yield inputs
        if report["last_success"]:
            meaning = "When a run last ended with exit status 0."
            yield gauge("torchmoji_last_success_timestamp_seconds", meaning, _timestamp(report["last_success"]))
        if "fingerprint" in report:
            model = InfoMetricFamily("torchmoji_model", "The model of the last run.", labels=["output"])
            model.add_metric([output], {name: _label(report.get(name, "")) for name in ("model", "fingerprint")})
            yield model


def _label(value: Any) -> str:
    """A value without characters that the format or its readers cannot take; ends of lines it can escape."""
    return "\n".join(map(printable, str(value).split("\n")))


def _timestamp(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _former(file: Path) -> dict[str, Any]:
    """The report that is there, or an empty one."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(content, dict) and content.get("version") == VERSION and content.keys() >= _ALWAYS
    return content if is_ours else {}


class _NotOursError(OSError):
    """Something is there that is not ours to replace; the message says what."""


def _check_ours(file: Path) -> None:
    """Make sure that a name is free, or has what an earlier run has written.

    Raises:
        _NotOursError: if not. A link is not ours: a write through it may go anywhere.
        OSError: if it cannot be read.
    """
    try:
        found = file.lstat()
    except FileNotFoundError:
        return
    mode = found.st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        raise _NotOursError(f"{file.name} is {kind}")
    if not found.st_size:
        return
    if found.st_size > _MAX_BYTES or not (_has_our_metrics(file) if file.suffix == ".prom" else _former(file)):
        raise _NotOursError(f"{file.name} is there already and no report of ours")


def _has_our_metrics(file: Path) -> bool:
    """Whether a file of Prometheus has metrics, and none of others."""
    return all(re.match(rb"(?:# (?:HELP|TYPE) )?torchmoji_|\Z", line) for line in file.read_bytes().split(b"\n"))


def _prometheus_file(file: Path) -> Path:
    return file.with_suffix(".prom")


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file under another name, then give it its own, unless that is another's by now.

    Raises:
        OSError: if it cannot be done.
    """
    with durable.replacing(file) as temporary:
        temporary.write_bytes(content)
        _check_ours(file)
