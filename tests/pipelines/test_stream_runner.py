"""Beam's local streaming runner as we run it: what it counts, what it keeps, and how it ends."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import StrUtf8Coder
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from google.pubsub_v1 import types

from pipelines.stream_runner import StreamRunner

SEEN: list[str] = []


class Reader:
    """Gives the messages of a list, one bundle for each item."""

    def __init__(self, bundles: list[list[str]]) -> None:
        self._bundles = bundles

    @property
    def is_exhausted(self) -> bool:
        return not self._bundles

    @property
    def has_plenty(self) -> bool:
        return bool(self._bundles) and len(self._bundles) % 2 == 0

    def take(self, seconds: float) -> list[Any]:
        bundle = self._bundles.pop(0) if self._bundles else []
        messages = [types.PubsubMessage(data=text.encode(), message_id=text) for text in bundle]
        return [types.PubsubMessage.pb(message) for message in messages]


def run(bundles: list[list[str]], transform: beam.PTransform) -> Any:
    """Run a transform of messages to its end, which comes when all timers have fired."""
    SEEN.clear()
    options = PipelineOptions([])
    options.view_as(StandardOptions).streaming = True
    pipeline = beam.Pipeline(runner=StreamRunner(Reader(bundles)), options=options)  # type: ignore[arg-type]
    subscription = "projects/my-project/subscriptions/posts"
    messages = pipeline | ReadFromPubSub(subscription=subscription, with_attributes=True)
    messages | "Text" >> beam.Map(_text) | transform | "See" >> beam.Map(_see)
    result = pipeline.run()
    assert result.wait_until_finish() == "DONE"
    return result


def _text(message: PubsubMessage) -> str:
    Metrics.counter("test", "messages").inc()
    return message.data.decode()


def _see(text: str) -> None:
    SEEN.append(text)


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_every_bundle_is_counted() -> None:
    result = run([[number] for number in numbers(20)], beam.Map(str))
    assert numbers(20) == SEEN
    (counter,) = (found for found in result.metrics().query()["counters"] if found.key.metric.name == "messages")
    assert counter.result == 20


class _Hold(beam.DoFn):
    """Holds texts by key until an hour has passed, or the input has ended."""

    TEXTS = BagStateSpec("texts", StrUtf8Coder())
    HOUR = TimerSpec("hour", TimeDomain.REAL_TIME)
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[str, str],
        window: Any = beam.DoFn.WindowParam,
        texts: Any = beam.DoFn.StateParam(TEXTS),
        hour: Any = beam.DoFn.TimerParam(HOUR),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> None:
        texts.add(element[1])
        hour.set(time.time() + 3600)
        end.set(window.max_timestamp())

    @on_timer(HOUR)  # type: ignore[untyped-decorator]
    def too_late(self) -> Iterator[str]:
        yield "an hour has passed"

    @on_timer(END)  # type: ignore[untyped-decorator]
    def finish(self, texts: Any = beam.DoFn.StateParam(TEXTS), hour: Any = beam.DoFn.TimerParam(HOUR)) -> Iterator[str]:
        yield from texts.read()
        texts.clear()
        hour.clear()


class _HoldAll(beam.PTransform):
    def expand(self, texts: beam.PCollection[str]) -> beam.PCollection[str]:
        keyed = texts | beam.Map(lambda text: (text[-1], text)).with_output_types(tuple[str, str])
        return keyed | beam.ParDo(_Hold())


def test_what_is_held_comes_out_when_reading_is_stopped() -> None:
    run([numbers(30), [], ["30"]], _HoldAll())
    assert sorted(SEEN) == sorted(numbers(31)), "all, at once, and not by the timer of processing time"


@pytest.mark.parametrize("transform", [beam.Reshuffle(), _HoldAll()], ids=["reshuffle", "state"])
def test_no_key_is_remembered(transform: beam.PTransform) -> None:
    """Beam's own keeps every random key of a Reshuffle, and looks through all of them at every step."""
    result = run([[number] for number in numbers(50)], transform)
    assert sorted(SEEN) == sorted(numbers(50))
    states = result._evaluation_context._transform_keyed_states
    assert states and not [key for of_step in states.values() for key in of_step]


def test_a_failure_ends_the_run() -> None:
    with pytest.raises(Exception, match="invalid literal for int"):
        run([["1"], ["x"], ["2"]], beam.Map(int))


class _Score(ModelHandler[str, str, object]):
    """Takes some milliseconds for each text, which its length says."""

    def load_model(self) -> object:
        class Model:
            pass

        return Model()

    def run_inference(self, batch: Sequence[str], model: object, inference_args: Any = None) -> Iterator[str]:
        for text in batch:
            time.sleep(len(text) / 1000)
            yield text


def test_what_is_scored_beside_the_rest_comes_out_whole() -> None:
    """The source gives much more than is scored meanwhile, then nothing for a while, then ends."""
    dice = random.Random(3)
    bundles = [[f"{number}{'-' * dice.randrange(20)}"] if dice.random() < 0.6 else [] for number in range(600)]
    texts = [text for bundle in bundles for text in bundle]
    run(list(bundles), beam.Map(lambda text: [text]) | RunInference(_Score().with_no_batching()))
    assert sorted(SEEN) == sorted(texts)


def test_a_failure_to_score_ends_the_run() -> None:
    class Failing(_Score):
        def run_inference(self, batch: Sequence[str], model: object, inference_args: Any = None) -> Iterator[str]:
            raise ValueError("no score")

    with pytest.raises(Exception, match="no score"):
        run([["1"], ["2"]], beam.Map(lambda text: [text]) | RunInference(Failing().with_no_batching()))
