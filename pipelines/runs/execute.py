"""One bounded run of the pipeline: run it, account for every record, make its files results or remove them."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.runners.runner import PipelineResult

from pipelines.cli.interrupts import heed_interrupt
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.recovery import commit_run, delete_uncommitted, register_run
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import progress
from pipelines.runs.accounting import Finished, data_file, is_dead, reconcile
from pipelines.runs.context import WORKER_LOG, RunContext
from pipelines.runs.environments import source_of
from pipelines.runs.explain import explain
from pipelines.runs.graph import build_pipeline
from pipelines.runs.plan import Plan
from pipelines.runs.submission import check_waits, make_pipeline
from pipelines.runs.watchdog import Watchdog
from pipelines.runs.worker_checks import HasBegun
from torchmoji_core.errors import InputError, RunError
from transforms import metrics
from transforms.input.parts import UnreadableInput, unreadable_path
from transforms.output.commit import committed_files


def execute(plan: Plan, context: RunContext) -> Finished:
    """Run a plan to its end and account for every record.

    Args:
        plan: what to do.
        context: where.

    Raises:
        RunError: if the run fails, or its counts do not add up. What it has written by then is removed.
        UnreadableInput: if an input of a strict plan cannot be opened.
    """
    config = plan.config
    check_waits(context)
    clock = time.monotonic()
    mode = config.progress if config.is_local else "off"
    counts_directory = Path(context.scratch, f"progress-{plan.run_id}")
    counts_directory.mkdir()
    try:
        with (
            progress.ProgressDisplay(str(counts_directory), plan.input_bytes, mode),
            _watchdog(plan, context, str(counts_directory)),
            _worker_log(plan, context.scratch),
        ):
            if not config.is_local:
                from pipelines.runs.job_servers import check_answers  # a tenth of a second

                check_answers(config.runner, context.options)
            register_run(config.output, plan.run_id)
            pipeline = make_pipeline(context)
            build_pipeline(pipeline, plan, str(counts_directory) if config.is_local else None)
            result = pipeline.run()
            try:
                result.wait_until_finish()
            except KeyboardInterrupt:
                _cancel(result)
                raise
        counts = progress.counters(result)
        committed = list(committed_files(config.output, plan.run_id))
        written = [data_file(config.output, file) for file in committed]
        reconcile(counts, written, len(plan.files))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            heed_interrupt()
        delete_uncommitted(context.data_set, plan.run_id)
        if isinstance(error, UnreadableInput | InputError) or not isinstance(error, Exception):
            raise
        path = unreadable_path(str(error))
        if path is not None:
            reason = str(error).partition("cannot be opened: ")[2].partition(" [while running")[0]
            raise UnreadableInput(path, reason.splitlines()[0]) from error
        raise RunError(explain(error, config.output, Path(context.scratch, WORKER_LOG))) from error
    finally:
        shutil.rmtree(counts_directory, ignore_errors=True)
    files = tuple(file for file in written if not is_dead(file))
    dead_letters = tuple(file for file in written if is_dead(file))
    arithmetics = frozenset(file.model["arithmetic"] for file in committed if file.model)
    return Finished(counts, files, dead_letters, time.monotonic() - clock, arithmetics)


def commit(plan: Plan, context: RunContext, decide: Callable[[DataSet], Manifest | None]) -> bool:
    """Make a run's files results, or remove them.

    Args:
        plan: what was to be done.
        context: where.
        decide: as of `DataSet.commit`.

    Returns:
        Whether they are results; if not, nothing was left to be done.

    Raises:
        RunError: if the manifest cannot be written.
        InputError, RunError: as `DataSet.commit`, and what `decide` raises.
    """
    try:
        return commit_run(context.data_set, plan.run_id, decide) is not None
    except OSError as error:
        raise RunError(explain(error, context.data_set.output)) from error


def _watchdog(plan: Plan, context: RunContext, progress: str) -> Watchdog:
    """What ends a local run that does not get on, or a job for which no worker begins."""
    config, dump = plan.config, getattr(context.runner, "dump_stacks", lambda: None)
    if config.is_local:
        state = functools.partial(metrics.Progress.state, progress)
        return Watchdog(state, config.stall_timeout, dump, Path(context.scratch, WORKER_LOG))
    # Clusters have their own for workers that they start, and may have a job wait for long.
    portable = context.options.view_as(PortableOptions)
    is_ours = portable.environment_type in ("EXTERNAL", "PROCESS")
    said = (
        f"no worker has begun within {config.stall_timeout:g} seconds, so the job was ended; see whether workers can "
        f"be started, and what they log: --environment_config {source_of(portable)}"
    )
    begun = HasBegun(config.output, plan.run_id)
    return Watchdog(begun, config.stall_timeout if is_ours else 0.0, elsewhere=said)


def _cancel(result: PipelineResult) -> None:
    """Have a job of a cluster end with this command, if it can be told."""
    with contextlib.suppress(Exception):
        result.cancel()


@contextlib.contextmanager
def _worker_log(plan: Plan, scratch: str) -> Iterator[None]:
    """Print what the threads of a local run print to the workers' log: Beam prints every error that it raises."""
    if not plan.config.is_local:
        yield
        return
    file = Path(scratch, WORKER_LOG)
    with file.open("a", encoding="utf-8", errors="backslashreplace") as log, contextlib.redirect_stderr(log):
        yield
