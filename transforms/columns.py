"""The columns of the output, one table. Making, writing, publishing, reserving and describing them follow from it.

Those that a model's scores give are in `torchmoji_core.inference.scores`, since `Scores.to_arrow` makes them without
tweets and without Beam. Those that come with a tweet are here and not in `scoring`, since the code that writes and
publishes rows needs them too. Imports no Beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from torchmoji_core.inference.scores import SCORE_OUTPUTS, Column, score_columns

if TYPE_CHECKING:
    from transforms.records import TokenizedTweet

PARTITION_COLUMN = "_partition"
"""Travels with the rows to the writer, which makes directories of it; it is in no file."""
MESSAGE_COLUMN = "_message"
"""Travels with the rows to the writer as well: which message each is from goes into the record of the file."""
TIMESTAMP_COLUMN = "timestamp"
FINGERPRINT_COLUMN = "fingerprint"
OUTPUTS = ("text", "source", *SCORE_OUTPUTS, FINGERPRINT_COLUMN)
"""What can be chosen. The columns of partition and timestamp are there if the records have them."""


class Scored(NamedTuple):
    """What the columns are made of that do not come from scores."""

    rows: Sequence[TokenizedTweet]
    fingerprint: str
    """Of the model."""


def _each(value: Callable[[TokenizedTweet], Any]) -> Callable[[Scored, pa.DataType], pa.Array]:
    """Makes a column of a value of each row."""
    return lambda scored, kind: pa.array(list(map(value, scored.rows)), kind)


def _kept(index: int, field: pa.Field) -> Column:
    repeats = "" if pa.types.is_string(field.type) else None
    return Column(field.name, field.type, "`--keep_fields`", _each(lambda row: row.tweet.extra[index]), repeats=repeats)


def columns_of(classes: Sequence[str], embedding_type: str, keep: Sequence[pa.Field] = ()) -> tuple[Column, ...]:
    """All columns of a model's rows, in their order.

    Args:
        classes: the model's.
        embedding_type: see `score_columns`.
        keep: columns of the fields that are carried through from the input.
    """
    string = pa.string()
    return (
        Column("id", string, "from the input, or a hash of file and position", _each(attrgetter("tweet.id"))),
        Column("text", string, "", _each(attrgetter("tweet.text")), "text", is_short=False),
        Column(
            "source",
            string,
            "the input file. A name that is no UTF-8 is a percent-encoded `file://` URI; "
            "`torchmoji_core.files.name_from_text` gives the name of any",
            _each(attrgetter("tweet.source")),
            "source",
            repeats="",
        ),
        Column(PARTITION_COLUMN, string, "", _each(attrgetter("tweet.partition")), PARTITION_COLUMN, is_short=False),
        Column(MESSAGE_COLUMN, string, "", _each(attrgetter("tweet.message")), MESSAGE_COLUMN, is_short=False),
        *(_kept(index, field) for index, field in enumerate(keep)),
        Column(
            TIMESTAMP_COLUMN,
            pa.timestamp("us", tz="UTC"),
            "`--timestamp_field`; null where it cannot be read, which is counted",
            _each(attrgetter("tweet.timestamp")),
            TIMESTAMP_COLUMN,
        ),
        *score_columns(classes, embedding_type),
        Column(
            "cut_by_platform",
            pa.bool_(),
            "whether the platform has cut the text, and the record has no whole one: a `truncated` of Twitter's API "
            "1.1, `RT @...` that ends in `…`",
            _each(attrgetter("tweet.is_cut")),
        ),
        Column(
            FINGERPRINT_COLUMN,
            string,
            "of the model that scored the row, always there where models may change "
            "([docs/model_refresh.md](docs/model_refresh.md))",
            lambda scored, kind: pa.array([scored.fingerprint] * len(scored.rows), kind),
            FINGERPRINT_COLUMN,
            repeats="",
        ),
    )


_ALL = {column.name: column for classes in ("a", "😂") for column in columns_of([classes], "float32")}
RESERVED_COLUMNS = frozenset(_ALL)
"""Names that no kept field may have."""
LONG_COLUMNS = [column.name for column in _ALL.values() if not column.is_short]
"""Left out of messages: readers of a topic want to be told, not to be sent kilobytes a row."""


def paths_of_repeats(schema: pa.Schema) -> list[str]:
    """Paths of the columns whose values repeat, so that dictionaries pay.

    Half floats are left out: they repeat as well, but their dictionaries save nothing, and take their time.
    """
    paths = []
    for field in schema:
        column = _ALL.get(field.name)
        repeats = column.repeats if column else "" if pa.types.is_string(field.type) else None
        if repeats is not None and not (_is_vector(field.type) and pa.types.is_float16(field.type.value_type)):
            paths.append(f"{field.name}.{repeats}".rstrip("."))
    return paths


def paths_of_vectors(schema: pa.Schema) -> list[str]:
    """Paths of the columns that are lists of numbers."""
    return [f"{field.name}.list.element" for field in schema if _is_vector(field.type)]


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
