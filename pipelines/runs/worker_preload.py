"""What a process imports from which workers are forked; the workers need not then."""

from __future__ import annotations

import gc
import importlib

from pipelines.cli.exits import YOUNG_OBJECTS
from pipelines.cli.logs import set_up_logging

set_up_logging("text")  # Beam speaks while it is imported, of extras that nobody asked for
gc.set_threshold(YOUNG_OBJECTS)
for name in ("worker_boot", "graph"):
    importlib.import_module(f"pipelines.runs.{name}")
# A search for cycles in what stays would only have each worker make a copy of it, and take half a second at the end.
gc.freeze()
