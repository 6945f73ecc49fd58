"""A plugin for Beam's workers (`--beam_plugins=tests.pipelines.runs.halting`) that halts one at a place in the code.

Variables of the environment: HALT_AT is `module:function` or `module:class.method`; or `start`, before the worker
connects. The first process that gets there writes its number into the file HALT_FILE, and goes on once there is another
file with the suffix `.go`. With HALT_ALL the others wait for that too. Each leaves a file with its number as suffix.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _halt() -> None:
    file = Path(os.environ["HALT_FILE"])
    said = file.with_suffix(f".{os.getpid()}")
    said.write_text(str(os.getpid()))
    try:
        os.link(said, file)  # appears whole, and once
    except FileExistsError:
        if "HALT_ALL" not in os.environ:
            return
    while not file.with_suffix(".go").exists():
        time.sleep(0.02)


def _halting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def halt_and_call(*arguments: Any, **named: Any) -> Any:
        _halt()
        return function(*arguments, **named)

    return halt_and_call


def _install(place: str) -> None:
    if place == "start":
        _halt()
        return
    module, _, path = place.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        holder = getattr(holder, each)
    setattr(holder, name, _halting(getattr(holder, name)))


if "HALT_AT" in os.environ:
    _install(os.environ["HALT_AT"])
