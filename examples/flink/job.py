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
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyflink.table import DataTypes, EnvironmentSettings, Schema, Table, TableDescriptor, TableEnvironment
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
        for name, kinds, wanted in (
            (self._scorer.text, (str,), "a string"),
            (self._id_field, (str, int, type(None)), "a string or a whole number"),
        ):
            if not isinstance(value := post.get(name), kinds) or isinstance(value, bool):
                is_ = f"{type_name(value)}, not {wanted}" if name in post else "missing"
                return None, None, f"the field {name!a} is {is_}"
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
        if not pa.types.is_list(column.type):
            found[column.name] = from_arrow_type(column.type)
        elif pa.types.is_struct(item := column.type.value_type):
            found |= {f"{column.name}_{part.name}": array(part.type) for part in item}
        else:
            found[column.name] = array(item)
    return found


def array(item: pa.DataType) -> Any:
    """The type of an array without nulls, whose numbers Flink does not make objects of."""
    return DataTypes.ARRAY(from_arrow_type(item).not_null())


def table(columns: dict[str, Any], format: str, connector: str, **options: str) -> Any:
    """What describes a table to Flink."""
    schema = Schema.new_builder().from_fields(list(columns), list(columns.values())).build()
    described = TableDescriptor.for_connector(connector).format(format).schema(schema)
    for name, value in options.items():
        described = described.option(name, value)
    return described.build()


def run(options: argparse.Namespace, scorer: ArrowScorer) -> None:
    """Start the job. Returns when it is submitted, or has ended where it runs in this process."""
    is_stream = options.input["connector"] == "kafka"
    mode = EnvironmentSettings.in_streaming_mode() if is_stream else EnvironmentSettings.in_batch_mode()
    environment = TableEnvironment.create(mode)
    settings = environment.get_config()
    if is_stream:
        settings.set("execution.checkpointing.interval", f"{options.commit_every} s")
        # A job that is cancelled may be gone on with: from its last checkpoint.
        settings.set("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION")
        # Or `flink stop` is refused wherever the order to stop comes before the end of data in some tasks only.
        settings.set("execution.checkpointing.checkpoints-after-tasks-finish", "false")
    else:
        settings.set("restart-strategy.type", "exponential-delay")  # as a stream has it anyway
        # Or all rows go to a disk between two tasks, and the scheduler for that starts none before the other has ended.
        settings.set("execution.batch-shuffle-mode", "ALL_EXCHANGES_PIPELINED")
        settings.set("jobmanager.scheduler", "Default")
    # Each step is a task with a thread of its own, so that they work at the same time.
    settings.set("pipeline.operator-chaining.enabled", "false")
    # Or messages are scored twice, for the one table and for the other.
    settings.set("table.optimizer.reuse-optimize-block-with-digest-enabled", "true")

    columns = result_columns(scorer)
    row_type = DataTypes.ROW([DataTypes.FIELD(name, kind) for name, kind in columns.items()])
    score = udf(ReadAndScore(scorer, options.id_field), result_type=row_type, func_type="pandas")
    # Bytes: Flink's own JSON would lose rows with `json.ignore-parse-errors` when a worker dies; without it, the first
    # broken message would end the job.
    consumer = {f"properties.{name}": value for name, value in options.consumer_option}
    source = options.input if options.input["connector"] == "filesystem" else consumer | options.input
    environment.create_temporary_table("messages", table({"message": BYTES}, "raw", **source))
    messages, message = environment.from_path("messages"), col("message")
    # In two halves, each with a bundle of its own: so Python scores one's while Java takes rows of the other's. With
    # `trim`, since most other conditions Flink would give to the source, and read files once for each.
    is_first = message.cast(TEXT).trim().md5.substring(1, 1) < "8"
    halves = [
        messages.filter(half).select(message, score(message).alias("row"))
        for half in (is_first.is_true, is_first.is_not_true)
    ]
    rows = reduce(
        Table.union_all,
        [half.select(message, *(col("row").get(name).alias(name) for name in columns)) for half in halves],
    )
    statements = environment.create_statement_set()
    for name, kinds, chosen in (
        ("scores", {name: columns[name] for name in columns if name != "reason"}, col("reason").is_null),
        ("dead_letters", {"reason": TEXT, "message": BYTES}, col("reason").is_not_null),
    ):
        path = f"{options.output.rstrip('/')}/{name}"
        environment.create_temporary_table(name, table(kinds, "parquet", "filesystem", path=path))
        statements.add_insert(name, rows.filter(chosen).select(*map(col, kinds)))
    job = statements.execute()
    if settings.get("execution.target", "local") == "local":
        job.wait()  # the cluster is a part of this process


def input_place(text: str) -> dict[str, str]:
    """Flink's options for a topic, for a URI, or for a path on this machine, which must be there."""
    if text.startswith("kafka:"):
        if not (topic := re.fullmatch(r"kafka://([^/]+)/([^/]+)", text)):
            raise argparse.ArgumentTypeError(f"{text}: a topic is written kafka://HOST:PORT/TOPIC")
        options = {"connector": "kafka", "properties.bootstrap.servers": topic[1], "topic": topic[2]}
        # That is for a first start: a restart goes on from a checkpoint, and another start from a savepoint.
        return options | {"scan.startup.mode": "earliest-offset"}
    place = output_place(text)
    if "://" not in place and not Path(place).exists():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file or directory")
    return {"connector": "filesystem", "path": place}


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
    """Start the job, or tell in a line which option is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, type=input_place, help="kafka://HOST:PORT/TOPIC, or a file or directory"
    )
    parser.add_argument("--output", required=True, type=output_place, help="directory of scores/ and dead_letters/")
    parser.add_argument("--model", help="a bundle that all task managers see (default: the bundled model)")
    parser.add_argument("--text_field", default="text", help="(default: %(default)s)")
    parser.add_argument("--id_field", default="id", help="(default: %(default)s)")
    parser.add_argument("--commit_every", type=seconds, default=60, metavar="SECONDS",
                        help="of a topic: between checkpoints (default: %(default)s)")  # fmt: skip
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
