"""The options of `python -m pipelines.score` for endless input. Imports neither Beam nor torch: --help is fast."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.command_line import duration
from torchmoji_core.errors import InputError
from transforms.topics import KafkaTopic, PubSubName, Source, is_topic, parse_sink, parse_source

MESSAGE_FORMATS = ("jsonl", "text")
_LOCAL_RUNNER = "DirectRunner"
_BATCH_ONLY = ("if_exists", "direct_num_workers")
"""Options of bounded runs, which mean nothing where there is no end."""


@dataclass(frozen=True)
class StreamOptions:
    """How to read and write messages without end."""

    source: Source
    format: str
    """Of a message's payload."""
    id_attribute: str | None
    timestamp_attribute: str | None
    window: float
    """Seconds of event time whose rows share files."""
    allowed_lateness: float | None
    """Seconds by which an event may come before its message; None for any."""
    max_latency: float
    """Seconds that a tweet waits for a batch."""
    shards: int
    """Of clusters: in how many places tweets wait for others."""
    commit_every: float
    """Seconds between two commits of what a local run has written."""
    max_in_flight: int
    """Messages of a local run that are read and not yet written."""
    drain: float
    """Seconds that a local run has to write what is in flight when it is told to stop."""
    publish: Source | None
    consumer_options: tuple[tuple[str, str], ...]
    producer_options: tuple[tuple[str, str], ...]
    expansion_service: str | None
    """host:port of what expands Kafka's transforms; None for one that Beam starts from a jar."""
    model_watch: str | None
    model_poll: float
    """Seconds between two looks for a new model."""

    @property
    def has_kafka(self) -> bool:
        return isinstance(self.source, KafkaTopic) or isinstance(self.publish, KafkaTopic)


# The options' defaults. The parser has none, so that it can be told whether one was given.
_DEFAULTS = {
    "window": "1h",
    "max_latency": "1s",
    "shards": 4,
    "commit_every": "10s",
    "max_in_flight": 20_000,
    "drain": "25s",
    "model_poll": "1m",
}
_STREAM_OPTIONS = (
    "window", "allowed_lateness", "max_latency", "shards", "commit_every", "max_in_flight",
    "drain", "id_attribute", "timestamp_attribute", "publish", "consumer_option", "producer_option",
    "expansion_service", "model_watch", "model_poll",
)  # fmt: skip


