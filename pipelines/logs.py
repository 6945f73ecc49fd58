"""Logging of the command lines: warnings to standard error."""

from __future__ import annotations

import logging


def set_up_logging() -> None:
    """Warnings to standard error, but those of Beam's local runner: it logs what it then raises, and we explain."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.name != "root" and not record.name.startswith("apache_beam.runners."))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, handlers=[handler])
