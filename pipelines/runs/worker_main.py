"""Beam's worker, but for its log, which has no credentials: Beam's own logs all options of the job.

python -m pipelines.runs.worker_main, with the variables that `worker_boot` sets.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from apache_beam.runners.worker import sdk_worker_main

from pipelines.cli.redaction import redact


def redacted_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """A record as logging makes it, with its text final: handlers send it to the runner, which keeps and shows it."""
    record = logging.LogRecord(*arguments, **named)
    try:
        record.msg, record.args = redact(record.getMessage()), ()
    except Exception:  # its text and its arguments do not fit; the handler says so
        record.args = ()
    if record.exc_info:
        # Only as text: of an error that it gets, Beam's handler sends the traceback as it is.
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        record.exc_info = None
    return record


if __name__ == "__main__":
    logging.setLogRecordFactory(redacted_record)
    sdk_worker_main.main(sys.argv)
