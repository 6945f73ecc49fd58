"""How the pipeline lies on the runner: nothing behind the model is shuffled, and nothing heavy travels to workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment

from pipelines.cli.options import parse
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.graph import build_pipeline
from pipelines.runs.plan import make_plan
from tests.transforms.conftest import functions_of, make_texts
from transforms import AnnotateTweets, ReadTweets, WriteDeadLetters, WriteScores, metrics
from transforms.columns import OUTPUTS
from transforms.input.fields import FieldMapping, KeptField
from transforms.options import ScoreOptions
from transforms.records import RecordBatchCoder
from transforms.scoring.model_handler import TorchMojiModelHandler
from transforms.scoring.run_inference import RecordBatchHandler

LIGHT = 20_000
"""Bytes; a model is larger."""
INFERENCE = "AnnotateFiles/ScoreBatches/Score"
WRITE = "WriteScores/WriteParquet"
BARRIERS = (common_urns.primitives.GROUP_BY_KEY.urn, common_urns.composites.RESHUFFLE.urn)


@pytest.fixture(scope="module")
def pipeline(model: str, tmp_path_factory: pytest.TempPathFactory) -> beam.Pipeline:
    """The pipeline of the score command."""
    directory = tmp_path_factory.mktemp("stages")
    (directory / "x.txt").write_text("\n".join(make_texts(20)))
    config, _ = parse(["--input", str(directory / "*.txt"), "--output", str(directory / "out"), "--model", model])
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build_pipeline(pipeline, make_plan(config, DataSet(config.output), str(directory)))
    return pipeline


@pytest.fixture(scope="module")
def proto(pipeline: beam.Pipeline) -> beam_runner_api_pb2.Pipeline:
    return pipeline.to_runner_api(default_environment=EmbeddedPythonEnvironment.default())


@pytest.fixture(scope="module")
def stages(proto: beam_runner_api_pb2.Pipeline) -> list[list[str]]:
    """Labels of the transforms in each stage as the runner fuses them."""
    _, stages = FnApiRunner().create_stages(proto)
    return [[transform.unique_name for transform in stage.transforms] for stage in stages]


def stage_with(stages: list[list[str]], label: str) -> list[str]:
    (stage,) = [stage for stage in stages if any(label in name for name in stage)]
    return stage


def test_the_model_and_the_file_are_in_one_stage(stages: list[list[str]]) -> None:
    stage = stage_with(stages, INFERENCE)
    assert stage == stage_with(stages, WRITE)
    assert any("AnnotateFiles/ReadBatches" in name for name in stage)


def test_reading_is_behind_a_shuffle_of_names(stages: list[list[str]]) -> None:
    """So that several workers take parts of it."""
    assert stage_with(stages, "SplitInputs/SplitFiles") != stage_with(stages, "AnnotateFiles/ReadBatches")
    assert stage_with(stages, WRITE) != stage_with(stages, "WriteScores/CommitFiles/Rename")


def record_batches(proto: beam_runner_api_pb2.Pipeline) -> set[str]:
    """Collections whose elements are RecordBatches, told by their coder."""
    coders = PipelineContext(proto.components).coders
    found = {name for name in proto.components.coders if isinstance(coders.get_by_id(name), RecordBatchCoder)}
    return {name for name, collection in proto.components.pcollections.items() if collection.coder_id in found}


def test_no_barrier_consumes_record_batches(proto: beam_runner_api_pb2.Pipeline) -> None:
    batches = record_batches(proto)
    consumers = {
        transform.unique_name: transform.spec.urn
        for transform in proto.components.transforms.values()
        if batches & set(transform.inputs.values())
    }
    assert any(WRITE in name for name in consumers), "there are such collections"
    assert not [name for name, urn in consumers.items() if urn in BARRIERS or "Reshuffle" in name or "GroupBy" in name]


def test_no_barrier_lies_between_model_and_file(proto: beam_runner_api_pb2.Pipeline) -> None:
    """Whatever the types: every way from the model's output on ends before a barrier or at the names of files."""
    transforms = [transform for transform in proto.components.transforms.values() if not transform.subtransforms]
    (inference,) = [t for t in transforms if INFERENCE in t.unique_name]
    waiting, reached = list(inference.outputs.values()), []
    while waiting:
        name = waiting.pop()
        for transform in transforms:
            if name in transform.inputs.values() and transform not in reached:
                reached.append(transform)
                if WRITE not in transform.unique_name:  # behind it there are names only
                    waiting += transform.outputs.values()
    assert any(WRITE in transform.unique_name for transform in reached)
    barriers = [t.unique_name for t in reached if t.spec.urn in BARRIERS]
    assert all("WriteDeadLetters/CommitFiles" in name for name in barriers), barriers


