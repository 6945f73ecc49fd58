"""AnnotateRows: rows with a schema in, rows with a schema out; for Beam SQL, Beam YAML and pipelines of NamedTuples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Optional

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import RunInference
from apache_beam.typehints.row_type import RowTypeConstraint

from torchmoji_core.bundle import load_config
from torchmoji_core.errors import InputError
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP, chosen, schema_of, score_columns
from torchmoji_core.options import check_choices
from transforms import metrics
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, Outcome
from transforms.scoring.loaded_model import LoadedModel
from transforms.scoring.model_refresh import SwappingHandler

_OUTPUTS = ("top", "probabilities", "embedding")


class AnnotateRows(beam.PTransform):
    """Rows (`beam.Row`, a NamedTuple) -> an `Outcome` of Rows with columns of scores behind their own, and DeadLetters.

    >>> rows, dead = pipeline | beam.Create([beam.Row(user="u1", text="what a day")]) | AnnotateRows("text")

    Columns, types and values are those of the pipeline's files. A row whose text is None or has no tokens has the
    status `empty`; one whose text is something else becomes a dead letter.
    """

    def __init__(
        self,
        text: str = "text",
        model: str | None = None,
        outputs: Collection[str] = _OUTPUTS,
        top_k: int = DEFAULT_TOP,
        precision: str = "auto",
        embedding_type: str = "float32",
        threads: int | None = None,
        cache_mb: int = DEFAULT_CACHE_MB,
    ) -> None:
        """Args:
            text: column of the texts.
            model: bundle, by path or URI; None for the bundled one.
            outputs: any of `top`, `probabilities`, `embedding`; other columns are always there.
            top_k, precision, embedding_type, threads, cache_mb: see `ScoreOptions`.

        Raises:
            InputError: for an unknown value or model, when the pipeline is built.
        """
        super().__init__()
        check_choices("outputs", outputs, _OUTPUTS, fewest=0)
        outputs = tuple(outputs)
        config, fingerprint = load_config(model)
        self._text = text
        # A column of its own is always there, so there may be no output of these.
        self._options = ScoreOptions(
            model, precision, outputs or ("text",), top_k, embedding_type, threads=threads, cache_mb=cache_mb,
            fingerprint=fingerprint,
        )  # fmt: skip
        columns = score_columns(config["classes"], embedding_type)
        self._schema = schema_of(chosen(columns, outputs))

    def expand(self, rows: beam.PCollection[Any]) -> Outcome:
        row_type = RowTypeConstraint.from_user_type(rows.element_type) or rows.element_type
        if not isinstance(row_type, RowTypeConstraint):
            raise InputError(
                f"AnnotateRows takes rows with a schema, not {rows.element_type}: make them by beam.Select, beam.Row "
                "or a NamedTuple; for dictionaries and strings there is AnnotateTweets"
            )
        fields = list(row_type._fields)
        names = [name for name, _ in fields]
        if self._text not in names:
            raise InputError(f"the rows have no column {self._text!r} of texts, but {', '.join(names)}")
        kind = dict(fields)[self._text]
        # Of a NamedTuple whose module postpones annotations there are only names of types.
        if kind is not Any and isinstance(kind, type) and not issubclass(kind, str):
            raise InputError(f"the column {self._text!r} is of {kind}, not of texts; name another one, or make it str")
        clash = [name for name in self._schema.names if name in names]
        if clash:
            raise InputError(f"the rows have a column {clash[0]!r} already, as scores have; rename or drop it first")
        out_type = RowTypeConstraint.from_fields(
            [*fields, *((field.name, _python_type(field.type)) for field in self._schema)]
        )
        checked = rows | "CheckRows" >> beam.FlatMap(_check, self._text).with_output_types(
            Any, dead=DeadLetter
        ).with_outputs("dead", main="rows")
        handler = _RowHandler(self._options, self._text, names)
        scored = checked["rows"] | "RunInference" >> RunInference(handler)
        return Outcome(scored | "Type" >> beam.Map(_same).with_output_types(out_type), (checked["dead"],))


class AnnotateForYaml(beam.PTransform):
    """`AnnotateRows` for Beam YAML, whose transforms give dictionaries: outputs `rows`, and `dead` as Rows.

    Its options are those of YAML: `text`, `model`, `outputs`, `top_k`, `precision`.
    """

    def __init__(
        self,
        text: str = "text",
        model: str | None = None,
        outputs: Sequence[str] = _OUTPUTS,
        top_k: int = 5,
        precision: str = "auto",
    ) -> None:
        """Args: as `AnnotateRows`."""
        super().__init__()
        self._annotate = AnnotateRows(text, model, outputs, top_k=top_k, precision=precision)

    def expand(self, rows: beam.PCollection[Any]) -> dict[str, beam.PCollection[Any]]:
        annotated = rows | "AnnotateRows" >> self._annotate
        (letters,) = annotated.dead_letters
        dead = letters | "DeadAsRows" >> beam.Map(
            lambda letter: beam.Row(reason=letter.reason, raw=letter.raw.decode("utf-8", "replace"))
        ).with_output_types(RowTypeConstraint.from_fields([("reason", str), ("raw", str)]))
        return {"rows": annotated.results, "dead": dead}


class _RowHandler(SwappingHandler[Any, beam.Row]):
    def __init__(self, options: ScoreOptions, text: str, names: Sequence[str]) -> None:
        super().__init__(options)
        self._text, self._names = text, tuple(names)

    def run_inference(
        self, batch: Sequence[Any], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterator[beam.Row]:
        scores = model.scorer.score([getattr(row, self._text) for row in batch], missing="empty")
        options = self._options
        columns = scores.to_arrow(options.score_outputs, options.top_k, options.embedding_type or "float32")
        for row, made in zip(batch, columns.to_pylist(), strict=True):
            yield beam.Row(
                **{name: getattr(row, name) for name in self._names}, **{k: _rows(v) for k, v in made.items()}
            )

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        return sum(len(getattr(row, self._text) or "") for row in batch)

    def get_metrics_namespace(self) -> str:
        return metrics.NAMESPACE

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 64, "max_batch_size": 512}


def _check(row: Any, text: str) -> Iterator[Any]:
    value = getattr(row, text, None)
    if value is None or isinstance(value, str):
        yield row
    else:
        reason = f"{text!r} is no text but {type(value).__name__}"
        yield beam.pvalue.TaggedOutput("dead", DeadLetter("AnnotateRows", "", reason, repr(row)[:1000].encode()))


def _same(row: Any) -> Any:
    return row


def _rows(value: Any) -> Any:
    """Lists of dictionaries, as Arrow gives structs, as lists of Rows."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [beam.Row(**item) for item in value]
    return value


def _python_type(kind: pa.DataType) -> Any:
    """Beam's type of a column; lists may be null."""
    if pa.types.is_list(kind):
        items = _python_type(kind.value_type)
        return Optional[Sequence[items]]  # type: ignore[valid-type]  # noqa: UP045
    if pa.types.is_struct(kind):
        return RowTypeConstraint.from_fields([(field.name, _python_type(field.type)) for field in kind])
    return {pa.string(): str, pa.bool_(): bool, pa.int32(): np.int32}.get(kind, np.float32)
