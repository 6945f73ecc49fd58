"""What `pipelines.score --streaming` does: check, plan, and then run the local loop, or submit a job to a cluster.

That job goes on by itself; its files are pending until the next command that writes there.
"""

from __future__ import annotations

import contextlib
import functools

import apache_beam as beam

from pipelines.cli.exits import DONE
from pipelines.cli.logs import announce
from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set import jobs, pending
from pipelines.data_set.coverage import Covers
from pipelines.data_set.recovery import covered
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import submission
from pipelines.runs.accounting import describe_stream
from pipelines.runs.context import RunContext, open_context
from pipelines.runs.explain import explain
from pipelines.runs.plan import Plan, check_model, check_stream
from pipelines.streams import kafka_job, pubsub_job
from pipelines.streams.kafka import KafkaSource, check_no_circle
from pipelines.streams.local import LocalStream
from pipelines.streams.pubsub import check_topic
from torchmoji_core.errors import InputError, RunError
from transforms.addresses import KafkaTopic, PubSubName
from transforms.output.commit import journal_directory, record_together
from transforms.output.kafka import KafkaSink
from transforms.scoring.model_watch import ModelWatch
from transforms.storage import files as storage

_GOES_ON = (
    "a stream goes on; give the address of a job server (--job_endpoint), or --runner=DirectRunner for a stream of "
    "this machine"
)


def run(config: ScoreConfig, stream: StreamOptions, rest: list[str]) -> int:
    """Check, plan, and run until told to stop; on clusters, submit. Returns the exit status.

    Args:
        config: the command line.
        stream: its options for endless input.
        rest: options for Beam.

    Raises:
        InputError, RunError: as their names say.
    """
    with open_context(config, rest) as context:
        data_set, figures = context.data_set, context.figures
        data_set.refresh()
        plan = make_plan(config, stream, data_set)
        figures.update(run_id=plan.run_id, model=plan.model.name, fingerprint=plan.model.fingerprint)
        announce("plan", describe(plan, stream), **figures)
        if not config.is_local:
            submission.check(plan, context, _GOES_ON)
        if config.dry_run:
            if not config.is_local:
                submission.build_only(plan, context, functools.partial(_build, data_set=data_set))
            announce("dry_run", "dry run: nothing was read or written")
            return DONE
        status = LocalStream(plan, stream, data_set, figures).run() if config.is_local else submit(plan, context)
        figures["exit_status"] = status
        return status


def make_plan(config: ScoreConfig, stream: StreamOptions, data_set: DataSet) -> Plan:
    """Check the command against the data set: rows with other columns do not belong into it.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    model = check_model(config)
    if stream.model_watch is not None:
        ModelWatch(stream.model_watch, stream.model_poll).check()
    check_stream(config, stream, data_set, model)
    jobs.check_none(data_set.output, jobs.read(data_set.output).values())
    return Plan(config, (), model).with_new_run(())


def describe(plan: Plan, stream: StreamOptions) -> list[str]:
    """The plan in a few lines, for people."""
    config = plan.config
    return [
        f"input       {config.inputs[0]}, format {stream.format}",
        *plan.describe_model(),
        f"windows     of {stream.window:g} s; a tweet waits for others for at most {stream.max_latency:g} s",
        *([f"publishes   to {stream.publish.uri}"] if stream.publish else []),
        *([f"new models  from {stream.model_watch}, every {stream.model_poll:g} s"] if stream.model_watch else []),
        f"runner      {config.runner}"
        + (f", up to {stream.max_in_flight:,} messages in flight" if config.is_local else ""),
    ]


def submit(plan: Plan, context: RunContext) -> int:
    """Hand the job to a cluster, and leave it there. Returns the exit status.

    Raises:
        InputError: if a source or sink cannot be used.
        RunError: if it does not take the job.
    """
    config = plan.config
    pipeline = submission.make_pipeline(context)
    passed_over = _build(pipeline, plan, context.data_set)
    beginning = f"{journal_directory(config.output, plan.run_id)}/begin.json"
    pending.begin(config.output, describe_stream(plan))
    try:
        if passed_over:
            record_together((), (), beginning, passed_over)
        job = submission.send(pipeline, plan, context)
    except Exception as error:
        with contextlib.suppress(OSError):
            storage.delete([beginning])  # nothing has begun
            pending.end(config.output, plan.run_id)
        if isinstance(error, InputError):
            raise
        raise RunError(explain(error, config.output)) from error
    announce(
        "submitted",
        f"{submission.said(plan, context, job)}; its files become results whenever pipelines.compact or "
        f"pipelines.verify --clean works on {config.output}",
        job=job,
        run_id=plan.run_id,
    )
    return DONE


def _build(pipeline: beam.Pipeline, plan: Plan, data_set: DataSet) -> Covers:
    """Add the job to a pipeline. Returns what it passes over, since it begins behind it.

    Raises:
        InputError: if a source or sink cannot be used.
    """
    stream = plan.config.stream
    assert stream is not None
    sink = KafkaSink(stream.publish, stream.producer_settings()) if isinstance(stream.publish, KafkaTopic) else None
    if isinstance(stream.source, PubSubName):
        check_topic(stream.source, stream.publish)
        pubsub_job.build_pipeline(pipeline, plan)
        return {}
    settings = stream.consumer_settings()
    with contextlib.closing(KafkaSource(stream.source, settings, covered(data_set))) as source:
        check_no_circle(source, sink)
        kafka_job.build_pipeline(pipeline, plan, source)
        return source.passed_over
