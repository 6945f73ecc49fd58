"""The graphs of clusters' jobs, written down: what a running job of a stream keeps when its program is replaced.

A runner finds the state of a step by the step's name, and reads it with the step's coders. So if one of these changes,
a stream that is updated or restored from a savepoint loses that state, or is refused, and has to be drained first.

    python -m tests.graphs        # writes them again
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders.coders import Coder
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

from pipelines.cli.options import parse
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import graph
from pipelines.runs.plan import make_plan
from pipelines.streams import launch, pubsub_job

_PUBSUB = ("--streaming", "--input", "pubsub://projects/project-one/subscriptions/tweets", "--window", "5m")
COMMANDS = {
    "files": ("--input", "posts.jsonl"),
    "files_no_wait": ("--input", "posts.jsonl", "--no_wait"),
    "pubsub": _PUBSUB,
    "pubsub_model_watch": (*_PUBSUB, "--model_watch", "models"),
}
"""Graphs, and the options that make them."""
KEPT = ("files", "pubsub")
"""Those that are written down."""


_CLASS, _SHORT = r"<class '(?:\w+\.)*(\w+)'>", r"\1"


def path_of(name: str) -> Path:
    """Where a graph is kept."""
    return Path(__file__).parent / f"{name}.json"


def build(name: str, directory: Path) -> beam_runner_api_pb2.Pipeline:
    """One of the graphs, as a cluster would be given it.

    Args:
        name: a key of `COMMANDS`.
        directory: for its input and output.
    """
    posts = directory / "posts.jsonl"
    posts.write_text('{"id": "1", "text": "a"}\n')
    (directory / "models").mkdir(exist_ok=True)
    places = {"posts.jsonl": str(posts), "models": str(directory / "models")}
    arguments = [places.get(argument, argument) for argument in COMMANDS[name]]
    config, _ = parse([*arguments, "--output", str(directory / "out"), "--runner=PortableRunner"])
    data_set = DataSet(config.output)
    stream = config.stream
    plan = launch.make_plan(config, stream, data_set) if stream else make_plan(config, data_set, str(directory))
    pipeline = beam.Pipeline()
    (pubsub_job if stream else graph).build_pipeline(pipeline, plan)
    return pipeline.to_runner_api()


def describe(graph: beam_runner_api_pb2.Pipeline) -> dict[str, Any]:
    """What a job's state depends on, without what its functions do."""
    components = graph.components
    context = PipelineContext(components)
    coders: dict[str, str] = {}

    def coder(id_: str) -> str:
        if id_ not in coders:
            coders[id_] = _coder(components, id_, context.coders.get_by_id, coder)
        return coders[id_]

    steps: dict[str, Any] = {}
    for transform in components.transforms.values():
        if not transform.subtransforms and transform.outputs:
            outputs = sorted(transform.outputs.items())
            steps[transform.unique_name] = {
                "urn": transform.spec.urn,
                "from": sorted(_name(components.pcollections[id_]) for id_ in transform.inputs.values()),
                "gives": {tag: coder(components.pcollections[id_].coder_id) for tag, id_ in outputs},
            } | _state(transform, coder)
    windows = {
        f"{components.windowing_strategies[id_].window_fn.urn}, "
        f"{components.windowing_strategies[id_].trigger.WhichOneof('trigger')}"
        for id_ in {each.windowing_strategy_id for each in components.pcollections.values()}
    }
    return {
        "requirements": sorted(graph.requirements),
        "windows": sorted(windows),
        "steps": dict(sorted(steps.items())),
    }


def _name(collection: beam_runner_api_pb2.PCollection) -> str:
    """Without the length of its step's name, which Beam puts before it."""
    return re.sub(r"^\d+", "", collection.unique_name)


def _coder(
    components: beam_runner_api_pb2.Components, id_: str, found: Callable[[str], Coder], inner: Callable[[str], str]
) -> str:
    proto = components.coders[id_]
    parts = ", ".join(inner(each) for each in proto.component_coder_ids)
    name = proto.spec.urn.removeprefix("beam:coder:").removesuffix(":v1")
    if name == "pickled_python":
        of = found(id_)
        kind = of.to_type_hint() if hasattr(of, "to_type_hint") else None
        name = f"{type(of).__name__}({getattr(kind, '__name__', None) or re.sub(_CLASS, _SHORT, str(kind))})"
    return f"{name}[{parts}]" if parts else name


def _state(transform: beam_runner_api_pb2.PTransform, coder: Callable[[str], str]) -> dict[str, Any]:
    if transform.spec.urn != "beam:transform:pardo:v1":
        return {}
    payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
    described: dict[str, Any] = {}
    for name, spec in sorted(payload.state_specs.items()):
        kind = spec.WhichOneof("spec")
        ids = sorted(id_ for field, id_ in getattr(spec, kind).ListFields() if field.name.endswith("coder_id"))
        described.setdefault("states", {})[name] = f"{kind} of {', '.join(map(coder, ids))}" if ids else kind
    for name, timer in sorted(payload.timer_family_specs.items()):
        domain = beam_runner_api_pb2.TimeDomain.Enum.Name(timer.time_domain).lower()
        described.setdefault("timers", {})[name] = f"{domain}, {coder(timer.timer_family_coder_id)}"
    for name, view in sorted(payload.side_inputs.items()):
        described.setdefault("side_inputs", {})[name] = view.access_pattern.urn
    if payload.requires_stable_input or payload.requires_time_sorted_input or payload.requests_finalization:
        described["wants"] = [
            what
            for what in ("requires_stable_input", "requires_time_sorted_input", "requests_finalization")
            if getattr(payload, what)
        ]
    return described


def main() -> None:
    """Write them."""
    for name in KEPT:
        with tempfile.TemporaryDirectory() as directory:
            path_of(name).write_text(json.dumps(describe(build(name, Path(directory))), indent=1) + "\n")
