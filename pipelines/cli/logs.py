"""What the command lines say, for people or for machines: log records and announcements, without credentials.

Much of it has come from outside: names of files and classes, phrases of servers, texts of exceptions. So an
announcement is given line by line, and anything inside that would end a line or steer a terminal becomes an escape.

As text, announcements go to standard output (progress and faults to standard error) and log records to standard
error. As JSON, all of them are objects on standard error, one a line: time (UTC, ISO 8601), level, logger, message,
`event` and the fields of an announcement, and `exception` where there is one.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from pipelines.cli.redaction import redact, redact_all

LOG_FORMATS = ("text", "json")

_ANNOUNCEMENTS = logging.getLogger("pipelines")
_UNHEARD = (
    "apache_beam.runners.",
    "apache_beam.utils.subprocess_server",
    "apache_beam.io.filesystems",
    "apache_beam.io.mongodbio",
)
"""Beam's runners log what they then raise, and we explain; the last two warn of extras that nobody asked for."""
_READERS = {"wait_until_finish_read", "beam_control_read", "read_grpc_client_inputs"}
"""Threads of Beam's that end with a job, or with a worker's death, of which the main one hears too."""


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls: ends of lines, backspaces, the escapes of terminals in 7 and 8 bits
    "\u2028-\u202e\u2066-\u2069\u200e\u200f\u061c"  # ends of lines; what turns the direction of what follows
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"  # invisible; no characters at all
)


def printable(text: str) -> str:
    """One line that does nothing to a terminal: what would is shown as an escape. Emojis stay, joined ones too."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def quoted(text: str) -> list[str]:
    """The lines of a text from elsewhere, such as a traceback, marked so that none can be taken for one of ours."""
    return [f"  | {line}" for line in redact(text.rstrip("\n")).split("\n")]  # as a whole: keys have several lines


def _printed(lines: Sequence[str]) -> str:
    return "\n".join(printable(redact(line)) for line in lines)


def _traceback_of(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """Nothing if there is none. A worker's records have it as text alone."""
    return record.exc_text or (formatter.formatException(record.exc_info) if record.exc_info else "")


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname} {record.name}: {record.getMessage().rstrip()}"]
        if traced := _traceback_of(record, self):
            lines += quoted(traced)
        return _printed(lines)


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = getattr(record, "fields", {}) | {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traced := _traceback_of(record, self):
            entry["exception"] = traced
        # Plain ASCII: no character of a message can end the line or steer a terminal.
        return json.dumps(redact_all(entry), ensure_ascii=True)


class _Handler(logging.StreamHandler[TextIO]):
    """Of a class of its own, so that a second set-up finds the first one's."""


def _say_uncaught(text: str, error: BaseException | None) -> None:
    """In the format of all else, on what is standard error now, which is the workers' while a local run lasts."""
    handler = next(handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler))
    traced = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(__name__, logging.ERROR, "", 0, text, None, traced)
    print(handler.format(record), file=sys.stderr, flush=True)


def _say_thread(fault: threading.ExceptHookArgs) -> None:
    name = fault.thread.name if fault.thread else ""
    if fault.exc_type is not SystemExit and name not in _READERS:
        _say_uncaught(f"thread {name} ended with an error", fault.exc_value)


def _say_unraisable(fault: sys.UnraisableHookArgs) -> None:
    _say_uncaught(f"{fault.err_msg or 'Exception ignored in'} {fault.object!r}", fault.exc_value)


def set_up_logging(log_format: str) -> None:
    """Log warnings to standard error.

    Args:
        log_format: one of `LOG_FORMATS`. Python's warnings become records too, and errors that nothing can catch.
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
    if threading.excepthook is threading.__excepthook__ and sys.unraisablehook is sys.__unraisablehook__:
        threading.excepthook, sys.unraisablehook = _say_thread, _say_unraisable
    logging.captureWarnings(False)  # forget from where an earlier set-up has captured them
    logging.captureWarnings(True)
    # Some versions of Google's libraries say of each Python how long it has to live, once they are imported.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)


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
    text: str | Sequence[str],
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
    stream: TextIO | None = None,
    **fields: Any,
) -> None:
    """Say something to the person or program that started the command.

    Args:
        event: a short name, for machines.
        text: for people; a line, or several.
        level: as text, what is above INFO goes to standard error.
        error: its traceback follows.
        stream: for the text, instead of the standard streams.
        **fields: figures, for machines; names other than time, level, logger, message and exception.
    """
    lines = [text] if isinstance(text, str) else [*text]
    if is_json():
        fields |= {"event": event}
        _ANNOUNCEMENTS.log(level, "%s", "\n".join(lines), exc_info=error, extra={"fields": fields})
        return
    if error is not None:
        lines += quoted("".join(traceback.format_exception(error)))
    print(_printed(lines), file=stream or (sys.stderr if level > logging.INFO else sys.stdout), flush=True)
