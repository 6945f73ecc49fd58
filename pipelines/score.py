"""python -m pipelines.score: tweets in, emoji distributions and embeddings in Parquet out."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipelines.cli.command_line import DONE, TOO_MANY_DEAD_LETTERS, end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.options import parse
from torchmoji_core.errors import RunError

if TYPE_CHECKING:
    from pipelines.data_set.manifest import Manifest
    from pipelines.data_set.snapshot import DataSet
    from pipelines.runs.plan import Plan
    from pipelines.runs.session import Session


def main(arguments: list[str]) -> int:
    """Parse, plan, run, report. Returns the exit status."""
    config, rest = parse(arguments)
    if config.stream is not None:
        from pipelines.streams import launch

        return launch.run(config, config.stream, rest)

    from pipelines.data_set.snapshot import DataSet
    from pipelines.runs.plan import make_plan
    from pipelines.runs.session import open_session, open_workshop

    with (
        open_workshop(config, rest) as workshop,
        open_session(workshop, DataSet(config.output)) as session,
    ):
        plan = make_plan(config, session.data_set)
        session.figures.update(run_id=plan.run_id, model=plan.model.name, fingerprint=plan.model.fingerprint)
        announce("plan", plan.describe(), input_files=len(plan.files), input_bytes=plan.input_bytes, **session.figures)
        if config.dry_run:
            announce("dry_run", "dry run: nothing was scored or written")
            return DONE
        status = session.figures["exit_status"] = run(plan, session)
        return status


def run(plan: Plan, session: Session) -> int:
    """Run a plan to its end, and make its files the results. Returns the exit status.

    Raises:
        RunError: if the run fails. What it has written by then is removed.
    """
    from pipelines.data_set.recovery import tidy
    from pipelines.runs import report
    from pipelines.runs.identity import joined_identity
    from pipelines.runs.plan import check_output
    from pipelines.runs.run import commit, describe_commit, execute, too_many_dead_letters

    config, data_set, started = plan.config, session.data_set, datetime.now(UTC)
    earlier = data_set.identity
    finished = execute(plan, session)
    warning = too_many_dead_letters(finished.counts, config)

    def decide(state: DataSet) -> Manifest:
        replaced = check_output(config, state, plan.files, plan.model)
        manifest = describe_commit(plan, finished, state, "score", started)
        manifest = dataclasses.replace(manifest, status="too many dead letters" if warning else "done")
        if config.if_exists != "append":
            return state.as_checkpoint(manifest) if replaced else manifest
        if state.identity != earlier:
            raise RunError(f"another command has written to {config.output} meanwhile; run again")
        return dataclasses.replace(manifest, identity=joined_identity(config, earlier))

    commit(plan, session, decide)
    tidy(data_set)
    report.announce_summary(finished.counts, finished.seconds, plan.model.classes, session.figures)
    if warning:
        announce("too_many_dead_letters", warning, level=logging.ERROR)
        return TOO_MANY_DEAD_LETTERS
    return DONE


if __name__ == "__main__":
    end(run_command(main))
