"""The options of `python -m pipelines.score` for endless input. Imports neither Beam nor torch: --help is fast."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipelines.cli.parsing import add_options, names, read_properties, seconds, take_options
from torchmoji_core.errors import InputError
from torchmoji_core.options import option
from transforms.addresses import KafkaTopic, PubSubName, Source, is_topic, parse_sink, parse_source

MESSAGE_FORMATS = ("jsonl", "text")
_LOCAL_RUNNER = "DirectRunner"
_SECRET = re.compile(r"password|secret|\.key\.pem|oauthbearer\.config|jaas")
"""In names of librdkafka's settings."""
_BATCH_ONLY = ("if_exists", "direct_num_workers", "no_wait")
"""Options of bounded runs, which mean nothing where there is no end."""


def _sink(text: str) -> Source:
    return parse_sink("--publish", text)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, not {text!r}")
    return key, value


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How to read and write messages without end."""

    source: Source
    format: str
    """Of a message's payload."""
    window: float = option(
        3600.0, "rows whose times are in the same window share files, date=/hour=/part-*.parquet", type=seconds
    )
    allowed_lateness: float | None = option(
        None, "what happened longer than that before its message was published is a dead letter (default: nothing is)",
        type=seconds,
    )  # fmt: skip
    max_latency: float = option(1.0, "how long a tweet waits for others, to be scored with them", type=seconds)
    shards: int = option(
        4, "in how many places of a cluster tweets wait for others, and so how many workers can score", metavar="N"
    )
    commit_every: float = option(10.0, "how often files become part of the data set, in local runs", type=seconds)
    max_in_flight: int = option(
        20_000, "messages that are read and not yet acknowledged, in local runs; further ones are left where they are",
        metavar="N",
    )  # fmt: skip
    drain: float = option(
        25.0, "how long a local run may take, when it is told to stop, to write what is in flight; what is not written "
        "by then is given back", type=seconds,
    )  # fmt: skip
    publish: Source | None = option(
        None, "publish rows too, as JSON without text and vectors: pubsub://projects/PROJECT/topics/NAME or kafka://...",
        type=_sink, metavar="URI",
    )  # fmt: skip
    id_attribute: str | None = option(
        None, "attribute of messages with the id, where the payload has none (default: a hash of the message's own id)",
        metavar="NAME",
    )  # fmt: skip
    timestamp_attribute: str | None = option(
        None, "attribute of messages with the event's time, where the payload has none: RFC 3339, or milliseconds "
        "since 1970 (default: the time of publishing)", metavar="NAME",
    )  # fmt: skip
    consumer_options: tuple[tuple[str, str], ...] = option(
        (), "for Kafka's consumer, group.id=scores for instance; may be repeated", name="consumer_option",
        action="append", type=_pair, metavar="NAME=VALUE",
    )  # fmt: skip
    consumer_config: str | None = option(
        None, "the same in lines of a file, secrets among them; workers read it too", metavar="FILE"
    )
    producer_options: tuple[tuple[str, str], ...] = option(
        (), "for Kafka's producer; may be repeated", name="producer_option", action="append", type=_pair,
        metavar="NAME=VALUE",
    )  # fmt: skip
    producer_config: str | None = option(
        None, "the same in lines of a file, secrets among them; workers read it too", metavar="FILE"
    )
    model_watch: str | None = option(
        None, "bundles that may come while the run lasts: the newest that matches takes over between two batches",
        metavar="GLOB",
    )  # fmt: skip
    model_poll: float = option(60.0, "how often to look for one", type=seconds)

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        for name in ("window", "max_latency", "commit_every", "model_poll"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} must be more than 0")
        for name in ("shards", "max_in_flight"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, not {getattr(self, name)}")

    @property
    def has_kafka(self) -> bool:
        return isinstance(self.source, KafkaTopic) or isinstance(self.publish, KafkaTopic)

    def consumer_settings(self) -> dict[str, str]:
        """For Kafka's consumer, those of the file included. It is read only here: nothing else has its secrets.

        Raises:
            InputError: if it cannot be read.
        """
        return client_settings("consumer_config", self.consumer_config, self.consumer_options)

    def producer_settings(self) -> dict[str, str]:
        """The same for its producer."""
        return client_settings("producer_config", self.producer_config, self.producer_options)


def client_settings(option: str, path: str | None, given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Settings of a client of Kafka.

    Args:
        option: that names the file.
        path: of the file; None for none.
        given: further ones, which win.

    Raises:
        InputError: if the file cannot be read.
    """
    return (read_properties(option, path) if path else {}) | dict(given)


def add_streaming_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for endless input."""
    group = parser.add_argument_group("streaming", "Messages of a subscription or a topic, without end.")
    group.add_argument(
        "--streaming", action="store_true",
        help="--input is pubsub://projects/PROJECT/subscriptions/NAME or kafka://HOST:PORT[,HOST:PORT]/TOPIC; --format "
        "is that of messages, jsonl for one JSON object each (default) or text",
    )  # fmt: skip
    add_options(group, StreamOptions, are_told=True)


def streaming_options(options: argparse.Namespace, defaults: argparse.ArgumentParser) -> StreamOptions | None:
    """Validate the options for endless input; None where there is none.

    Args:
        options: the parsed command line.
        defaults: its parser.

    Raises:
        InputError: naming the option at fault and the remedy.
    """
    own = (field.metadata.get("name", field.name) for field in dataclasses.fields(StreamOptions) if field.metadata)
    given = [name for name in own if hasattr(options, name)]
    if not options.streaming:
        if given:
            raise InputError(f"--{given[0]} belongs to endless input; add --streaming, or leave it out")
        topics = [uri for uri in options.input if is_topic(uri)]
        if topics:
            raise InputError(f"--input {topics[0]} has no end; add --streaming")
        return None
    for name in _BATCH_ONLY:
        if getattr(options, name) != defaults.get_default(name):
            raise InputError(f"--{name} cannot be used with --streaming")
    return _stream_options(options, given)


def _stream_options(options: argparse.Namespace, given: Collection[str]) -> StreamOptions:
    if len(options.input) != 1 or not is_topic(options.input[0]):
        shown = options.input[0] if getattr(options, "_input", None) else "(none given)"
        raise InputError(
            f"--streaming reads one pubsub:// or kafka:// address, not --input {shown}; leave out --streaming to score "
            "files"
        )
    if (options.format or "jsonl") not in MESSAGE_FORMATS:
        raise InputError(f"--format of messages must be jsonl or text, not {options.format}")
    if untyped := [name for name in names(options.keep_fields) if ":" not in name.replace(":as=", "")]:
        path, _, column = untyped[0].partition(":as=")
        typed = f"{path}:string" + (f":as={column}" if column else "")
        raise InputError(f"--keep_fields {untyped[0]}: no data tells the type yet; give it, {typed} for instance")
    if options.format == "text" and options.timestamp_field:
        raise InputError("text messages have no fields: leave out --timestamp_field")
    stream = take_options(
        StreamOptions,
        options,
        source=parse_source("--input", options.input[0]),
        format=options.format or "jsonl",
        consumer_options=tuple(getattr(options, "consumer_option", ())),
        producer_options=tuple(getattr(options, "producer_option", ())),
    )
    if options.runner == _LOCAL_RUNNER and "shards" in given:
        raise InputError(f"--shards belongs to clusters, and is nothing on --runner {options.runner}; leave it out")
    if isinstance(stream.source, KafkaTopic) and "shards" in given:
        raise InputError("--shards belongs to pubsub://, and is nothing for kafka://, whose partitions are such places")
    if stream.publish == stream.source:
        raise InputError(f"--publish {stream.source.uri} is what --input reads: rows would come back as messages")
    if stream.model_watch is None and "model_poll" in given:
        raise InputError("--model_poll belongs to --model_watch GLOB, and is nothing without it")
    _check_kafka(stream, options.runner)
    if isinstance(stream.source, PubSubName) or isinstance(stream.publish, PubSubName):
        _check_pubsub()
    return stream


def _check_pubsub() -> None:
    try:
        found = importlib.util.find_spec("google.cloud.pubsub")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise InputError("pubsub:// needs google-cloud-pubsub; install it with: pip install 'torchmoji-beam[pubsub]'")


def _check_kafka(stream: StreamOptions, runner: str) -> None:
    """Check what can be checked without a broker."""
    for name, values, topic in (
        ("consumer_option", stream.consumer_options, stream.source),
        ("consumer_config", stream.consumer_config, stream.source),
        ("producer_option", stream.producer_options, stream.publish),
        ("producer_config", stream.producer_config, stream.publish),
    ):
        if values and not isinstance(topic, KafkaTopic):
            raise InputError(f"--{name} belongs to kafka://, and is nothing without it")
    if not stream.has_kafka:
        return
    if importlib.util.find_spec("confluent_kafka") is None:
        raise InputError("kafka:// needs confluent-kafka; install it with: pip install 'torchmoji-beam[kafka]'")
    stream.consumer_settings()
    stream.producer_settings()
    for kind, given in (("consumer", stream.consumer_options), ("producer", stream.producer_options)):
        if runner != _LOCAL_RUNNER and (secret := next((name for name, _ in given if _SECRET.search(name)), None)):
            raise InputError(
                f"--{kind}_option {secret} would be stored with the job, where others can read it; give "
                f"--{kind}_config FILE, with a file that each worker has"
            )
