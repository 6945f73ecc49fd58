"""Moods of messages with Apache Flink: a topic of Kafka or files in, Parquet out, each message once.

python examples/flink/job.py --input tweets.jsonl --output moods
flink run --detached --python examples/flink/job.py --input kafka://HOST:9092/tweets --output s3://bucket/moods

A message is a JSON object with a text and perhaps an id; in files, each line is one. What is no such object becomes a
row of dead_letters/, with the reason, and the job goes on. docs/flink.md says how to install it and how it restarts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyflink.table import DataTypes, EnvironmentSettings, Schema, TableDescriptor, TableEnvironment
from pyflink.table.expressions import col
from pyflink.table.types import from_arrow_type
from pyflink.table.udf import ScalarFunction, udf

from torchmoji_core import ArrowScorer, TorchMojiError
from torchmoji_core.inference.scores import valid_unicode

TEXT, BYTES = DataTypes.STRING(), DataTypes.BYTES()
Read = tuple[str | None, str | None, str | None]
"""Id, text, and the reason why there are none."""


class ReadAndScore(ScalarFunction):  # type: ignore[misc]
    """Messages -> id, text, reason and columns of scores.

    It raises nothing for what a message is: that would restart the job, which would meet the message again, for ever.
    """

    def __init__(self, scorer: ArrowScorer, id_field: str) -> None:
        self._scorer, self._id_field = scorer, id_field

    def open(self, function_context: Any) -> None:
        """Load the model before the first message is there."""
        self._scorer.columns([])

    def eval(self, messages: pd.Series) -> pd.DataFrame:
        """A row of each message, in their order."""
        rows = [self.read(message) for message in messages]
        read = pd.DataFrame(rows, columns=["id", "text", "reason"], dtype=object)
        return pd.DataFrame({**read, **self._scorer.columns(read["text"])})

    def read(self, message: bytes | None) -> Read:
        """Id and text of a message, or the reason why it has none."""
        if not message or message.isspace():
            return None, None, "empty message"
        try:
            post = json.loads(message.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return None, None, f"not UTF-8: {error.reason} at byte {error.start}"
        except (ValueError, RecursionError) as error:
            return None, None, f"not JSON: {error}"
        if not isinstance(post, dict):
            return None, None, f"not a JSON object but {type_name(post)}"
        for name, kinds in ((self._scorer.text, (str,)), (self._id_field, (str, int, type(None)))):
            if not isinstance(value := post.get(name), kinds) or isinstance(value, bool):
                there = f"is {type_name(value)}" if name in post else "is missing"
                return None, None, f"field {name!a} {there}"
        id_ = post.get(self._id_field)
        return None if id_ is None else valid_unicode(str(id_)), valid_unicode(post[self._scorer.text]), None


def type_name(value: object) -> str:
    """What JSON calls it."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def result_columns(scorer: ArrowScorer) -> dict[str, Any]:
    """Types by name of what the function gives. Flink takes no lists of structs from it: they are a list a field."""
    found = {"id": TEXT, "text": TEXT, "reason": TEXT}
    for column in list(scorer.schema(pa.schema([(scorer.text, pa.string())])))[1:]:
        if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            for part in column.type.value_type:
                found[f"{column.name}_{part.name}"] = DataTypes.ARRAY(from_arrow_type(part.type))
        else:
            found[column.name] = from_arrow_type(column.type)
    return found


def descriptor(connector: str, format: str, columns: dict[str, Any], options: dict[str, str]) -> Any:
    """Of a table."""
    made = TableDescriptor.for_connector(connector).format(format)
    for name, value in options.items():
        made = made.option(name, value)
    return made.schema(Schema.new_builder().from_fields(list(columns), list(columns.values())).build()).build()


