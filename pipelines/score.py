"""python -m pipelines.score: tweets in, emoji distributions and embeddings in Parquet out."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipelines.command_line import DONE, TOO_MANY_DEAD_LETTERS, run_command
from pipelines.logs import set_up_logging
from pipelines.options import parse

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

    from pipelines.data_set import DataSet
    from pipelines.lease import Lease
    from pipelines.plan import Plan


def main(arguments: list[str]) -> int:
    """Parse, plan, run, report. Returns the exit status."""
    config, rest = parse(arguments)
    set_up_logging()
    if config.resume:
        from pipelines import annotation
        from pipelines.annotate_options import AnnotateConfig

        return annotation.run(AnnotateConfig.resuming(config), rest, "score")

    from pipelines.data_set import DataSet, recover
    from pipelines.lease import Lease
    from pipelines.plan import make_plan
    from pipelines.run import WORKER_LOG
    from pipelines.runners import make_runner, pipeline_options

    options = pipeline_options(config, rest)
    with tempfile.TemporaryDirectory(prefix="torchmoji-") as scratch:
        runner = make_runner(config, options, f"{scratch}/{WORKER_LOG}")
        with Lease(config.output) as lease:
            data_set = DataSet.read(config.output)
            recover(data_set)
            plan = make_plan(config, data_set)
            print(plan.describe(), flush=True)
            if config.dry_run:
                print("dry run: nothing was scored or written")
                return DONE
            return run(plan, data_set, lease, runner, options, scratch)


def run(
    plan: Plan, data_set: DataSet, lease: Lease, runner: PipelineRunner, options: PipelineOptions, scratch: str
) -> int:
    """Run a plan to its end, and make its files the results.

    Raises:
        RunError: if the run fails. What it has written by then is removed.
    """
    from pipelines import report
    from pipelines.data_set import remove_temporary
    from pipelines.run import commit, describe_commit, execute, too_many_dead_letters

    started = datetime.now(UTC)
    finished = execute(plan, runner, options, scratch)
    warning = too_many_dead_letters(finished.counts, plan.config)
    manifest = describe_commit(plan, finished, data_set, "score", started, plan.files)
    if plan.replaced:
        retired = tuple(data_set.known_files)
        manifest = dataclasses.replace(manifest, retired=retired, checkpoint=True)
    commit(plan, dataclasses.replace(manifest, status="too many dead letters" if warning else "done"), data_set, lease)
    data_set.purge()
    remove_temporary(plan.config.output, plan.run_id)
    print(
        report.summary(
            finished.counts, finished.seconds, plan.model.classes, plan.model.fingerprint, plan.config.output
        )
    )
    if warning:
        print(warning, file=sys.stderr)
        return TOO_MANY_DEAD_LETTERS
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
