"""What a pipeline of messages has that one of files has not, from the options of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Duration

from pipelines.options import ScoreConfig
from pipelines.streaming_options import StreamOptions
from torchmoji_core.errors import InputError
from transforms.hold import HoldOptions
from transforms.messages import MessageFields, ParseMessages, ReadMessages
from transforms.model_watch import ModelUpdates, ModelWatch, WatchModels
from transforms.publish import PublishScores
from transforms.records import Outcome
from transforms.topics import KafkaTopic

JAR_SECONDS = 60.0
LOCAL_BUCKET_WIDTH = 1024


def read_messages(
    pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions, deliveries: str | None
) -> Outcome:
    """Tweets and dead letters of the source, in their windows.

    Raises:
        InputError: if the source cannot be used.
    """
    reader = ReadMessages(
        stream.source,
        dict(stream.consumer_options),
        stream.id_attribute,
        stream.timestamp_attribute,
        expansion_service(stream) if isinstance(stream.source, KafkaTopic) else None,
    )
    with _one_line(config.inputs[0]):
        messages = pipeline | "ReadMessages" >> reader
    rules = MessageFields(
        config.fields,
        stream.format,
        stream.id_attribute,
        stream.timestamp_attribute,
        stream.allowed_lateness,
        # Which of a cluster's brokers are asked first must not change ids.
        id_scope=f"kafka:{stream.source.topic}" if isinstance(stream.source, KafkaTopic) else None,
    )
    parsed = messages | "ParseMessages" >> ParseMessages(stream.source.uri, rules, deliveries)
    windows = FixedWindows(Duration.of(stream.window))
    return Outcome(
        parsed.results | "Windows" >> beam.WindowInto(windows),
        tuple(letters | "WindowsOfDead" >> beam.WindowInto(windows) for letters in parsed.dead_letters),
    )


def hold_options(config: ScoreConfig, stream: StreamOptions) -> HoldOptions:
    """When tweets go on to the model."""
    options = HoldOptions(stream.max_latency, stream.shards, stream.hold, stream.early_every)
    # Locally, bundles cost more than lengths that differ: one for all of them.
    return dataclasses.replace(options, bucket_width=LOCAL_BUCKET_WIDTH) if config.is_local else options


def model_updates(pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions) -> ModelUpdates:
    """What brings new models; None without --model_watch."""
    if stream.model_watch is None:
        return None
    if config.is_local:
        return ModelWatch(stream.model_watch, stream.model_poll)
    return pipeline | "WatchModels" >> WatchModels(
        stream.model_watch, stream.model_poll, config.score.model, config.score.precision
    )


def publish_scores(stream: StreamOptions) -> PublishScores:
    """The sink for rows as messages."""
    assert stream.publish is not None
    service = expansion_service(stream) if isinstance(stream.publish, KafkaTopic) else None
    return PublishScores(stream.publish, dict(stream.producer_options), service)


def expansion_service(stream: StreamOptions) -> Any:
    """What expands Kafka's transforms: the given address, or a jar, which is fetched here.

    Raises:
        InputError: if there is none.
    """
    if stream.expansion_service:
        host, _, port = stream.expansion_service.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except OSError as error:
            raise InputError(f"--expansion_service {stream.expansion_service}: nobody answers ({error})") from None
        return stream.expansion_service
    from apache_beam.io.kafka import default_io_expansion_service
    from apache_beam.utils.subprocess_server import JavaJarServer

    service = default_io_expansion_service()
    before, logger = socket.getdefaulttimeout(), logging.getLogger(JavaJarServer.__module__)
    socket.setdefaulttimeout(JAR_SECONDS)  # Beam's download has none
    logger.setLevel(logging.ERROR)  # and warns of itself twice
    try:
        JavaJarServer.local_jar(service.path_to_jar)
    except (OSError, RuntimeError) as error:
        jar = service.path_to_jar.rpartition("/")[2]
        raise InputError(
            f"kafka:// needs {jar}, which cannot be downloaded ({error.__context__ or error}); put it into "
            f"{JavaJarServer.JAR_CACHE}, or give --expansion_service HOST:PORT"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
        logger.setLevel(logging.NOTSET)
    return service


@contextlib.contextmanager
def _one_line(uri: str) -> Any:
    """Kafka's transforms are expanded by Java while the pipeline is built, which fails in many ways."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"--input {uri}: cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
