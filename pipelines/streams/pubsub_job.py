"""A stream of Pub/Sub as a job of a cluster: its graph."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Duration

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.runs.plan import Plan
from pipelines.streams.stages import message_fields
from transforms.addresses import PubSubName
from transforms.annotate import AnnotateTweets
from transforms.input.messages import ParseMessages, ReadMessages
from transforms.output.publish import PublishScores
from transforms.output.write import WriteDeadLetters, WriteScores
from transforms.records import Outcome
from transforms.scoring.buffer import BufferOptions
from transforms.scoring.model_refresh import ModelUpdates, WatchModels


def build_pipeline(pipeline: beam.Pipeline, plan: Plan) -> None:
    """Add the whole job to a pipeline: read, annotate, write scores and dead letters, publish.

    Unlike the graph of files, it has windows, and a buffer that holds tweets until there are enough for a batch. Its
    files are pending at first, for there is no end at which they could be committed.

    Args:
        pipeline: an empty one.
        plan: what to do.
    """
    config, stream = plan.config, plan.config.stream
    assert stream is not None
    read = read_messages(pipeline, config, stream)
    buffer = BufferOptions(stream.max_latency, stream.shards)
    updates = model_updates(pipeline, config, stream)
    annotate = AnnotateTweets(options=config.score, limits=config.limits, buffer=buffer, model_updates=updates)
    annotated = read.results | "AnnotateTweets" >> annotate
    dead = (*read.dead_letters, *annotated.dead_letters)
    annotated.results | "WriteScores" >> WriteScores(
        config.output, plan.run_id, config.rows_per_file, journal=True, measure_latency=True
    )
    dead | "WriteDeadLetters" >> WriteDeadLetters(config.output, plan.run_id, journal=True)
    if stream.publish is not None:
        annotated.results | "PublishScores" >> PublishScores(stream.publish, stream.producer_settings)


def read_messages(pipeline: beam.Pipeline, config: ScoreConfig, stream: StreamOptions) -> Outcome:
    """Tweets and dead letters of a subscription, in their windows."""
    assert isinstance(stream.source, PubSubName)  # that of Kafka is `kafka_job`
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
