"""The whole job as a graph of Beam's, from the options of the command line: files or messages in, files out."""

from __future__ import annotations

import dataclasses
import functools

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Duration

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set.jobs import completion
from pipelines.runs.plan import Plan
from pipelines.runs.worker_checks import check_worker, our_versions
from transforms.addresses import KafkaTopic, PubSubName
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
        results | "PublishScores" >> PublishScores(stream.publish, stream.producer_settings)


def read_messages(pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions) -> Outcome:
    """Tweets and dead letters of a subscription, in their windows."""
    assert isinstance(stream.source, PubSubName)  # Kafka has a graph of its own, see `pipelines.streams.kafka_job`
    messages = pipeline | "ReadMessages" >> ReadMessages(stream.source, stream.id_attribute, stream.timestamp_attribute)
    parsed = messages | "ParseMessages" >> ParseMessages(stream.source.uri, message_fields(config, stream))
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


def message_fields(config: ScoreConfig, stream: StreamOptions) -> MessageFields:
    """Where a message has what a tweet consists of.

    Args:
        config: the command line.
        stream: its options for endless input.
    """
    source = stream.source
    return MessageFields(
        config.fields,
        stream.format,
        stream.id_attribute,
        stream.timestamp_attribute,
        stream.allowed_lateness,
        # Ids must not depend on which brokers of a cluster are named.
        f"kafka:{source.topic}" if isinstance(source, KafkaTopic) else None,
    )