def messages(place: str, consumer_options: Iterable[tuple[str, str]]) -> Any:
    """The source: bytes, since `json.ignore-parse-errors` loses rows when a worker dies, and without it one broken
    message ends the job."""
    if not (topic := kafka_topic(place)):
        return descriptor("filesystem", "raw", {"message": BYTES}, {"path": place})
    options = {f"properties.{name}": value for name, value in consumer_options}
    options |= {"properties.bootstrap.servers": topic[1], "topic": topic[2]}
    # Which is where the first start begins: a restart goes on from its checkpoint, another start from its savepoint.
    options["scan.startup.mode"] = "earliest-offset"
    return descriptor("kafka", "raw", {"message": BYTES}, options)


def run(options: argparse.Namespace, scorer: ArrowScorer) -> None:
    """Start the job. Returns when it is submitted, or has ended where it runs in this process."""
    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    settings = environment.get_config()
    settings.set("execution.checkpointing.interval", f"{options.commit_every} s")
    settings.set("pipeline.object-reuse", "true")  # or rows are copied, number by number
    # Or messages are scored twice, for the one table and for the other.
    settings.set("table.optimizer.reuse-optimize-block-with-digest-enabled", "true")

    columns = result_columns(scorer)
    row_type = DataTypes.ROW([DataTypes.FIELD(name, kind) for name, kind in columns.items()])
    score = udf(ReadAndScore(scorer, options.id_field), result_type=row_type, func_type="pandas")
    environment.create_temporary_table("messages", messages(options.input, options.consumer_option))
    table = environment.from_path("messages").select(col("message"), score(col("message")).alias("row"))
    rows = {name: col("row").get(name).alias(name) for name in columns}
    reason, statements = col("row").get("reason"), environment.create_statement_set()
    for name, chosen, those in (
        ("scores", {name: kind for name, kind in columns.items() if name != "reason"}, reason.is_null),
        ("dead_letters", {"reason": TEXT, "message": BYTES}, reason.is_not_null),
    ):
        environment.create_temporary_table(
            name, descriptor("filesystem", "parquet", chosen, {"path": f"{options.output.rstrip('/')}/{name}"})
        )
        statements.add_insert(
            name, table.filter(those).select(*({**rows, "message": col("message")}[n] for n in chosen))
        )
    job = statements.execute()
    if settings.get("execution.target", "local") == "local":
        job.wait()  # the cluster is a part of this process


def kafka_topic(place: str) -> re.Match[str] | None:
    return re.fullmatch(r"kafka://([^/]+)/([^/]+)", place)


def input_place(text: str) -> str:
    """A topic, a URI, or a path on this machine, which must be there."""
    if text.startswith("kafka:"):
        if not kafka_topic(text):
            raise argparse.ArgumentTypeError(f"{text}: a topic is written kafka://HOST:PORT/TOPIC")
        return text
    place = output_place(text)
    if "://" not in place and not Path(place).exists():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file or directory")
    return place


def output_place(text: str) -> str:
    """A URI, or a path, absolute since workers are in other directories."""
    return text if re.match(r"[a-z0-9]+://", text) else str(Path(text).absolute())


def seconds(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of seconds above 0")
    return int(text)


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=input_place, help="kafka://HOST:PORT/TOPIC, or a file or directory"
    )
    parser.add_argument("--output", required=True, type=output_place, help="directory of scores/ and dead_letters/")
    parser.add_argument("--model", help="a bundle that all task managers see (default: the bundled model)")
    parser.add_argument("--text_field", default="text", help="(default: %(default)s)")
    parser.add_argument("--id_field", default="id", help="(default: %(default)s)")
    parser.add_argument("--commit_every", type=seconds, default=60, metavar="SECONDS",
                        help="between checkpoints, with which files appear (default: %(default)s)")  # fmt: skip
    parser.add_argument("--consumer_option", type=setting, action="append", default=[], metavar="NAME=VALUE",
                        help="of Kafka's consumer; may be repeated")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        scorer = ArrowScorer(options.text_field, options.model)
    except TorchMojiError as error:
        parser.error(str(error))
    run(options, scorer)


if __name__ == "__main__":
    main()
