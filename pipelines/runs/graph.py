"""The whole job as a graph of Beam's, from the options of the command line: files or messages in, files out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import socket
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Duration

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set.jobs import completion
from pipelines.runs.plan import Plan
from pipelines.runs.worker_checks import check_worker, our_versions
from torchmoji_core.errors import LONGEST_REASON, InputError, first_line
from transforms.addresses import KafkaTopic
from transforms.annotate import AnnotateFiles, AnnotateTweets
from transforms.input.messages import MessageFields, ParseMessages, ReadMessages
from transforms.input.read import PartReader, SplitInputs
from transforms.output.completion import WriteCompletion
from transforms.output.publish import PublishScores
from transforms.output.write import WriteDeadLetters, WriteScores
from transforms.records import Outcome
from transforms.scoring.buffer import BufferOptions
from transforms.scoring.model_refresh import ModelUpdates, WatchModels


def build_pipeline(pipeline: beam.Pipeline, plan: Plan, progress: str | None = None) -> None:
    """Add the whole job to a pipeline: read, annotate, write scores and dead letters.

    Endless input has another source, windows, and a buffer that holds tweets until there are enough for a batch. Its
    files are pending at first, for there is no end at which they could be committed.

    Args:
        pipeline: an empty one.
        plan: what to do.
        progress: directory of `metrics.Progress`.

    Raises:
        InputError: if a source or sink cannot be used.
    """
    config, stream = plan.config, plan.config.stream
    score = dataclasses.replace(config.score, progress=progress)
    if stream is None:
        check = None if config.is_local else functools.partial(check_worker, config.output, plan.run_id, our_versions())
        inputs = SplitInputs(plan.files, config.form, config.fields, plan.strict, check)
        reader = PartReader(config.fields, plan.strict, progress)
        annotate = AnnotateFiles(inputs, reader, score, config.limits)
        results, dead, counts = pipeline | "AnnotateFiles" >> annotate
    else:
        read = read_messages(pipeline, config, stream)
        buffer = BufferOptions(stream.max_latency, stream.shards)
        updates = model_updates(pipeline, config, stream)
        annotate = AnnotateTweets(options=score, limits=config.limits, buffer=buffer, model_updates=updates)
        annotated = read.results | "AnnotateTweets" >> annotate
        results, dead, counts = annotated.results, (*read.dead_letters, *annotated.dead_letters), ()
    is_stream = stream is not None
    scores = results | "WriteScores" >> WriteScores(
        config.output, plan.run_id, config.rows_per_file, journal=is_stream, measure_latency=is_stream
    )
    letters = dead | "WriteDeadLetters" >> WriteDeadLetters(config.output, plan.run_id, journal=is_stream)
    if config.no_wait:
        path = completion(config.output, plan.run_id)
        counts | "WriteCompletion" >> WriteCompletion(path, (scores, letters))
    if stream is not None and stream.publish is not None:
        results | "PublishScores" >> publish_scores(stream)


JAR_SECONDS = 60.0


def read_messages(pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions) -> Outcome:
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
    rules = message_fields(config, stream, id_scope(stream))
    parsed = messages | "ParseMessages" >> ParseMessages(stream.source.uri, rules)
    windows = FixedWindows(Duration.of(stream.window))
    return Outcome(
        parsed.results | "Windows" >> beam.WindowInto(windows),
        tuple(letters | "WindowsOfDead" >> beam.WindowInto(windows) for letters in parsed.dead_letters),
    )


def model_updates(pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions) -> ModelUpdates:
    """What brings new models; None without --model_watch."""
    if stream.model_watch is None:
        return None
    return pipeline | "WatchModels" >> WatchModels(
        stream.model_watch, stream.model_poll, config.score.model, config.score.precision
    )


def id_scope(stream: StreamOptions) -> str | None:
    """Of `MessageFields`: ids must not depend on which brokers of a cluster are named."""
    return f"kafka:{stream.source.topic}" if isinstance(stream.source, KafkaTopic) else None


def message_fields(config: ScoreConfig, stream: StreamOptions, id_scope: str | None = None) -> MessageFields:
    """Where a message has what a tweet consists of.

    Args:
        config: the command line.
        stream: its options for endless input.
        id_scope: see `MessageFields`.
    """
    return MessageFields(
        config.fields,
        stream.format,
        stream.id_attribute,
        stream.timestamp_attribute,
        stream.allowed_lateness,
        id_scope,
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
        raise InputError(f"--input {uri}: cannot be read: {first_line(error, LONGEST_REASON)}") from error
