"""Endless runs: what `pipelines.score --streaming` does.

A local run reads a subscription in this process until it is told to stop, makes what it has written part of the data
set every few seconds, and acknowledges a message once its row is in a file that is in place. On clusters the job is
submitted and goes on by itself; its files wait in the journal for the next command that writes there.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import journal, report
from pipelines.adoption import Adopter
from pipelines.command_line import DONE, FAILED, TOO_MANY_DEAD_LETTERS
from pipelines.data_set import DataSet
from pipelines.figures import reported, write_report
from pipelines.interrupts import told_to_stop
from pipelines.lease import unwritable
from pipelines.logs import announce
from pipelines.options import ScoreConfig
from pipelines.plan import Plan, check_model, check_stream
from pipelines.pubsub_reader import PubSubReader
from pipelines.run import build_pipeline, explain, too_many_dead_letters
from pipelines.runners import cluster_runner, pipeline_options
from pipelines.stream_runner import StreamRunner
from pipelines.streaming_options import StreamOptions
from pipelines.watchdog import Watchdog
from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.deliveries import Deliveries
from transforms.model_watch import ModelWatch
from transforms.topics import PubSubName

IN_FLIGHT_BYTES = 64 << 20
"""Payloads of messages that are read and not yet written; what is made of them takes several times that."""
DRAIN_MARGIN = 2.0
"""Seconds to give back messages after --drain; what is not given back by then comes again when its deadline is over."""
_TICK_SECONDS = 0.1
_LOGGER = logging.getLogger(__name__)


def run(config: ScoreConfig, stream: StreamOptions, rest: list[str]) -> int:
    """Check, plan, and run until told to stop; on clusters, submit. Returns the exit status.

    Args:
        config: the command line.
        stream: its options for endless input.
        rest: options for Beam.

    Raises:
        InputError, RunError: as their names say.
    """
    options = pipeline_options(config, rest)
    FileSystems.set_options(options)  # an object store's address and keys may be among them
    with reported(config.report, config.dry_run, output=config.output) as figures:
        data_set = DataSet.read(config.output)
        plan = make_plan(config, stream, data_set)
        figures.update(run_id=plan.run_id, model=plan.model.name, fingerprint=plan.model.fingerprint)
        announce("plan", describe(plan, stream), **figures)
        if config.dry_run:
            announce("dry_run", "dry run: nothing was read or written")
            return DONE
        if config.is_local:
            status = LocalStream(plan, stream, data_set, figures).run(options)
        else:
            status = submit(plan, stream, options)
        figures["exit_status"] = status
        return status


def make_plan(config: ScoreConfig, stream: StreamOptions, data_set: DataSet) -> Plan:
    """Check the command against what is there: rows with other columns do not belong into one data set.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    model = check_model(config)
    if stream.model_watch is not None:
        ModelWatch(stream.model_watch, stream.model_poll).check()
    check_stream(config, data_set, model, identity(stream), models_may_differ=stream.model_watch is not None)
    return Plan(config, (), model).with_new_run(())


def identity(stream: StreamOptions) -> dict[str, Any]:
    """The streaming options that decide what rows and directories look like."""
    return {"window": stream.window}


def describe(plan: Plan, stream: StreamOptions) -> list[str]:
    """The plan in a few lines, for people."""
    config = plan.config
    waits = f"a tweet waits for others for at most {stream.max_latency:g} s"
    if stream.hold == "pane":
        early = f"every {stream.early_every:g} s and " if stream.early_every else ""
        waits = f"what a window has is written {early}at its end"
    return [
        f"input       {config.inputs[0]}, format {stream.format}",
        *plan.describe_model(),
        f"windows     of {stream.window:g} s; {waits}",
        *([f"publishes   to {stream.publish.uri}"] if stream.publish else []),
        *([f"new models  from {stream.model_watch}, every {stream.model_poll:g} s"] if stream.model_watch else []),
        f"runner      {config.runner}"
        + (f", up to {stream.max_in_flight:,} messages in flight" if config.is_local else ""),
    ]


def submit(plan: Plan, stream: StreamOptions, options: PipelineOptions) -> int:
    """Hand the job to a cluster, and leave it there. Returns the exit status.

    Raises:
        InputError: if there is no such runner, or a source or sink cannot be used.
        RunError: if it does not take the job.
    """
    config = plan.config
    pipeline = beam.Pipeline(runner=cluster_runner(config), options=options)
    build_pipeline(pipeline, plan)
    _begin(plan, stream)
    try:
        result = pipeline.run()
    except Exception as error:
        with contextlib.suppress(OSError):
            journal.end(config.output, plan.run_id)
        raise RunError(explain(error, config.output)) from error
    job = getattr(result, "job_id", None)
    job = job() if callable(job) else job
    announce(
        "submitted",
        f"submitted to {config.runner}{f' as job {job}' if job else ''}; its files become results whenever "
        f"pipelines.compact or pipelines.verify --clean works on {config.output}",
        job=job,
        run_id=plan.run_id,
    )
    return DONE


def _begin(plan: Plan, stream: StreamOptions) -> None:
    """Describe the run in the journal.

    Raises:
        InputError: if the output cannot be written.
    """
    output = plan.config.output
    try:
        journal.begin(plan, datetime.now(UTC), identity(stream))
    except OSError as error:
        raise unwritable(output, error) from None