# --- what travels --------------------------------------------------------------------------------------------------

KEEP = tuple(KeptField(f"some.longer.field.name.{index}", "json") for index in range(20))
OPTIONS = ScoreOptions(None, outputs=OUTPUTS, keep=KEEP, timestamp=True, run_id="run")


STEPS = ("SplitFiles", "ReadParts", "Tokenize", "Batch", "BeamML_RunInference", "WriteParquet", "WriteJsonLines0")


def carried() -> dict[str, Any]:
    """What is sent to workers of a pipeline with many options, and handlers of models."""
    pipeline = beam.Pipeline()
    read = pipeline | ReadTweets([], fields=FieldMapping(timestamp="at", keep=KEEP))
    scored = read.results | AnnotateTweets(options=OPTIONS)
    _ = scored.results | WriteScores("/some/where", "run")
    _ = (*read.dead_letters, *scored.dead_letters) | WriteDeadLetters("/some/where", "run")
    handlers = {"RecordBatchHandler": RecordBatchHandler(OPTIONS), "TorchMojiModelHandler": TorchMojiModelHandler(None)}
    return dict(zip(STEPS, functions_of(pipeline, *STEPS), strict=True)) | handlers


CARRIED = carried()


@pytest.mark.parametrize("name", CARRIED)
def test_what_is_sent_to_workers_is_light(name: str) -> None:
    sent = pickler.dumps(CARRIED[name])
    assert len(sent) < LIGHT
    assert type(pickler.loads(sent)) is type(CARRIED[name])


def test_handlers_stay_light_after_their_use(model: str) -> None:
    """Beam may pickle a handler again that has loaded a model in this process."""
    for handler in (RecordBatchHandler(ScoreOptions(model)), TorchMojiModelHandler(model)):
        loaded = handler.load_model()
        list(handler.run_inference([], loaded))
        assert len(pickler.dumps(handler)) < LIGHT


def held(value: Any, depth: int = 0) -> Iterator[Any]:
    """An object and what it holds in attributes and containers."""
    yield value
    if depth > 6 or isinstance(value, type):
        return
    inner: list[Any] = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, dict):
        inner += value.values()
    elif isinstance(value, list | tuple | set):
        inner += value
    for item in inner:
        yield from held(item, depth + 1)


def holds_a_model(value: Any) -> bool:
    names = {type(item).__name__ for item in held(value)}
    return bool(names & {"Tensor", "Parameter", "Bundle", "Scorer", "Engine", "LoadedModel", "Tokenizer", "Vocabulary"})


@pytest.mark.parametrize("name", CARRIED)
def test_no_function_holds_a_model(name: str) -> None:
    assert not holds_a_model(CARRIED[name])


def test_a_model_would_be_found(model: str) -> None:
    handler = RecordBatchHandler(ScoreOptions(model))
    assert holds_a_model(handler.load_model())


def test_every_function_of_the_pipeline_is_light(proto: beam_runner_api_pb2.Pipeline) -> None:
    """Those of Beam's own transforms, and what they close over, too."""
    sizes = {transform.unique_name: len(transform.spec.payload) for transform in proto.components.transforms.values()}
    assert max(sizes.values()) < LIGHT, max(sizes, key=lambda name: sizes[name])
    assert any(INFERENCE in name for name in sizes)


def test_the_whole_pipeline_is_light(proto: beam_runner_api_pb2.Pipeline) -> None:
    assert len(proto.SerializeToString()) < 200_000


def test_the_pipeline_that_was_inspected_runs(pipeline: beam.Pipeline) -> None:
    result = pipeline.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.result for c in result.metrics().query()["counters"]}
    assert counters[metrics.READ] == counters[metrics.ROWS_WRITTEN] == 20


def test_dead_letters_are_written_where_they_are_made(proto: beam_runner_api_pb2.Pipeline) -> None:
    """A Flatten of letters, as of all that is not names of files, would keep them in the local runner's memory."""
    flattened = [
        name
        for transform in proto.components.transforms.values()
        if transform.spec.urn == common_urns.primitives.FLATTEN.urn
        for name in transform.inputs.values()
    ]
    producers = [
        transform.unique_name
        for transform in proto.components.transforms.values()
        if not transform.subtransforms and set(flattened) & set(transform.outputs.values())
    ]
    assert producers, "names of files are flattened"
    assert all(name.startswith("WriteDeadLetters/WriteJsonLines") for name in producers), producers
