"""What a scoring command has while it runs: the runner, the data set, the figures of its report."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from pipelines.cli.interrupts import heed_interrupt
from pipelines.cli.options import ScoreConfig
from pipelines.data_set import jobs
from pipelines.data_set.job_results import take_in
from pipelines.data_set.lock import DEFAULT_SECONDS, Lock
from pipelines.data_set.manifest import TOO_MANY_DEAD, Manifest
from pipelines.data_set.recovery import recover
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.progress import announce_taken_in
from pipelines.runs.run_report import reported
from pipelines.runs.runners import make_runner, pipeline_options
from torchmoji_core.errors import InputError, RunError

WORKER_LOG = "workers.log"


@dataclass
class RunContext:
    """What a scoring command has while it runs. See `open_context`."""

    runner: PipelineRunner
    options: PipelineOptions
    scratch: str
    """Local directory for progress counts and the log of worker processes."""
    figures: dict[str, Any]
    """For the report."""
    data_set: DataSet
    """What the output holds, as it was when it was `locked` last; empty before."""
    has_too_many_dead_letters: bool = False
    """Whether a submitted run has, that became a part of the data set then."""


@contextlib.contextmanager
def open_context(config: ScoreConfig, rest: list[str]) -> Iterator[RunContext]:
    """Check options and runner. When the block ends, write the report.

    Args:
        config: the command line.
        rest: options for Beam.

    Raises:
        InputError: for a wrong option.
    """
    options = pipeline_options(config, rest)
    FileSystems.set_options(options)  # an object store's address and keys may be among them
    with (
        reported(config.report, config.dry_run, output=config.output) as figures,
        # An interrupted run has threads that still write there.
        tempfile.TemporaryDirectory(prefix="torchmoji-", ignore_cleanup_errors=True) as scratch,
    ):
        runner = make_runner(config, f"{scratch}/{WORKER_LOG}")
        yield RunContext(runner, options, scratch, figures, DataSet(config.output))


@contextlib.contextmanager
def locked(context: RunContext, lock_seconds: float = DEFAULT_SECONDS) -> Iterator[None]:
    """Take the lock of the output, read what is there, and free it of what runs that died have left.

    What submitted runs have done by now becomes part of the data set.

    Args:
        context: of the command; its data set is brought up to date.
        lock_seconds: see `Lock`.

    Raises:
        InputError: if the output cannot be written or read.
        LockHeldError: if another run is writing there, or one that was submitted may be.
        RunError: if what a submitted run has done does not add up.
    """
    data_set = context.data_set
    with Lock(data_set.output, lock_seconds):
        data_set.refresh()
        recover(data_set)
        context.has_too_many_dead_letters = False

        def tell(change: Manifest) -> None:
            announce_taken_in(change)
            context.has_too_many_dead_letters |= change.status == TOO_MANY_DEAD

        jobs.check_none(data_set.output, take_in(data_set, tell))
        try:
            yield
        except KeyboardInterrupt:
            heed_interrupt()
            # The interrupt may have come anywhere, in the middle of cleaning up too.
            with contextlib.suppress(OSError, InputError, RunError):
                recover(DataSet.read(data_set.output))
            raise
