"""Beam's import, without what it imports in passing and a local run does not use."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pyarrow as pa

_UNUSED = ("pandas", "pymongo", "boto3", "google.auth", "google.api_core", "google.cloud")
"""Beam looks for these, and does without where they are not installed. Object stores are read by `storage` itself, and
so is Pub/Sub by local streams."""


def import_beam(is_local: bool) -> None:
    """Import Beam; for a run on this machine without what takes half a second where all extras are installed.

    Args:
        is_local: whether no job is sent to a cluster, for which Beam may need what is left out.
    """
    if not is_local or "apache_beam" in sys.modules:
        return
    finder = SimpleNamespace(find_spec=_find_unused)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("apache_beam")
        pa.array(())  # with which Arrow looks for pandas; it looks again where a table is to become one of pandas'
    finally:
        sys.meta_path.remove(finder)


def _find_unused(name: str, path: object = None, target: object = None) -> None:
    if name in _UNUSED:
        raise ModuleNotFoundError(f"{name} is not imported for Beam", name=name)
