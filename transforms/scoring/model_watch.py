"""ModelWatch: models that take the place of the first one while a pipeline runs, and how they are found.

The model to use is the newest bundle that matches a pattern and is fit for the run: by the time of the last change (of
a .zip, or of a directory's config.json), then by name. A bundle is loaded and verified before it is used or announced.
One that fails may be half uploaded, so it is looked at once more; if it has not changed by then, it is refused: logged
and counted once, and not looked at again until it changes.

A local stream has a `Lookout`; runners have `model_refresh`.
"""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from torchmoji_core.bundle_files import CONFIG
from torchmoji_core.errors import InputError, first_line, raise_shortage
from torchmoji_core.locations import is_remote, local_path
from transforms import metrics
from transforms.options import ScoreOptions
from transforms.scoring.loaded_model import LoadedModel, Traits, load_successor
from transforms.storage import files as storage

_LOGGER = logging.getLogger(__name__)
MARK = "#sha256="
"""Between location and fingerprint in an announcement: a bundle replaced under its name is another model."""


@dataclass(frozen=True)
class ModelWatch:
    """Where to look for models, and how often."""

    pattern: str
    """A glob, of .zip files or of bundle directories, on any filesystem that Beam knows."""
    every_seconds: float = 60
    clock: Callable[[], float] = time.time
    """Seconds; to be replaced in tests."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: for a time that is not positive.
        """
        if not self.every_seconds > 0:
            raise InputError(f"models are looked for every {self.every_seconds} seconds; give a positive number")

    def check(self) -> None:
        """Look once, so that a mistake is noticed before work starts. It is no mistake if nothing matches yet.

        Raises:
            InputError: if the place cannot be looked at.
        """
        try:
            find_bundles(self.pattern)
        except OSError as error:
            raise InputError(f"models to watch for: {error}") from None


class Found(NamedTuple):
    """A place that may hold a bundle."""

    location: str
    changed: float
    """Seconds since 1970."""


class Known(NamedTuple):
    """What the last look at a bundle has found."""

    state: str
    """Of its files; see `_state`."""
    fingerprint: str
    """Empty if it could not be loaded."""
    refused: bool = False


def find_bundles(pattern: str) -> list[Found]:
    """The matches of a pattern that look like bundles, newest first. Names that begin with a dot are left out.

    Raises:
        OSError: if the place cannot be looked at.
    """
    if not is_remote(pattern):
        pattern = str(local_path(pattern))
    pattern = pattern.rstrip("/")
    found = []
    for file in storage.match([pattern, f"{pattern}/{CONFIG}"]):
        location = file.path.removesuffix(f"/{CONFIG}")
        is_bundle = location != file.path or location.endswith(".zip")
        if is_bundle and not location.rpartition("/")[2].startswith("."):
            found.append(Found(location, file.last_updated_in_seconds))
    return sorted(found, key=lambda bundle: (bundle.changed, bundle.location), reverse=True)


def _state(location: str) -> str:
    """Sizes and times of a bundle's files; it changes while they are uploaded."""
    files = storage.match([glob.escape(location) + ("" if location.endswith(".zip") else "/*")])
    return repr([(file.path, file.size_in_bytes, file.last_updated_in_seconds) for file in files])


class Search:
    """Looks for the newest bundle that can be loaded, again and again."""

    def __init__(self, pattern: str, options: ScoreOptions, first: Traits) -> None:
        """Args:
        pattern: see `ModelWatch`.
        options: what to make.
        first: traits of the model that the pipeline was started with.
        """
        self._pattern, self._options, self._first = pattern, options, first
        self.known: dict[str, Known] = {}
        """What the last look has found of each bundle."""
        self.refused: list[str] = []
        """Why the last look has refused bundles that were not refused before."""

    def load(self, location: str) -> LoadedModel:
        """Load and verify a bundle; any exception means that it is not fit, unless it tells of a shortage."""
        return load_successor(location, self._first, self._options)

    def look(self, current: str) -> tuple[str, LoadedModel] | None:
        """Location and model, if there is another than the one with the fingerprint `current`.

        Raises:
            OSError: if the place cannot be looked at.
            Exception: what `load` raises for lack of memory and the like.
        """
        self.refused = []
        found = find_bundles(self._pattern)
        self.known = {bundle.location: self.known[bundle.location] for bundle in found if bundle.location in self.known}
        for location, _ in found:
            before, state = self.known.get(location), _state(location)
            unchanged = before is not None and before.state == state
            if before is not None and unchanged and before.fingerprint == current:
                return None
            if before is not None and unchanged and before.refused:
                continue
            try:
                model = self.load(location)
            except Exception as error:
                raise_shortage(error)
                self.known[location] = Known(state, "", refused=unchanged)
                if unchanged:
                    self.refused.append(first_line(error))
                continue
            self.known[location] = Known(state, model.scorer.fingerprint)
            return None if model.scorer.fingerprint == current else (location, model)
        return None


def successor(announced: str, current: LoadedModel, options: ScoreOptions) -> LoadedModel:
    """The model that was announced, or the current one if that cannot be used.

    Args:
        announced: `ModelMetadata.model_id`: a location, and from `WatchModels` with the fingerprint.
        current: the model in use.
        options: what to make.
    """
    location, _, fingerprint = announced.partition(MARK)
    if fingerprint == current.scorer.fingerprint:
        return current
    try:
        model = load_successor(location, current.first, options, fingerprint or None)
    except Exception as error:
        refuse([first_line(error)])
        return current
    return _swap(current, model)


def refuse(reasons: Iterable[str]) -> None:
    """Count and log bundles that are refused."""
    for reason in reasons:
        metrics.counter(metrics.MODELS_REFUSED).inc()
        _LOGGER.warning("a new model is refused, the one before stays: %s", reason)


def cannot_look(error: Exception) -> None:
    """Log that the place could not be looked at."""
    _LOGGER.warning("cannot look for new models: %s; the one before stays", error)


def _swap(current: LoadedModel, model: LoadedModel) -> LoadedModel:
    """The new model, unless it is the same: that keeps its cache of recent results."""
    if model.scorer.fingerprint == current.scorer.fingerprint:
        return current
    metrics.counter(metrics.MODEL_SWAPS).inc()
    _LOGGER.info("model %s takes the place of %s", model.scorer.fingerprint[:12], current.scorer.fingerprint[:12])
    return model


class Lookout:
    """Looks for models and loads them in the background, so that no batch waits; for one process."""

    def __init__(self, watch: ModelWatch, options: ScoreOptions) -> None:
        self._watch = watch
        self._options = options
        self._search: Search | None = None
        self._next = watch.clock()
        self._pending: Future[tuple[str, LoadedModel] | None] | None = None
        self._thread = ThreadPoolExecutor(1, "models")

    def newest(self, current: LoadedModel) -> LoadedModel:
        """The model to use for the next batch. Not for several threads at a time.

        Args:
            current: the model in use.
        """
        search = self._search = self._search or Search(self._watch.pattern, self._options, current.first)
        if self._pending is not None and self._pending.done():
            found = None
            try:
                found = self._pending.result()
            except Exception as error:
                cannot_look(error)
            refuse(search.refused)
            current = _swap(current, found[1]) if found else current
            self._pending = None
        if self._pending is None and self._watch.clock() >= self._next:
            self._next = self._watch.clock() + self._watch.every_seconds
            self._pending = self._thread.submit(search.look, current.scorer.fingerprint)
        return current