class LocalStream:
    """A stream that this process reads, until it is told to stop."""

    def __init__(self, plan: Plan, stream: StreamOptions, data_set: DataSet, figures: dict[str, Any]) -> None:
        self._plan, self._stream, self._figures = plan, stream, figures
        self._adopter = Adopter(data_set, plan.run_id)
        self._deliveries = Deliveries(plan.run_id, stream.max_in_flight, IN_FLIGHT_BYTES)
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self, options: PipelineOptions) -> int:
        """Read and write until told to stop. Returns the exit status.

        Raises:
            InputError: if the subscription cannot be read.
            RunError: if the run fails. What it has written stays, and what it has not is delivered again.
        """
        plan, source = self._plan, self._stream.source
        assert isinstance(source, PubSubName)
        with (
            told_to_stop(self._stream.drain + DRAIN_MARGIN) as stop,
            PubSubReader(source.path, self._deliveries) as reader,
            self._journal(),
        ):
            pipeline = beam.Pipeline(runner=StreamRunner(reader), options=options)
            build_pipeline(pipeline, plan, deliveries=plan.run_id)
            result = pipeline.run()
            gc.freeze()  # modules and models are not looked through again with every collection, which was felt
            threading.Thread(target=self._wait_for, args=(result,), name="pipeline", daemon=True).start()
            announce("reading", f"reading {source.uri}; stop with Ctrl-C or SIGTERM", run_id=plan.run_id)
            with self._watchdog():
                self._attend(result, reader, stop)
            in_flight = len(self._deliveries)
        self._look(result)
        if self._error is not None or reader.error is not None:
            error = reader.error or self._error
            raise RunError(explain(error, plan.config.output)) from error  # type: ignore[arg-type]
        if not self._ended.is_set():
            announce(
                "not_drained",
                f"{in_flight:,} messages were not written within --drain {self._stream.drain:g}s; they are given back, "
                "and will come again",
                level=logging.ERROR,
                in_flight=in_flight,
            )
            return FAILED
        return self._finish()

    def _watchdog(self) -> Watchdog:
        """What ends the run if messages are in flight, and none of them comes to be written."""
        timeout, stream = self._plan.config.stall_timeout, self._stream
        if timeout:
            timeout += stream.drain + (stream.window if stream.hold == "pane" else stream.max_latency)
        # Where nothing is in flight, nothing has to get on: each look gives another value.
        return Watchdog(lambda: self._deliveries.done if len(self._deliveries) else object(), timeout)

    @contextlib.contextmanager
    def _journal(self) -> Iterator[None]:
        _begin(self._plan, self._stream)
        try:
            yield
        finally:
            # Threads of a pipeline that has not ended may still put files in place.
            self._adopter.finish(has_ended=self._ended.is_set() and self._error is None)

    def _wait_for(self, result: Any) -> None:
        try:
            result.wait_until_finish()
        except BaseException as error:
            self._error = error
        self._ended.set()

    def _attend(self, result: Any, reader: PubSubReader, stop: threading.Event) -> None:
        """Commit and report again and again, until the pipeline has ended or the time for that is over."""
        next_commit = time.monotonic() + self._stream.commit_every
        deadline = None
        while not self._ended.wait(_TICK_SECONDS) and reader.error is None:
            now = time.monotonic()
            if stop.is_set() and deadline is None:
                reader.stop()
                in_flight = len(self._deliveries)
                announce("stopping", f"stopping: {in_flight:,} messages are in flight", in_flight=in_flight)
                deadline = now + self._stream.drain
            if deadline is not None and now >= deadline:
                return
            if now >= next_commit:
                self._adopter.adopt()
                self._look(result)
                self._report()
                next_commit = time.monotonic() + self._stream.commit_every

    def _look(self, result: Any) -> None:
        self._figures.update(report.counters(result) | report.distributions(result))
        self._figures["in_flight"] = len(self._deliveries)

    def _report(self) -> None:
        config, figures = self._plan.config, self._figures
        rows = figures.get(metrics.ROWS_WRITTEN, 0)
        if config.progress != "off":
            rate = rows / (time.monotonic() - self._clock)
            announce(
                "progress",
                f"{rows:,} tweets written, {figures['in_flight']:,} in flight, {rate:,.0f} tweets/s",
                rows=rows,
                in_flight=figures["in_flight"],
            )
        if config.report is not None:
            so_far = figures | {"exit_status": DONE, "started": self._started, "finished": datetime.now(UTC)}
            try:
                write_report(config.report, so_far)
            except OSError as error:
                _LOGGER.error("--report %s could not be written: %s", config.report, error)

    def _finish(self) -> int:
        """Account for every message, and say how it was."""
        counts = {name: value for name, value in self._figures.items() if isinstance(value, int)}
        read, scored, empty, dead, rows = (
            counts.get(name, 0)
            for name in (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.ROWS_WRITTEN)
        )
        if read != scored + empty + dead or rows != scored + empty:
            raise RunError(
                f"the counts do not add up: read {read}, scored {scored}, empty {empty}, dead {dead}, rows written "
                f"{rows}; this is a fault of the program, and what was not written will be delivered again"
            )
        seconds = time.monotonic() - self._clock
        report.announce_summary(counts, seconds, self._plan.model.classes, self._figures)
        warning = too_many_dead_letters(counts, self._plan.config)
        if warning:
            announce("too_many_dead_letters", warning, level=logging.ERROR)
            return TOO_MANY_DEAD_LETTERS
        return DONE
