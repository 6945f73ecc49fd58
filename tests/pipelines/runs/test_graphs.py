"""The graphs that clusters are given: what they need of a runner, and that a running stream can be updated."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import graphs

TAKEN = {"bag_spec", "read_modify_write_spec", "set_spec", "combining_spec"}
"""Kinds of state that Beam's Flink runner has for Python. It has no ordered lists."""
REQUIREMENTS = {"beam:requirement:pardo:stateful:v1", "beam:requirement:pardo:splittable_dofn:v1"}
"""Not of stable input, for which Beam's Python has no way to ask; nor of the end of bundles."""


@pytest.fixture(scope="module")
def describe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """A graph by its name, built once."""
    return functools.cache(lambda name: graphs.describe(graphs.build(name, tmp_path_factory.mktemp(name))))


@pytest.mark.parametrize("name", graphs.COMMANDS)
def test_a_runner_needs_nothing_that_flink_has_not(describe: Callable[[str], dict[str, Any]], name: str) -> None:
    described = describe(name)
    assert {*described["requirements"]} <= REQUIREMENTS
    for step, what in described["steps"].items():
        assert {kind.partition(" ")[0] for kind in what.get("states", {}).values()} <= TAKEN, step
        assert "wants" not in what, step
    if name.startswith("files"):
        assert not described["requirements"]  # no state, no timers
        assert not [step for step, what in described["steps"].items() if "states" in what or "timers" in what]


@pytest.mark.parametrize("name", graphs.KEPT)
def test_steps_coders_and_states_are_as_they_were(describe: Callable[[str], dict[str, Any]], name: str) -> None:
    kept = json.loads(graphs.path_of(name).read_text())
    made = describe(name)
    changed = [
        step for step in sorted(kept["steps"] | made["steps"]) if kept["steps"].get(step) != made["steps"].get(step)
    ]
    assert made == kept, (
        f"the graph {name} has changed in {', '.join(changed) or 'requirements or windows'}: a stream that runs cannot "
        "be updated or restored with it, or loses the state of these steps. Where that is meant, say in CHANGELOG.md "
        "that streams have to be drained first (or, of renamed steps, what --transform_name_mapping is to say), and "
        "write it down again with `python -m tests.graphs`"
    )


def test_a_changed_coder_is_seen(tmp_path: Path) -> None:
    graph = graphs.build("pubsub", tmp_path)
    kept = graphs.describe(graph)
    hold = next(each for each in graph.components.transforms.values() if each.unique_name.endswith("BufferTweets/Hold"))
    hold.unique_name += "2"
    assert graphs.describe(graph) != kept
