"""One scorer for every engine that speaks Arrow: Spark, Polars, pandas, DuckDB, `datasets`, Ray, Dask, Flink.

>>> scorer = ArrowScorer("text")
>>> scorer(table)  # a RecordBatch, a Table, a DataFrame of pandas or polars: the same, with columns of scores behind
>>> spark_frame.mapInArrow(scorer.batches, to_spark(scorer.schema(schema)))

A scorer holds options and the model's fingerprint, and no model: it is pickled in a few hundred bytes, and is equal to
another with the same options. The model is loaded where it is first used, once a process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from torchmoji_core.bundle import is_name, load_bundle, load_config
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.inference.scores import (
    DEFAULT_TOP,
    EMBEDDING_TYPES,
    SCORE_OUTPUTS,
    chosen,
    model_metadata,
    schema_of,
    score_columns,
)
from torchmoji_core.inference.texts import as_texts, values_of
from torchmoji_core.limits import check_threads
from torchmoji_core.locations import is_remote, local_path
from torchmoji_core.names import shown
from torchmoji_core.options import AT_LEAST_1, check_choice, check_choices, check_number
from torchmoji_core.processes import renew_after_fork

Data = TypeVar("Data")
ROWS_AT_ONCE = 8192
"""The most that are scored together, which bounds the memory beside the result."""


@dataclass(frozen=True)
class ArrowScorer:
    """Adds columns of scores to tables of any kind; each is as the pipeline writes it, for the same text and model."""

    text: str = "text"
    """Column of the texts."""
    model: str | Path | None = None
    """A bundle, as `load_bundle` takes it; None for the bundled model."""
    outputs: Sequence[str] = ("top", "probabilities", "embedding")
    """Any of `top`, `probabilities`, `embedding`, `attention`; other columns are always there."""
    top_k: int = DEFAULT_TOP
    precision: str = "auto"
    embedding_type: str = "float32"
    """`float32`, multiples of 1/4096, or `float16`."""
    threads: int | None = 1
    """Batches that are scored at the same time; one, since engines run a process a core. None for one a core."""
    fingerprint: str = field(default="", kw_only=True)
    """What the model must have wherever it is loaded; that of `model` as it is now, if not given."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: for an unknown option, or a model that cannot be found.
        """
        if not isinstance(self.fingerprint, str):
            raise InputError(f"fingerprint must be that of a bundle, as text, not {shown(self.fingerprint)}")
        if not isinstance(self.text, str):
            raise InputError(f"ArrowScorer takes the name of one column of texts, not {shown(self.text)}")
        if not isinstance(self.model, (str, Path, type(None))):
            raise InputError("ArrowScorer takes the path or URI of a model, which each process loads; save it first")
        check_choices("outputs", self.outputs, SCORE_OUTPUTS, fewest=0)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("embedding_type", self.embedding_type, EMBEDDING_TYPES)
        check_threads("threads", self.threads)
        check_number("top_k", self.top_k, AT_LEAST_1, is_whole=True)
        changes: dict[str, Any] = {"outputs": tuple(dict.fromkeys(self.outputs))}
        if self.model is not None:
            # Workers may be in another directory.
            is_path = not is_remote(str(self.model)) and not is_name(self.model)
            changes["model"] = str(local_path(str(self.model)).absolute()) if is_path else str(self.model)
        self.__dict__.update(changes)
        if not self.fingerprint:
            self.__dict__["fingerprint"] = load_config(self.model)[1]

    def __reduce__(self) -> Any:
        options = self.text, self.model, self.outputs, self.top_k, self.precision, self.embedding_type, self.threads
        return _with_fingerprint, (type(self), self.fingerprint, *options)

    def __call__(self, data: Data) -> Data:
        """The data with columns of scores behind its own; the same type, rows and order.

        A text that is null, empty or blank gives a row with the `status` empty, whose scores are null.

        Args:
            data: a RecordBatch or Table of Arrow, or a DataFrame of pandas or polars, with a column of texts. In Arrow
                it may be of strings of any kind, also as a dictionary.

        Raises:
            TypeError: for other data, or a column that is no text.
            InputError: if the column is missing or there twice, or a column of scores has the name of another.
            RunError: if the model has changed, or gives scores that are no finite numbers.
        """
        kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
        if isinstance(data, (pa.RecordBatch, pa.Table)):
            return self._of_arrow(data)
        if kind == "pandas.DataFrame":
            return self._of_pandas(data)
        if kind == "polars.DataFrame":
            return self._of_polars(data)
        raise TypeError(
            f"a scorer takes a RecordBatch, a Table, or a DataFrame of pandas or polars, not {kind}; for a list or a "
            "Series of texts there is scorer.columns(texts)"
        )

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Score each of an iterable, as Spark's `mapInArrow` and `mapInPandas` give them."""
        return map(self, batches)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of what data of a schema becomes, known from the model's configuration alone, without weights.

        Raises:
            TypeError, InputError: as for data of the schema.
        """
        self._check(schema.names, schema.field(self.text).type if schema.names.count(self.text) == 1 else None)
        metadata = {**(schema.metadata or {}), **self._schema.metadata}
        return pa.schema([*schema, *self._schema], metadata=metadata)

    def columns(self, texts: Iterable[Any]) -> dict[str, NDArray[Any]]:
        """Columns of scores as arrays, for functions that take and give plain columns, as those of Flink.

        It raises nothing for what the texts are: what is no string is scored as an empty text.

        Args:
            texts: a list, a Series or an array of Arrow, for example.

        Returns:
            [n] each, of numbers, or of objects: arrays, None for an empty text. A list of structs becomes a column for
            each field: `top_emojis_emoji`, `top_emojis_probability`.
        """
        found: dict[str, NDArray[Any]] = {}
        texts = [text if isinstance(text, str) else None for text in values_of(texts, "ArrowScorer")]
        for column, values in self._scored(texts).items():
            if not pa.types.is_list(values.type):
                found[column] = values.to_numpy(zero_copy_only=False)
                continue
            items = values.flatten()
            parts = {column: items}
            if pa.types.is_struct(items.type):
                parts = {f"{column}_{part.name}": items.field(part.name) for part in items.type}
            ends = np.cumsum(values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).tolist()
            rows = list(zip([0, *ends[:-1]], ends, values.is_valid().to_pylist(), strict=True)) if ends else []
            for name, part in parts.items():
                flat = part.to_numpy(zero_copy_only=False)
                found[name] = _objects([flat[start:end] if there else None for start, end, there in rows])
        return found

    def _of_arrow(self, data: Any) -> Any:
        schema = self.schema(data.schema)
        scored = self._scored(data.column(self.text).to_pylist())
        schema = schema.with_metadata({**schema.metadata, **_metadata_of(self._scorer)})
        return type(data).from_arrays([*data.columns, *scored.values()], schema=schema)

    def _of_pandas(self, data: Any) -> Any:
        import pandas as pd

        self._check(list(data.columns), None)
        texts = data[self.text]
        scored = pa.RecordBatch.from_arrays(list(self._scored(texts).values()), schema=self._schema).to_pandas()
        scored.index = data.index
        return pd.concat([data, scored], axis=1)

    def _of_polars(self, data: Any) -> Any:
        import polars as pl

        self._check(data.columns, data.head(0)[self.text].to_arrow().type if self.text in data.columns else None)
        scored = pa.Table.from_arrays(list(self._scored(data[self.text]).values()), schema=self._schema)
        return data.hstack(pl.DataFrame(scored).get_columns())

    def _check(self, names: Sequence[Any], kind: pa.DataType | None) -> None:
        """Raises:
        InputError, TypeError: as `__call__`.
        """
        if names.count(self.text) != 1:
            there = "there twice" if self.text in names else f"not among {', '.join(map(shown, names[:20])) or 'none'}"
            raise InputError(f"the column of texts, {self.text!r}, is {there}; name it: ArrowScorer('column')")
        clash = [name for name in self._schema.names if name in names]
        if clash:
            raise InputError(f"the data has a column {clash[0]!r} already, as scores have; rename or drop it first")
        if kind is not None and not _is_text(kind):
            raise TypeError(f"the column {self.text!r} is {kind}, not texts; cast it to string, or name another column")

    def _scored(self, texts: Any) -> dict[str, pa.Array]:
        """Columns of scores by name."""
        rows = as_texts(texts, missing="empty", caller="ArrowScorer")
        scorer = self._scorer
        parts = []
        for start in range(0, max(len(rows), 1), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            tokens = [scorer.tokenizer.tokens(text) for text in some] if "attention" in self.outputs else None
            scores = scorer.score_ids([scorer.tokenizer.encode(text, scorer.maxlen + 1) for text in some])
            parts.append(scores.to_arrow(self.outputs, self.top_k, self.embedding_type, tokens))
        return {
            name: parts[0].column(name) if len(parts) == 1 else pa.concat_arrays([part.column(name) for part in parts])
            for name in self._schema.names
        }

    @cached_property
    def _schema(self) -> pa.Schema:
        """Of the columns of scores alone."""
        config, fingerprint = load_config(self.model)
        self._check_fingerprint(config["name"], fingerprint)
        columns = chosen(score_columns(config["classes"], self.embedding_type), self.outputs)
        return schema_of(columns).with_metadata(
            model_metadata(config["name"], fingerprint, config["classes"], config["maxlen"])
        )

    @property
    def _scorer(self) -> Scorer:
        return _scorers.get(self)

    def _check_fingerprint(self, name: str, fingerprint: str) -> None:
        if fingerprint != self.fingerprint:
            raise RunError(
                f"the model {name} has fingerprint {fingerprint[:12]}, the scorer was made with "
                f"{self.fingerprint[:12]}: it was replaced meanwhile; make the scorer anew"
            )

    def _load(self) -> Scorer:
        bundle = load_bundle(self.model)
        self._check_fingerprint(bundle.name, bundle.fingerprint)
        return Scorer(bundle, self.precision, self.threads, 0, self.embedding_type)


class _Scorers:
    """Scorers of this process, one for each set of options. After a fork they make threads of their own."""

    def __init__(self) -> None:
        self._of: dict[tuple[Any, ...], Scorer] = {}
        self.renew()
        renew_after_fork(self)

    def renew(self) -> None:
        """Begin with a lock that nobody has."""
        self._lock = threading.Lock()

    def get(self, options: ArrowScorer) -> Scorer:
        """That of the options, loaded if it is not there."""
        key = options.fingerprint, options.precision, options.embedding_type, options.threads
        with self._lock:
            if key not in self._of:
                self._of[key] = options._load()
            return self._of[key]


_scorers = _Scorers()


def _with_fingerprint(kind: type[ArrowScorer], fingerprint: str, *options: Any) -> ArrowScorer:
    return kind(*options, fingerprint=fingerprint)


def _metadata_of(scorer: Scorer) -> dict[bytes, bytes]:
    """What only the process that scores knows."""
    return {b"torchmoji.precision": scorer.precision.encode(), b"torchmoji.arithmetic": scorer.arithmetic.encode()}


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "null")


def _objects(rows: list[Any]) -> NDArray[Any]:
    found = np.empty(len(rows), object)
    found[:] = rows
    return found
