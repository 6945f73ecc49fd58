"""Imports Beam without the packages that it imports wherever they are installed."""

from __future__ import annotations

import sys

import pyarrow as pa

_OTHERS = ("pandas", "google.cloud", "google.auth", "boto3")
"""For what of Beam we do not use, but on Dataflow: frames, Google's services, its own files on S3."""


def import_beam(runner: str = "") -> None:
    """Import Beam as where those packages are missing: in half the time, and with a third less memory.

    They can be imported afterwards. Does nothing if Beam has been imported.

    Args:
        runner: the name of that of the command. Dataflow's needs Google's.
    """
    if runner.lower().endswith("dataflowrunner"):
        return
    hidden = [name for name in _OTHERS if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type] # None: there is no such module
    try:
        import apache_beam  # noqa: F401

        pa.array(())  # with which Arrow looks for pandas; where a table is to become one of pandas' it looks again
    finally:
        for name in hidden:
            del sys.modules[name]
