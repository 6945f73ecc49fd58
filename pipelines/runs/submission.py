"""Hands a job to a cluster and leaves it there; or only builds its graph, for a dry run.

What a stream writes is pending until it is committed (`pending`). A bounded run whose end nobody waits for describes
itself (`jobs`), and is taken in by a later command (`job_results`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions

from pipelines.cli.exits import DONE
from pipelines.cli.interrupts import is_told_to_end
from pipelines.cli.logs import announce
from pipelines.data_set import jobs
from pipelines.data_set.jobs import Basis, Job
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.recovery import delete_uncommitted, register_run
from pipelines.runs.context import RunContext
from pipelines.runs.explain import explain
from pipelines.runs.graph import build_pipeline
from pipelines.runs.plan import Plan
from pipelines.runs.runners import why_it_ends_with_us
from torchmoji_core.errors import InputError, RunError
from transforms.output.commit import job_directory

NO_WAIT = "--no_wait leaves it to go on; leave that out, or name the runner of a cluster"


def make_pipeline(context: RunContext) -> beam.Pipeline:
    """An empty pipeline for the runner of a command.

    Raises:
        InputError: if the runner lacks an option, or refuses one.
    """
    try:
        return beam.Pipeline(runner=context.runner, options=context.options)
    except ValueError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()] or [str(error)]
        raise InputError(f"the runner's options: {' '.join(reasons)}") from None


def template_of(context: RunContext) -> str | None:
    """Where Dataflow is to write the job as a template, and not to run it."""
    template: str | None = context.options.view_as(GoogleCloudOptions).template_location
    return template


def build_only(
    plan: Plan, context: RunContext, build: Callable[[beam.Pipeline, Plan], object] = build_pipeline
) -> None:
    """Build the graph as the runner would be given it, and stop.

    Args:
        plan: the job.
        context: with the options of its runner.
        build: adds the job to a pipeline.

    Raises:
        InputError: if a source, a sink or an option of the runner cannot be used.
        RunError: if the runner refuses the graph.
    """
    if plan.config.is_dataflow:
        # Beam's own option: the runner comes back before anything is staged or sent. A pipeline copies its options.
        context.options.view_as(TestOptions).dry_run = True
    pipeline = make_pipeline(context)
    build(pipeline, plan)
    try:
        if plan.config.is_dataflow:
            pipeline.run()
        else:
            pipeline.to_runner_api()
    except Exception as error:
        raise RunError(explain(error, plan.config.output)) from error


def send(pipeline: beam.Pipeline, plan: Plan, context: RunContext) -> str | None:
    """Hand a graph to the runner. Gives what the runner calls the job, where it says so.

    Raises:
        InputError: if a job is to be updated that does not run.
        Exception: whatever the runner raises.
    """
    if plan.config.is_dataflow and context.options.view_as(GoogleCloudOptions).update:
        _check_updated(context)
    result: Any = pipeline.run()
    if template_of(context):
        return None
    job = getattr(result, "job_id", None) or getattr(result, "_job_id", None)
    return job() if callable(job) else job


def _check_updated(context: RunContext) -> None:
    """Make sure that there is a job to update: if not, Beam 2.77 asks the service for it without end.

    Raises:
        InputError: if there is none.
    """
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient, dataflow

    options = context.options.view_as(GoogleCloudOptions)
    listed = DataflowApplicationClient(options)._jobs_client.list_jobs(
        dataflow.ListJobsRequest(project_id=options.project, location=options.region)
    )
    running = (dataflow.JobState.JOB_STATE_RUNNING, dataflow.JobState.JOB_STATE_DRAINING)
    if not any(job.name == options.job_name and job.current_state in running for job in listed):
        raise InputError(
            f"--update: no job {options.job_name} runs in {options.region} of {options.project}; give --job_name"
        )


def said(plan: Plan, context: RunContext, job: str | None) -> str:
    """What was done with a job, for people."""
    if template := template_of(context):
        return f"template written to {template}, and nothing run yet"
    return f"submitted to {plan.config.runner}{f' as job {job}' if job else ''}"


def check(plan: Plan, context: RunContext, what: str = NO_WAIT) -> None:
    """Make sure that a job goes on when this command ends, and that its job server is there, if it is to be sent.

    Args:
        plan: the job.
        context: with the options of its runner.
        what: why it has to.

    Raises:
        InputError: if it does not.
        RunError: if nobody answers.
    """
    if reason := why_it_ends_with_us(plan.config, context.options):
        raise InputError(f"--runner {plan.config.runner}: {reason}, and would end with it, while {what}")
    if not plan.config.dry_run:
        from pipelines.runs.job_servers import check_answers  # a tenth of a second

        check_answers(plan.config.runner, context.options)


def check_waits(context: RunContext) -> None:
    """Make sure that there will be an end to wait for.

    Raises:
        InputError: if not.
    """
    if template_of(context):
        raise InputError("--template_location: the job is run later, so nobody can wait for it here; add --no_wait")


def submit(plan: Plan, context: RunContext, draft: Manifest) -> int:
    """Hand a bounded run to a cluster, and leave it there. Returns the exit status.

    To be called by the holder of the lock.

    Args:
        plan: what to do.
        context: where.
        draft: what is to be committed when the run is done, but for its files and counts.

    Raises:
        InputError: if the job would end with this command, or a sink cannot be used.
        RunError: if the runner does not take the job.
    """
    config, output = plan.config, plan.config.output
    inputs = [entry.path for entry in draft.inputs]
    basis = Basis.of(context.data_set, draft.generation, inputs)
    job = Job(draft, basis, config.runner, config.max_dead_fraction)
    register_run(output, plan.run_id)
    jobs.write(output, job)
    is_sent = False
    try:
        pipeline = make_pipeline(context)
        build_pipeline(pipeline, plan)
        is_sent = True
        name = send(pipeline, plan, context)
    except BaseException as error:
        if is_sent and (is_told_to_end() or not isinstance(error, Exception)):
            warning = (
                f"interrupted while {config.runner} was taking the job; if it has taken it, a later command takes in "
                f"the result, else delete {job_directory(output, plan.run_id)}"
            )
            announce("perhaps_submitted", warning, level=logging.WARNING, run_id=plan.run_id)
            raise
        jobs.remove(output, plan.run_id)
        delete_uncommitted(context.data_set, plan.run_id)
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise RunError(explain(error, output)) from error
    if name is not None:
        jobs.write(output, Job(draft, basis, config.runner, config.max_dead_fraction, name))
    announce(
        "submitted",
        f"{said(plan, context, name)}; when it is done, pipelines.annotate, pipelines.compact or pipelines.verify "
        f"--clean takes in what it has written to {output}",
        job=name,
        run_id=plan.run_id,
    )
    return DONE
