"""Beam's local streaming runner, with a source that waits for what is in flight, and memory that does not grow.

Three things are replaced in it:

* How Pub/Sub is read: see `pubsub_reader`. When reading is stopped, the source ends like a bounded one, so all windows
  close, all timers fire, and the pipeline comes to its end.
* `Reshuffle`, which in one process moves nothing, but makes a random key for each element, whose state Beam's runner
  keeps for ever and looks through for timers at every step.
* How Pub/Sub is written: Beam's own makes a client for each bundle, and never closes it.

State of a key that has none left is dropped for the same reason, and metrics are counted in every bundle. And while a
batch is being scored, which is work for other cores, the next tweets are read, tokenized and held.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import _RunInferenceDoFn
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, Pipeline, PTransformOverride
from apache_beam.runners.direct import direct_runner, evaluation_context, executor, transform_evaluator
from apache_beam.runners.direct.util import TransformResult
from apache_beam.runners.direct.watermark_manager import WatermarkManager
from apache_beam.runners.worker import statesampler
from apache_beam.transforms import userstate
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils import counters
from apache_beam.utils.timestamp import Timestamp

from pipelines.pubsub_reader import PubSubReader
from transforms.publish import PublishToPubSub

TAKE_SECONDS = 0.025
"""How long the runner waits for messages at a time; no timer fires meanwhile."""
BUNDLES_AHEAD = 2
PAUSE_SECONDS = 0.005
WATERMARK_DELAY = 1.0
"""Seconds by which the watermark is behind the clock, so that a message on its way is not late."""

SPECS_KNOWN = 1000
"""Functions that are pickled by value are others each time."""


class StreamRunner(direct_runner.BundleBasedDirectRunner):
    """Runs a streaming pipeline that reads one subscription, in threads of this process."""

    def __init__(self, reader: PubSubReader) -> None:
        super().__init__()
        self._reader = reader

    def run_pipeline(self, pipeline: Pipeline, options: PipelineOptions) -> Any:
        """Start the pipeline and return at once."""
        from apache_beam.io.gcp.pubsub import WriteToPubSub

        _remember_specs()
        pipeline.replace_all(
            [
                _Replace(beam.Reshuffle, lambda _: beam.Map(_same)),
                _Replace(WriteToPubSub, lambda write: PublishToPubSub(write.full_topic)),
            ]
        )
        registry = transform_evaluator.TransformEvaluatorRegistry
        reads = {direct_runner._DirectReadFromPubSub: functools.partial(_ReadEvaluator, self._reader)}
        with _replaced(
            (registry, "_test_evaluators_overrides", registry._test_evaluators_overrides | reads),
            (evaluation_context, "EvaluationContext", _FrugalContext),
            (executor, "_ExecutorService", type("Lanes", (_Lanes,), {"reader": self._reader})),
            (executor._ExecutorServiceParallelExecutor, "_MonitorTask", _MonitorOfLanes),
        ):
            return super().run_pipeline(pipeline, options)


@contextlib.contextmanager
def _replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes of Beam's runner, while it makes what it runs with."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for change in changes:
            setattr(*change)
        yield
    finally:
        for change in before:
            setattr(*change)


class _ReadEvaluator(transform_evaluator._TransformEvaluator):
    """Gives what was pulled meanwhile in one bundle."""

    def __init__(self, reader: PubSubReader, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reader = reader

    def finish_bundle(self) -> TransformResult:
        from apache_beam.io.gcp.pubsub import PubsubMessage

        (output,) = self._outputs
        messages = self._reader.take(TAKE_SECONDS)
        bundles = [self._evaluation_context.create_bundle(output)] if messages else []
        for message in messages:
            time_ = message.publish_time
            published = Timestamp(time_.seconds, time_.nanos // 1000)
            element = PubsubMessage(message.data, dict(message.attributes), message.message_id, published)
            bundles[0].output(GlobalWindows.windowed_value(element, timestamp=published))
        if self._reader.is_exhausted:
            return TransformResult(self, bundles, [], None, {None: WatermarkManager.WATERMARK_POS_INF})
        # An empty bundle as what is left to process, by which the runner comes back.
        rest = self._evaluation_context.create_bundle(beam.pvalue.PBegin(self._applied_ptransform.transform.pipeline))
        return TransformResult(self, bundles, [rest], None, {None: Timestamp.of(time.time() - WATERMARK_DELAY)})


class _FrugalContext(evaluation_context.EvaluationContext):
    """Forgets keys that have neither state nor timers."""

    def handle_result(self, completed_bundle: Any, completed_timers: Any, result: TransformResult) -> Any:
        committed = super().handle_result(completed_bundle, completed_timers, result)
        with self._lock:
            states = self._transform_keyed_states[result.transform]
            for key in result.partial_keyed_state:
                state = states.get(key)
                if state is not None and not state.timers and not state.global_state and not _has_state(state):
                    del states[key]
        return committed


def _has_state(state: Any) -> bool:
    return any(values for tags in state.state.values() for values in tags.values())


class _Lanes(executor._ExecutorService):
    """Two threads, one of them for scoring alone, so that it need not wait for anything else, nor hold it up.

    Each task has a state sampler of its own. A sampler keeps the first metrics of each step that it meets, so with one
    for the whole run, as Beam has it, what is counted in the second bundle of a step and later ones is lost.
    """

    reader: PubSubReader

    def __init__(self, num_workers: int) -> None:
        super().__init__(num_workers)
        self._to_score: queue.Queue[Any] = queue.Queue()
        self.workers.append(self._ExecutorServiceWorker(self._to_score, num_workers))

    def submit(self, task: Any) -> None:
        if not _is_scoring(task):
            super().submit(_Measured(task))
        elif not self.shutdown_requested:
            self._to_score.put(_Measured(task))

    def shutdown(self) -> None:
        super().shutdown()
        self._to_score.put(None)  # for a thread that waits there

    @property
    def is_scoring(self) -> bool:
        return self._to_score.unfinished_tasks > 0

    @property
    def is_ahead(self) -> bool:
        """Whether enough waits to be scored. What comes meanwhile had better wait in the source, for large bundles:
        small ones cost so much that scoring would fall behind further."""
        return self._to_score.qsize() >= BUNDLES_AHEAD


def _is_scoring(task: Any) -> bool:
    transform = getattr(getattr(task, "_applied_ptransform", None), "transform", None)
    return isinstance(transform, beam.ParDo) and isinstance(transform.fn, _RunInferenceDoFn)


class _MonitorOfLanes(executor._ExecutorServiceParallelExecutor._MonitorTask):
    """What gives the threads work. It reads on while there is only scoring to be done."""

    def _is_executing(self) -> bool:
        """Whether the source has to wait; once that has ended, whether the run has not."""
        running = self._executor
        if any(not task.blocked and not _is_scoring(task) for task in running.transform_executor_services.executors):
            return True
        lanes = running.executor_service
        reader = lanes.reader
        if (lanes.is_ahead and not reader.has_plenty) or (reader.is_exhausted and lanes.is_scoring):
            time.sleep(PAUSE_SECONDS)
            return True
        # What was scored since the updates were last looked at is among them by now.
        return not running.all_updates._queue.empty()

    def _should_shutdown(self) -> bool:
        # Reading on was put off, and may be due since.
        return not any(self._executor.node_to_pending_bundles.values()) and super()._should_shutdown()


class _Measured(executor._ExecutorService.CallableTask):
    def __init__(self, task: Any) -> None:
        self._task = task

    @property
    def name(self) -> Any:
        return self._task.name

    def call(self, state_sampler: Any) -> None:
        own = statesampler.StateSampler("", counters.CounterFactory())
        statesampler.set_current_tracker(own)
        self._task.call(own)


def _remember_specs() -> None:
    """Have Beam look for a DoFn's state and timers once, and not several times a bundle by inspecting its methods.

    That is two thirds of what a bundle costs, and small bundles are what a stream consists of.
    """
    find = userstate.get_dofn_specs
    if hasattr(find, "__wrapped__"):
        return
    known: dict[Any, Any] = {}

    @functools.wraps(find)
    def remember(dofn: beam.DoFn) -> Any:
        key = (type(dofn), getattr(dofn, "_fn", None))  # of beam.Map and the like, the function
        if key not in known:
            if len(known) >= SPECS_KNOWN:
                known.clear()
            known[key] = find(dofn)
        return known[key]

    userstate.get_dofn_specs = transform_evaluator.get_dofn_specs = remember


class _Replace(PTransformOverride):
    """Replaces each transform of a type."""

    def __init__(self, kind: type[beam.PTransform], replacement: Any) -> None:
        super().__init__()
        self._kind, self._replacement = kind, replacement

    def matches(self, applied_ptransform: AppliedPTransform) -> bool:
        return type(applied_ptransform.transform) is self._kind

    def get_replacement_transform_for_applied_ptransform(self, applied_ptransform: AppliedPTransform) -> Any:
        return self._replacement(applied_ptransform.transform)


def _same(element: Any) -> Any:
    return element
