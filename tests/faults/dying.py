"""python -m tests.faults.dying PLACE COUNT ...: the score command, killed when it has been at a place so often.

Between the first row of a chunk of messages and its place in the data set a stream passes these, in this order.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

PLACES = {
    "written": ("transforms.storage.files", "sync"),
    "in place": ("pipelines.streams.stages", "put_in_place"),
    "published": ("transforms.output.kafka.KafkaSink", "publish"),
    "recorded": ("pipelines.streams.stages", "record_together"),
    "told to the group": ("pipelines.streams.kafka.KafkaSource", "acknowledge"),
    "listed": ("pipelines.data_set.manifest", "claim"),
}
"""By name, a function that has just ended there."""


def die_at(place: str, count: int) -> None:
    """Have this process killed after so many calls."""
    path, name = PLACES[place]
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    passed, function = 0, getattr(owner, name)

    def and_die(*arguments: Any, **named: Any) -> Any:
        nonlocal passed
        result = function(*arguments, **named)
        passed += 1
        if passed >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, and_die)


if __name__ == "__main__":
    _, place, count, *arguments = sys.argv
    die_at(place, int(count))
    from pipelines.cli.exits import end, run_command
    from pipelines.score import main

    sys.argv = ["pipelines.score", *arguments]
    end(run_command(main))
