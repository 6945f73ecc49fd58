"""python -m pipelines.score: tweets in, emoji distributions and embeddings in Parquet out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.cli.exits import DONE, TOO_MANY_DEAD_LETTERS, end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.options import parse
from torchmoji_core.errors import RunError

if TYPE_CHECKING:
    from pipelines.data_set.manifest import Manifest
    from pipelines.data_set.snapshot import DataSet
    from pipelines.runs.context import RunContext
    from pipelines.runs.plan import Plan


def main(arguments: list[str]) -> int:
    """Parse, plan, run, report. Returns the exit status."""
    config, rest = parse(arguments)
    if config.stream is not None:
        from pipelines.streams import launch

        return launch.run(config, config.stream, rest)

    from pipelines.runs.beam_alone import import_beam

    import_beam(config.is_dataflow)
    from pipelines.runs import submission
    from pipelines.runs.context import locked, open_context
    from pipelines.runs.plan import make_plan

    with open_context(config, rest) as context, locked(context):
        plan = make_plan(config, context.data_set, context.scratch)
        context.figures.update(run_id=plan.run_id, model=plan.model.name, fingerprint=plan.model.fingerprint)
        announce("plan", plan.describe(), input_files=len(plan.files), input_bytes=plan.input_bytes, **context.figures)
        if config.no_wait:
            submission.check(plan, context)
        if config.dry_run:
            if not config.is_local:
                submission.build_only(plan, context)
            announce("dry_run", "dry run: nothing was scored or written")
            return DONE
        status = context.figures["exit_status"] = run(plan, context)
        return status


def run(plan: Plan, context: RunContext) -> int:
    """Run a plan to its end, and make its files the results; or submit it. Returns the exit status.

    Raises:
        RunError: if the run fails. What it has written by then is removed.
    """
    from pipelines.data_set.manifest import TOO_MANY_DEAD, now
    from pipelines.data_set.recovery import delete_retired
    from pipelines.runs import progress, submission
    from pipelines.runs.accounting import Finished, describe_commit, too_many_dead_letters
    from pipelines.runs.execute import commit, execute
    from pipelines.runs.identity import joined_identity
    from pipelines.runs.plan import check_output

    config, data_set, started = plan.config, context.data_set, now()
    earlier = data_set.identity
    joined = {"identity": joined_identity(config, earlier)} if config.if_exists == "append" else {}
    if config.no_wait:
        replaces = check_output(config, data_set, plan.files, plan.model) > 0
        nothing = Finished({}, (), (), 0.0)
        draft = describe_commit(plan, nothing, data_set, "score", started, checkpoint=replaces, **joined)
        return submission.submit(plan, context, draft)
    finished = execute(plan, context)
    warning = too_many_dead_letters(finished.counts, config)

    def decide(state: DataSet) -> Manifest:
        replaced = check_output(config, state, plan.files, plan.model)
        changes: dict[str, Any] = {"status": TOO_MANY_DEAD} if warning else {}
        if config.if_exists == "append" and state.identity != earlier:
            raise RunError(f"another command has written to {config.output} meanwhile; run again")
        manifest = describe_commit(plan, finished, state, "score", started, **joined | changes)
        return state.as_checkpoint(manifest) if replaced else manifest

    commit(plan, context, decide)
    delete_retired(data_set)
    progress.announce_summary(finished.counts, finished.seconds, plan.model.classes, context.figures)
    if warning:
        announce("too_many_dead_letters", warning, level=logging.ERROR)
        return TOO_MANY_DEAD_LETTERS
    return DONE


if __name__ == "__main__":
    end(run_command(main))
