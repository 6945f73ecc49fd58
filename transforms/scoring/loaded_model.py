"""LoadedModel: a model that a process scores with, and what a model must have to take the place of another."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

import pyarrow as pa

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.inference.scores import Column, chosen, model_metadata, schema_of
from torchmoji_core.memory import keep_freed_memory
from torchmoji_core.vocabulary import UNKNOWN
from transforms.columns import columns_of
from transforms.options import ENCODING, PARQUET_ENCODINGS, RUN_ID, ScoreOptions

if TYPE_CHECKING:
    from torchmoji_core.inference.scorer import Scorer

_LOGGER = logging.getLogger(__name__)
_alive: WeakValueDictionary[ScoreOptions, LoadedModel] = WeakValueDictionary()


class Traits(NamedTuple):
    """What decides the columns of a model's rows, and which token ids it reads."""

    classes: tuple[str, ...]
    multi_label: bool
    width: int
    """Of an embedding."""
    reading: tuple[str, int]
    """Digest of the vocabulary, and maxlen: if these are equal, models read the same ids of a text."""


class LoadedModel:
    """A scorer, the schema of its rows, and the metadata that files carry."""

    def __init__(self, scorer: Scorer, name: str, options: ScoreOptions, traits: Traits, first: Traits) -> None:
        self.scorer = scorer
        kept = [field.column for field in options.keep]
        every = columns_of(scorer.classes, options.embedding_type or "float32", kept)
        self.columns = chosen(every, options.column_outputs)
        self.schema = _schema(scorer, name, options, self.columns)
        self.first = first
        """Traits of the model that tweets were tokenized for."""
        self.reads_as_first = traits.reading == first.reading

    def for_run(self, run_id: str) -> LoadedModel:
        """The same model, for the files of another run."""
        other = copy.copy(self)
        other.schema = self.schema.with_metadata(self.schema.metadata | {RUN_ID: run_id.encode()})
        return other


def traits_of(bundle: Bundle) -> Traits:
    """The traits of a bundle's model."""
    vocabulary = hashlib.sha256(bundle.vocabulary.to_json().encode()).hexdigest()
    width = bundle.dimensions.channels
    return Traits(bundle.classes, bundle.multi_label, width, (vocabulary, bundle.maxlen))


def _schema(scorer: Scorer, name: str, options: ScoreOptions, columns: Sequence[Column]) -> pa.Schema:
    """Schema of the output, with metadata that says what made it; every value is a string."""
    metadata = model_metadata(name, scorer.fingerprint, scorer.classes, scorer.maxlen) | {
        "torchmoji.precision": scorer.precision,
        "torchmoji.arithmetic": scorer.arithmetic,
        RUN_ID.decode(): options.run_id,
    }
    if options.parquet_encoding != PARQUET_ENCODINGS[0]:
        metadata[ENCODING.decode()] = options.parquet_encoding
    return schema_of(columns).with_metadata(metadata)


def load_model(model: str | None, options: ScoreOptions) -> LoadedModel:
    """Load a bundle for scoring in this process.

    If `options` say which model it must be, a model that is still held from an earlier call with the same options is
    used again. So a command that runs one pipeline after another keeps the result, and the model is loaded once.

    Raises:
        InputError: if it cannot be read.
        RunError: if it is not the one that `options` ask for.
    """
    key = dataclasses.replace(options, model=model, run_id="", progress=None)
    alive = _alive.get(key) if options.fingerprint is not None else None
    if alive is not None:
        return alive.for_run(options.run_id)
    bundle = load_bundle(model)
    if options.fingerprint not in (None, bundle.fingerprint):
        raise RunError(
            f"the model {bundle.name} has fingerprint {bundle.fingerprint[:12]}, the run was planned with "
            f"{str(options.fingerprint)[:12]}: it was replaced meanwhile; run again"
        )
    traits = traits_of(bundle)
    loaded = _alive[key] = _loaded(bundle, options, traits, traits)
    return loaded


def load_successor(location: str, first: Traits, options: ScoreOptions, fingerprint: str | None = None) -> LoadedModel:
    """Load a bundle that is to take the place of another while a pipeline runs.

    Args:
        location: path or URI.
        first: traits of the model that the pipeline was started with.
        options: what to make; its own fingerprint is that of the first model.
        fingerprint: what the bundle must have; None for any.

    Raises:
        InputError: if it cannot be read, is damaged, or would give other columns, or scores that are no numbers.
    """
    bundle = load_bundle(location)
    if fingerprint not in (None, bundle.fingerprint):
        raise InputError(
            f"bundle {location} has fingerprint {bundle.fingerprint[:12]}, not {str(fingerprint)[:12]} as when it was "
            "found; give each bundle a name of its own"
        )
    traits = traits_of(bundle)
    if traits.classes != first.classes or traits.multi_label != first.multi_label:
        raise InputError(
            f"bundle {location} has other classes than the model of this run ({len(traits.classes)} and "
            f"{len(first.classes)}, or in another order, or other rules); start a new run with it"
        )
    if traits.width != first.width:
        raise InputError(
            f"bundle {location} has embeddings of {traits.width} numbers, the model of this run of {first.width}; "
            "start a new run with it"
        )
    loaded = _loaded(bundle, options, traits, first)
    try:
        loaded.scorer.score_ids([[UNKNOWN]])  # an error here would come with every tweet
    except RunError as error:
        raise InputError(f"bundle {location}: {error}") from None
    return loaded


def _loaded(bundle: Bundle, options: ScoreOptions, traits: Traits, first: Traits) -> LoadedModel:
    from torchmoji_core.inference.scorer import Scorer  # torch: whoever only describes a job does without

    keep_freed_memory()
    scorer = Scorer(bundle, options.precision, options.threads, options.cache_mb, options.embedding_type)
    _LOGGER.info("model %s, fingerprint %s, %s", bundle.name, bundle.fingerprint[:12], scorer.arithmetic)
    return LoadedModel(scorer, bundle.name, options, traits, first)