# fmt: off
def add_streaming_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for endless input."""

    def default(name: str) -> str:
        return f"(default: {_DEFAULTS[name]})"

    add = parser.add_argument_group("streaming", "Messages of a subscription or a topic, without end.").add_argument
    add("--streaming", action="store_true",
        help="--input is pubsub://projects/PROJECT/subscriptions/NAME or kafka://HOST:PORT[,HOST:PORT]/TOPIC; --format "
        "is that of messages, jsonl for one JSON object each (default) or text")
    add("--window", metavar="TIME",
        help=f"rows whose times are in the same window share files, date=/hour=/part-*.parquet {default('window')}")
    add("--allowed_lateness", metavar="TIME",
        help="what happened longer than that before its message was published is a dead letter (default: nothing is)")
    add("--max_latency", metavar="TIME",
        help=f"how long a tweet waits for others, to be scored with them {default('max_latency')}")
    add("--shards", type=int, metavar="N",
        help="in how many places of a cluster tweets wait for others, and so how many workers can score "
        f"{default('shards')}")
    add("--commit_every", metavar="TIME",
        help=f"how often files become part of the data set, in local runs {default('commit_every')}")
    add("--max_in_flight", type=int, metavar="N",
        help="messages that are read and not yet written, in local runs; further ones are left where they are "
        f"{default('max_in_flight')}")
    add("--drain", metavar="TIME",
        help="how long a local run may take, when it is told to stop, to write what is in flight; what is not written "
        f"by then is given back {default('drain')}")
    add("--publish", metavar="URI",
        help="publish rows too, as JSON without text and vectors: pubsub://projects/PROJECT/topics/NAME or kafka://...")
    add("--id_attribute", metavar="NAME",
        help="attribute of messages with the id, where the payload has none (default: a hash of the message's own id)")
    add("--timestamp_attribute", metavar="NAME",
        help="attribute of messages with the event's time, where the payload has none: RFC 3339, or milliseconds since "
        "1970 (default: the time of publishing)")
    add("--consumer_option", action="append", metavar="NAME=VALUE",
        help="for Kafka's consumer, group.id=scores for instance; may be repeated")
    add("--producer_option", action="append", metavar="NAME=VALUE", help="for Kafka's producer; may be repeated")
    add("--expansion_service", metavar="HOST:PORT",
        help="what expands Kafka's transforms (default: a jar that Beam downloads, and runs with Java)")
    add("--model_watch", metavar="GLOB",
        help="bundles that may come while the run lasts: the newest that matches takes over between two batches")
    add("--model_poll", metavar="TIME", help=f"how often to look for one {default('model_poll')}")
# fmt: on


def streaming_options(options: argparse.Namespace, defaults: argparse.ArgumentParser) -> StreamOptions | None:
    """Validate the options for endless input; None where there is none.

    Args:
        options: the parsed command line.
        defaults: its parser.

    Raises:
        InputError: naming the option at fault and the remedy.
    """
    given = {name: value for name in _STREAM_OPTIONS if (value := getattr(options, name)) is not None}
    if not options.streaming:
        if given:
            raise InputError(f"--{next(iter(given))} belongs to endless input; add --streaming, or leave it out")
        topics = [uri for uri in options.input if is_topic(uri)]
        if topics:
            raise InputError(f"--input {topics[0]} has no end; add --streaming")
        return None
    for name in _BATCH_ONLY:
        if getattr(options, name) != defaults.get_default(name):
            raise InputError(f"--{name} cannot be used with --streaming")
    return _stream_options(options, given)


def _stream_options(options: argparse.Namespace, given: dict[str, object]) -> StreamOptions:
    if len(options.input) != 1 or not is_topic(options.input[0]):
        shown = options.input[0] if getattr(options, "_input", None) else "(none given)"
        raise InputError(
            f"--streaming reads one pubsub:// or kafka:// address, not --input {shown}; leave out --streaming to score "
            "files"
        )
    if (options.format or "jsonl") not in MESSAGE_FORMATS:
        raise InputError(f"--format of messages must be jsonl or text, not {options.format}")
    if untyped := [name for name in options.keep_fields.split(",") if name.strip() and ":" not in name]:
        name = untyped[0].strip()
        raise InputError(f"--keep_fields {name}: no data tells the type yet; give it, {name}:string for instance")
    if options.format == "text" and (options.keep_fields or options.timestamp_field):
        raise InputError("text messages have no fields: leave out --keep_fields and --timestamp_field")
    stream = StreamOptions(
        source=parse_source("--input", options.input[0]),
        format=options.format or "jsonl",
        id_attribute=options.id_attribute,
        timestamp_attribute=options.timestamp_attribute,
        window=_positive("window", given),
        allowed_lateness=_time("allowed_lateness", given) if "allowed_lateness" in given else None,
        max_latency=_positive("max_latency", given),
        shards=_count("shards", given),
        commit_every=_positive("commit_every", given),
        max_in_flight=_count("max_in_flight", given),
        drain=_time("drain", given),
        publish=parse_sink("--publish", options.publish) if options.publish else None,
        consumer_options=_pairs("consumer_option", options.consumer_option),
        producer_options=_pairs("producer_option", options.producer_option),
        expansion_service=options.expansion_service,
        model_watch=options.model_watch,
        model_poll=_positive("model_poll", given),
    )
    if options.runner == _LOCAL_RUNNER and "shards" in given:
        raise InputError(f"--shards belongs to clusters, and is nothing on --runner {options.runner}; leave it out")
    if stream.model_watch is None and "model_poll" in given:
        raise InputError("--model_poll belongs to --model_watch GLOB, and is nothing without it")
    _check_kafka(stream, options.runner)
    if isinstance(stream.source, PubSubName) or isinstance(stream.publish, PubSubName):
        _check_pubsub()
    return stream


def _time(name: str, given: dict[str, object]) -> float:
    return duration(f"--{name}", str(given.get(name, _DEFAULTS.get(name))))


def _positive(name: str, given: dict[str, object]) -> float:
    seconds = _time(name, given)
    if seconds <= 0:
        raise InputError(f"--{name} must be more than 0, not {given.get(name)}")
    return seconds


def _count(name: str, given: dict[str, object]) -> int:
    number = int(str(given.get(name, _DEFAULTS[name])))
    if number < 1:
        raise InputError(f"--{name} must be at least 1, not {number}")
    return number


def _pairs(name: str, values: list[str] | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in values or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InputError(f"--{name} must be NAME=VALUE, not {text!r}")
        pairs.append((key, value))
    return tuple(pairs)


def _check_pubsub() -> None:
    try:
        found = importlib.util.find_spec("google.cloud.pubsub")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError("pubsub:// needs google-cloud-pubsub; install it with: pip install 'torchmoji-beam[pubsub]'")


def _check_kafka(stream: StreamOptions, runner: str) -> None:
    """What can be said without Beam: who may run Kafka's transforms, and Java."""
    for option, values, topic in (
        ("consumer_option", stream.consumer_options, stream.source),
        ("producer_option", stream.producer_options, stream.publish),
    ):
        if values and not isinstance(topic, KafkaTopic):
            raise InputError(f"--{option} belongs to kafka://, and is nothing without it")
    if not stream.has_kafka:
        if stream.expansion_service:
            raise InputError("--expansion_service belongs to kafka://, and is nothing without it")
        return
    if runner == _LOCAL_RUNNER:
        raise InputError(
            f"kafka:// is read and written by Java, which --runner {runner} cannot run; give another, FlinkRunner or "
            "DataflowRunner for instance"
        )
    if stream.expansion_service:
        if not re.fullmatch(r"[^\s:/]+:\d{1,5}", stream.expansion_service):
            raise InputError(f"--expansion_service must be HOST:PORT, not {stream.expansion_service!r}")
        return
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        raise InputError(
            "kafka:// needs Java, and there is none; install it (JAVA_HOME or PATH must lead to java), or give "
            "--expansion_service HOST:PORT"
        )
