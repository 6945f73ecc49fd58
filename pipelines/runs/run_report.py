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

_LOGGER = logging.getLogger(__name__)

VERSION = 1
INPUT_STATES = ("new", "changed", "vanished", "unsettled", "passed_over", "unreadable", "committed")
"""Figures `inputs_<state>`: how many inputs a run over what is new found in which state."""

_RUN = "torchmoji_last_run"
_GAUGES = {
    "read": (f"{_RUN}_read_records", "Records met, damaged ones included."),
    "scored": (f"{_RUN}_scored_records", "Records scored."),
    "empty": (f"{_RUN}_empty_records", "Records without tokens, which have no scores."),
    "dead": (f"{_RUN}_dead_records", "Records that became dead letters."),
    "notices": (f"{_RUN}_notice_records", "Records that are no posts and not meant to be, such as deletions."),
    "cut_by_platform": (f"{_RUN}_cut_records", "Records scored by a text that their platform has cut."),
    "without_id": (f"{_RUN}_without_id_records", "Records without an id, which got a hash of file and position."),
    "with_html": (f"{_RUN}_with_html_records", "Records scored with HTML's tags or entities in their texts."),
    "times_unread": (f"{_RUN}_unread_time_records", "Records whose time could not be read and is null."),
    "members_passed_over": (f"{_RUN}_passed_over_members", "Files in .zip files that were not read."),
    "rows_written": (f"{_RUN}_written_rows", "Rows in the files written."),
    "files_written": (f"{_RUN}_written_files", "Files written, of rows and of dead letters."),
    "bytes_written": (f"{_RUN}_written_bytes", "Size of those files."),
    "files_read": (f"{_RUN}_read_files", "Input files read."),
    "bytes_read": (f"{_RUN}_read_bytes", "Input read, as stored."),
    "tokens": (f"{_RUN}_read_tokens", "Tokens of the texts scored."),
    "unknown_tokens": (f"{_RUN}_unknown_tokens", "Tokens that are not in the vocabulary."),
    "truncated": (f"{_RUN}_truncated_records", "Records with more tokens than the model reads."),
    "reused": (f"{_RUN}_reused_records", "Records not scored again, since their tokens were met before."),
}
"""By the names of transforms/metrics.py. A run that failed has left nothing: what is missing is 0."""

_ALWAYS = {"output", "exit_status", "started", "finished", "last_success"}
"""Fields of every report, by which our own reports are recognized."""
_MAX_BYTES = 16 << 20
"""No report is as long; a longer file is not read."""

_STREAM = "torchmoji_stream"
_STREAM_GAUGES = {
    "in_flight": (f"{_STREAM}_in_flight_messages", "Messages read and not yet acknowledged.", 1.0),
    "latency_ms_mean": (f"{_STREAM}_latency_mean_seconds", "From a row's time to its file being in place.", 1e-3),
    "latency_ms_max": (f"{_STREAM}_latency_max_seconds", "The longest of those times.", 1e-3),
    "event_lag_ms_mean": (f"{_STREAM}_event_lag_mean_seconds", "From a tweet's time to its arrival.", 1e-3),
    "buffer_wait_ms_mean": (f"{_STREAM}_buffer_wait_mean_seconds", "How long tweets were held for a batch.", 1e-3),
    "batch_rows_mean": (f"{_STREAM}_batch_mean_rows", "How full the model's batches were.", 1.0),
    "model_swaps": (f"{_STREAM}_model_swaps", "Models that took the place of another.", 1.0),
    "models_refused": (f"{_STREAM}_models_refused", "Bundles that were found and not taken.", 1.0),
}
"""Of runs that have them; with what makes base units of the figures."""


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
        for figure, (name, meaning) in _GAUGES.items():
            yield gauge(name, meaning, report.get(figure, 0))
        if "in_flight" in report:
            for figure, (name, meaning, unit) in _STREAM_GAUGES.items():
                yield gauge(name, meaning, report.get(figure, 0) * unit)
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
