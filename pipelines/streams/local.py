"""A stream that this process reads, until it is told to stop.

What it has written becomes part of the data set every few seconds. A message is acknowledged before that, as soon as
its rows are in files that are in place and pending. So a commit that fails or takes long holds up no message.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipelines.cli.exits import DONE, FAILED, TOO_MANY_DEAD_LETTERS
from pipelines.cli.interrupts import told_to_stop
from pipelines.cli.logs import announce
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set import pending
from pipelines.data_set.lock import Lock
from pipelines.data_set.recovery import covered
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import progress
from pipelines.runs.accounting import describe_stream, too_many_dead_letters, unaccounted
from pipelines.runs.explain import explain
from pipelines.runs.plan import Plan
from pipelines.runs.run_report import report_so_far
from pipelines.runs.watchdog import Watchdog
from pipelines.streams.buffer import LoopOptions
from pipelines.streams.committer import Committer
from pipelines.streams.kafka import KafkaSource, check_no_circle
from pipelines.streams.loop import Loop, Work
from pipelines.streams.pubsub import PubSubSource, check_topic
from pipelines.streams.sources import Source
from pipelines.streams.stages import Stages, open_publisher
from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.addresses import PubSubName
from transforms.output.commit import JOURNAL, journal_directory, record_together
from transforms.storage import files as storage

IN_FLIGHT_BYTES = 64 << 20
"""Payloads of messages that are read and not yet acknowledged; what is made of them takes several times that."""
DRAIN_MARGIN = 2.0
"""Seconds to give back messages after --drain; what is not given back by then comes again when its deadline is over."""
_TICK_SECONDS = 0.1
_LOGGER = logging.getLogger(__name__)


class LocalStream:
    """The loop, and what goes on around it: commits, reports, signals, the watchdog."""

    def __init__(
        self,
        plan: Plan,
        stream: StreamOptions,
        data_set: DataSet,
        figures: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        plan: what to do.
        stream: its options for endless input.
        data_set: what is in the output.
        figures: of the report.
        clock: seconds; to be replaced in tests.
        """
        self._plan, self._stream, self._figures, self._clock = plan, stream, figures, clock
        self._data_set, self._committer = data_set, Committer(data_set, plan.run_id)
        self._started, self._begun = datetime.now(UTC), clock()

    def run(self) -> int:
        """Read and write until told to stop. Returns the exit status.

        Raises:
            InputError: if the source cannot be read.
            LockHeldError: if another stream of Kafka writes to the output.
            RunError: if the run fails. What it has written stays, and what it has not is delivered again.
        """
        config, stream = self._plan.config, self._stream
        with told_to_stop(stream.drain + DRAIN_MARGIN) as stop:
            topic = open_publisher(stream)
            if isinstance(stream.source, PubSubName):
                check_topic(stream.source, stream.publish)
                work = Stages(config, stream, topic)
                # Last: making a source pulls a message, whose deadline is not extended before the loop runs.
                return self.attend(PubSubSource(stream.source.path), work, stop)
            # Two at once would both begin where the files end. Not the lock of the output, which `compact` needs.
            with self._alone() as lock:
                covers = covered(self._data_set)
                with contextlib.closing(KafkaSource(stream.source, stream.consumer_settings(), covers)) as source:
                    check_no_circle(source, topic)
                    return self.attend(source, Stages(config, stream, topic, lock.check), stop)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Lock]:
        output = self._plan.config.output
        existed = storage.exists(output)
        try:
            with Lock(f"{output}/{JOURNAL}") as lock:
                yield lock
        finally:
            if not existed:  # the lock has made it
                storage.remove_empty(output)

    def attend(self, source: Source, work: Work, stop: threading.Event) -> int:
        """Run the loop until told to stop: see `run`."""
        config, stream = self._plan.config, self._stream
        options = LoopOptions(stream.max_in_flight, IN_FLIGHT_BYTES, stream.max_latency, config.limits)
        loop = Loop(source, work, options, self._clock)
        with self._described(loop):
            if source.passed_over:
                directory = journal_directory(config.output, self._plan.run_id)
                record_together((), (), f"{directory}/begin.json", source.passed_over)
            gc.freeze()  # or each garbage collection would look through modules and models, which cost noticeable time
            loop.start()
            announce("reading", f"reading {source.uri}; stop with Ctrl-C or SIGTERM", run_id=self._plan.run_id)
            try:
                with self._watchdog(loop):
                    self._attend(loop, stop)
            except Exception:  # an interrupt, as of a second signal, leaves at once
                loop.abandon()
                raise
            in_flight = loop.abandon()
        self._look(loop)
        if loop.error is not None:
            raise RunError(explain(loop.error, config.output)) from loop.error
        if in_flight:
            announce(
                "not_drained",
                f"{in_flight:,} messages were not written within --drain {stream.drain:g}s; they are given back, and "
                "will come again",
                level=logging.ERROR,
                in_flight=in_flight,
            )
            return FAILED
        return self._finish(loop)

    def _watchdog(self, loop: Loop) -> Watchdog:
        """Ends the run if messages are in flight, and none of them is written for too long."""
        timeout = self._plan.config.stall_timeout
        if timeout:
            timeout += self._stream.drain + self._stream.max_latency
        # If nothing waits to be written, there need be no progress: then each look gives another value.
        return Watchdog(lambda: loop.written if loop.unwritten else object(), timeout)

    @contextlib.contextmanager
    def _described(self, loop: Loop) -> Iterator[None]:
        pending.begin(self._plan.config.output, describe_stream(self._plan))
        try:
            yield
        finally:
            # A thread that has not ended may still put files in place.
            self._committer.finish(has_ended=not loop.is_running)

    def _attend(self, loop: Loop, stop: threading.Event) -> None:
        """Commit and report again and again, until the loop has ended or the time for that is over."""
        next_commit = self._clock() + self._stream.commit_every
        deadline = None
        while not loop.ended.wait(_TICK_SECONDS):
            now = self._clock()
            if stop.is_set() and deadline is None:
                loop.stop()
                announce("stopping", f"stopping: {len(loop):,} messages are in flight", in_flight=len(loop))
                deadline = now + self._stream.drain
            if deadline is not None and now >= deadline:
                return
            if now >= next_commit:
                self._committer.commit()
                self._look(loop)
                self._report()
                next_commit = self._clock() + self._stream.commit_every

    def _look(self, loop: Loop) -> None:
        self._figures.update(loop.tally.figures())
        self._figures["in_flight"] = len(loop)

    def _report(self) -> None:
        config, figures = self._plan.config, self._figures
        rows = figures.get(metrics.ROWS_WRITTEN, 0)
        if config.progress != "off":
            rate = rows / max(self._clock() - self._begun, 1e-9)
            announce(
                "progress",
                f"{rows:,} tweets written, {figures['in_flight']:,} in flight, {rate:,.0f} tweets/s",
                rows=rows,
                in_flight=figures["in_flight"],
            )
        report_so_far(config.report, figures | {"exit_status": DONE}, self._started)

    def _finish(self, loop: Loop) -> int:
        """Account for every message, and say how it was."""
        counts = loop.tally.counts()
        if problem := unaccounted(counts):
            raise RunError(f"{problem}; this is a fault of the program, and what was not written is delivered again")
        seconds = self._clock() - self._begun
        progress.announce_summary(counts, seconds, self._plan.model.classes, self._figures)
        warning = too_many_dead_letters(counts, self._plan.config)
        if warning:
            announce("too_many_dead_letters", warning, level=logging.ERROR)
            return TOO_MANY_DEAD_LETTERS
        return DONE
