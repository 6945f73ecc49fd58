"""What the command lines say, for people or for machines: log records and announcements, without credentials.

As text, announcements go to standard output (progress and faults to standard error) and log records to standard
error. As JSON, all of them are objects on standard error, one a line: time (UTC, ISO 8601), level, logger, message,
`event` and the fields of an announcement, and `exception` where there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from pipelines.redaction import redact, redact_all

LOG_FORMATS = ("text", "json")

_ANNOUNCEMENTS = logging.getLogger("pipelines.run")
_UNHEARD = ("apache_beam.runners.", "apache_beam.io.filesystems")
"""Beam's local runner logs what it then raises, and we explain; the other warns of extras that nobody asked for."""


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))  # here, since a filter does not see the text of an exception


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = getattr(record, "fields", {}) | {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # Plain ASCII: no character of a message can end the line or steer a terminal.
        return json.dumps(redact_all(entry), ensure_ascii=True)


class _Handler(logging.StreamHandler[TextIO]):
    """Of a class of its own, so that a second set-up finds the first one's."""


def set_up_logging(log_format: str) -> None:
    """Log warnings to standard error.

    Args:
        log_format: one of `LOG_FORMATS`; in json, Python's warnings become records too.
    """
    handler = _Handler()
    handler.setFormatter(_JSONFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(lambda record: record.name != "root" and not record.name.startswith(_UNHEARD))
    root = logging.getLogger()
    for earlier in [other for other in root.handlers if isinstance(other, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    _ANNOUNCEMENTS.setLevel(logging.INFO)
    logging.captureWarnings(log_format == "json")


def wanted_format(arguments: list[str]) -> str:
    """The value of --log_format, before all else is parsed: what is wrong with the rest is said in that format too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--log_format", default="text")
    try:
        return str(parser.parse_known_args(arguments)[0].log_format)
    except argparse.ArgumentError:  # without a value; the real parser will say so
        return "text"


def is_json() -> bool:
    """Whether `set_up_logging` has chosen JSON."""
    return any(isinstance(handler.formatter, _JSONFormatter) for handler in logging.getLogger().handlers)


def announce(
    event: str,
    text: str,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
    stream: TextIO | None = None,
    **fields: Any,
) -> None:
    """Say something to whoever started the command.

    Args:
        event: a short name, for machines.
        text: for people.
        level: as text, what is above INFO goes to standard error.
        error: its traceback follows.
        stream: for the text, instead of the standard streams.
        **fields: figures, for machines; names other than time, level, logger, message and exception.
    """
    if is_json():
        _ANNOUNCEMENTS.log(level, "%s", text, exc_info=error, extra={"fields": fields | {"event": event}})
        return
    if error is not None:
        text = f"{text}\n{''.join(traceback.format_exception(error))}".rstrip()
    print(redact(text), file=stream or (sys.stderr if level > logging.INFO else sys.stdout), flush=True)
