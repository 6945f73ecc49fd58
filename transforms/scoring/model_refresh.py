"""WatchModels: runners get the models of `model_watch` by RunInference's side input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, TypeVar

import apache_beam as beam
from apache_beam.coders import FloatCoder, PickleCoder, StrUtf8Coder
from apache_beam.ml.inference.base import ModelHandler, ModelMetadata
from apache_beam.transforms.periodicsequence import PeriodicImpulse, RebaseMode
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows

from torchmoji_core.bundle import load_bundle
from transforms.options import ScoreOptions
from transforms.scoring.loaded_model import LoadedModel, Traits, load_model, traits_of
from transforms.scoring.model_watch import MARK, ModelWatch, Search, cannot_look, refuse, successor
from transforms.scoring.per_process import PerProcess

E = TypeVar("E")
R = TypeVar("R")
ModelUpdates: TypeAlias = beam.PCollection[ModelMetadata] | None


class SwappingHandler(ModelHandler[E, R, LoadedModel]):
    """Handlers of RunInference that load one model in each process, and another when it is announced.

    RunInference announces by `update_model_path`, and then calls `load_model`. That must not raise for what cannot be
    loaded: at the next batch, RunInference would take it for loaded.
    """

    def __init__(self, options: ScoreOptions) -> None:
        super().__init__()
        self._options = options
        self._announced: str | None = None
        self._held: PerProcess[LoadedModel] = PerProcess()

    def load_model(self) -> LoadedModel:
        with self._held.lock:
            model = self._held.get(lambda: load_model(self._options.model, self._options))
            if self._announced:
                model = self._held.value = successor(self._announced, model, self._options)
            return model

    def update_model_path(self, model_path: str | None = None) -> None:
        self._announced = model_path or self._announced


class WatchModels(beam.PTransform):
    """Announce models for `AnnotateTweets(model_updates=...)`: the first one at once, then each that is found.

    >>> updates = pipeline | WatchModels("gs://bucket/models/*.zip", every_seconds=60)

    One worker looks. The runner's side inputs must be able to change, as those of Dataflow and Flink can. Ticks come
    from an unbounded source, not from a timer behind `beam.Impulse`: an Impulse ends when it has begun, and with it the
    window in which timers and state live.
    """

    def __init__(
        self,
        pattern: str,
        every_seconds: float = 60,
        model: str | None = None,
        precision: str = "auto",
    ) -> None:
        """Args:
            pattern: a glob, of .zip files or of bundle directories.
            every_seconds: time from one look to the next.
            model: the first one, which decides what others must be like; None for the bundled one.
            precision: of scoring.

        Raises:
            InputError: for a time that is not positive.
        """
        super().__init__()
        self._watch = ModelWatch(pattern, every_seconds)
        self._options = ScoreOptions(model, precision, cache_mb=0, threads=1)

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[ModelMetadata]:
        return (
            pbegin
            | "Ticks" >> PeriodicImpulse(fire_interval=self._watch.every_seconds, rebase=RebaseMode.REBASE_START)
            | "Announce" >> Announce(self._watch, self._options)
        )


class Announce(beam.PTransform):
    """Ticks -> models: the first tick announces the first model, so that scoring waits for nothing else.

    Each later one looks, unless it follows too soon, as ticks do after a pause. So there is one announcement at a time,
    which is what a side input of one value can take.
    """

    def __init__(self, watch: ModelWatch, options: ScoreOptions) -> None:
        super().__init__()
        self._watch = watch
        self._options = options

    def expand(self, ticks: beam.PCollection[Any]) -> beam.PCollection[ModelMetadata]:
        return (
            ticks
            | "OneKey" >> beam.Map(lambda _: ("models", "")).with_output_types(tuple[str, str])
            | "Look" >> beam.ParDo(_Announce(self._watch, self._options)).with_output_types(ModelMetadata)
            # Discarding, so that a side input has one value: the newest.
            | "Newest"
            >> beam.WindowInto(
                GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
            )
        )


class _Announce(beam.DoFn):
    LAST = ReadModifyWriteStateSpec("last", FloatCoder())
    """When it was looked, by the clock."""
    CURRENT = ReadModifyWriteStateSpec("current", StrUtf8Coder())
    """Fingerprint of what was announced."""
    KNOWN = ReadModifyWriteStateSpec("known", PickleCoder())

    def __init__(self, watch: ModelWatch, options: ScoreOptions) -> None:
        self._watch = watch
        self._options = options
        self._first: PerProcess[tuple[str, Traits]] = PerProcess()

    def process(
        self,
        element: tuple[str, str],
        last: Any = beam.DoFn.StateParam(LAST),
        current: Any = beam.DoFn.StateParam(CURRENT),
        known: Any = beam.DoFn.StateParam(KNOWN),
    ) -> Iterator[ModelMetadata]:
        now, before = self._watch.clock(), last.read()
        if before is not None and now < before + self._watch.every_seconds / 2:
            return
        last.write(now)
        if before is None:
            yield ModelMetadata("", "")
            return
        first_fingerprint, first = self._first.get(self._load_first)
        search = Search(self._watch.pattern, self._options, first)
        search.known = known.read() or {}
        try:
            found = search.look(current.read() or first_fingerprint)
        except OSError as error:
            cannot_look(error)
            found = None
        known.write(search.known)
        refuse(search.refused)
        if found is not None:
            location, model = found
            current.write(model.scorer.fingerprint)
            # Without a name: RunInference would put it before the names of its metrics.
            yield ModelMetadata(f"{location}{MARK}{model.scorer.fingerprint}", "")

    def _load_first(self) -> tuple[str, Traits]:
        bundle = load_bundle(self._options.model)
        return bundle.fingerprint, traits_of(bundle)
