"""Moods of messages with Apache Flink: a topic of Kafka or files in, Parquet out, each message once.

python examples/flink/job.py --input tweets.jsonl --output moods

A message is a JSON object with a text, and perhaps an id. What is not such an object becomes a row of the dead letters,
with the reason, and the job goes on. How to install, and how to run it on a cluster: docs/flink.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from pyflink.table import DataTypes, EnvironmentSettings, Schema, TableDescriptor, TableEnvironment
from pyflink.table.expressions import col
from pyflink.table.types import from_arrow_type
from pyflink.table.udf import ScalarFunction, udf

from torchmoji_core import ArrowScorer, InputError
from torchmoji_core.inference.scores import valid_unicode

REASON = "reason"


class ReadAndScore(ScalarFunction):  # type: ignore[misc]
    """Messages as bytes -> id, text and columns of scores, or the reason why a message is none.

    It raises nothing for what a message is: an exception would start the job again from the last checkpoint, with the
    same message, for ever.
    """

    def __init__(self, scorer: ArrowScorer, id_field: str) -> None:
        self._scorer, self._id_field = scorer, id_field

    def open(self, function_context: Any) -> None:
        """Load the model before the first message comes."""
        self._scorer.columns([])

    def eval(self, messages: pd.Series) -> pd.DataFrame:
        """A row of each message, in their order."""
        read = pd.DataFrame([self._read(message) for message in messages], columns=["id", "text", REASON], dtype=object)
        return pd.DataFrame({**read, **self._scorer.columns(read["text"])})

    def _read(self, message: bytes | None) -> tuple[str | None, str | None, str | None]:
        if message is None or not message.strip():
            return None, None, "empty message"
        try:
            post = json.loads(message.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return None, None, f"not UTF-8: {error.reason} at byte {error.start}"
        except (ValueError, RecursionError) as error:
            return None, None, f"not JSON: {error}"
        if not isinstance(post, dict):
            return None, None, f"not a JSON object but {_kind(post)}"
        text, id_ = post.get(self._scorer.text), post.get(self._id_field)
        if not isinstance(text, str):
            return None, None, f"the field {self._scorer.text!r} is {_kind(text)} or not there, and no text"
        if isinstance(id_, bool) or not isinstance(id_, (str, int, type(None))):
            return None, None, f"the field {self._id_field!r} is {_kind(id_)}, and no text or whole number"
        return None if id_ is None else valid_unicode(str(id_)), valid_unicode(text), None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def fields(scorer: ArrowScorer) -> list[DataTypes.FIELD]:
    """Names and types of what the function gives. Flink's functions over Arrow cannot give lists of structs."""
    found = [(name, DataTypes.STRING()) for name in ("id", "text", REASON)]
    for field in list(scorer.schema(pa.schema([(scorer.text, pa.string())])))[1:]:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            for part in field.type.value_type:
                found.append((f"{field.name}_{part.name}", DataTypes.ARRAY(from_arrow_type(part.type))))
        else:
            found.append((field.name, from_arrow_type(field.type)))
    return [DataTypes.FIELD(*each) for each in found]


def source(address: str, consumer_options: dict[str, str]) -> TableDescriptor:
    """One column of bytes: a format that reads JSON in the source would drop what it cannot read, or end the job."""
    topic = re.fullmatch(r"kafka://([^/]+)/([^/]+)", address)
    if topic:
        options = {"properties.bootstrap.servers": topic[1], "topic": topic[2], "scan.startup.mode": "earliest-offset"}
        options |= {f"properties.{name}": value for name, value in consumer_options.items()}
        made = TableDescriptor.for_connector("kafka")
    else:
        options, made = {"path": address}, TableDescriptor.for_connector("filesystem")
    for name, value in options.items():
        made = made.option(name, value)
    return made.format("raw").schema(Schema.new_builder().column("message", DataTypes.BYTES()).build()).build()


def parquet(path: str, columns: Sequence[Any]) -> TableDescriptor:
    """A directory of files that appear with each checkpoint."""
    schema = Schema.new_builder().from_fields([each.name for each in columns], [each.data_type for each in columns])
    return TableDescriptor.for_connector("filesystem").option("path", path).format("parquet").schema(schema.build()).build()


def run(options: argparse.Namespace, scorer: ArrowScorer) -> None:
    """Start the job."""
    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    environment.get_config().set("execution.checkpointing.interval", f"{options.commit_every} s")
    # Or each of the two tables has its messages scored for itself.
    environment.get_config().set("table.optimizer.reuse-optimize-block-with-digest-enabled", "true")
    columns = fields(scorer)
    score = udf(ReadAndScore(scorer, options.id_field), result_type=DataTypes.ROW(columns), func_type="pandas")
    environment.create_temporary_table("messages", source(options.input, dict(options.consumer_option)))
    scored = environment.from_path("messages").select(col("message"), score(col("message")).alias("row"))
    good, bad = [each for each in columns if each.name != REASON], [DataTypes.FIELD(REASON, DataTypes.STRING()), DataTypes.FIELD("message", DataTypes.BYTES())]
    environment.create_temporary_table("scores", parquet(f"{options.output}/scores", good))
    environment.create_temporary_table("dead_letters", parquet(f"{options.output}/dead_letters", bad))
    reason = col("row").get(REASON)
    job = environment.create_statement_set()
    job.add_insert("scores", scored.filter(reason.is_null).select(*(col("row").get(each.name).alias(each.name) for each in good)))
    job.add_insert("dead_letters", scored.filter(reason.is_not_null).select(reason.alias(REASON), col("message")))
    print(job.explain())
    job.execute().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model")
    parser.add_argument("--text_field", default="text")
    parser.add_argument("--id_field", default="id")
    parser.add_argument("--commit_every", type=float, default=60)
    parser.add_argument("--consumer_option", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        scorer = ArrowScorer(options.text_field, options.model)
    except InputError as error:
        parser.error(str(error))
    run(options, scorer)


if __name__ == "__main__":
    main()
