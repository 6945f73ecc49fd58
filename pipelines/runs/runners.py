"""From --runner and the options that are not ours to a Beam runner and its pipeline options."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any, TypeVar, cast

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipelines.cli.options import ScoreConfig
from pipelines.cli.parsing import OneLineParser
from pipelines.runs.environments import settle
from torchmoji_core.errors import InputError, first_line

View = TypeVar("View", bound=PipelineOptions)
_LOGGER = logging.getLogger(__name__)
_EVER_SECONDS = 10 * 365 * 86_400
"""Instead of Beam's 300 s for answers of a job server, which end the wait for a job as well (Beam 2.77)."""
_WRONG = {
    "DaskRunner": "it loses rows without a word (Beam 2.77): it does not collect what bundles give at their end",
    "InteractiveRunner": "it is for notebooks, and keeps all that goes from step to step; take DirectRunner",
    "RenderRunner": "it draws the graph and runs nothing; take DirectRunner",
    "TrivialRunner": "it is for teaching, and lacks what this graph needs; take DirectRunner",
}
_IN_PROCESS = {"BundleBasedDirectRunner", "SwitchingDirectRunner"}
"""Runners of Beam that work on in threads of this process. (FnApiRunner has done its work when it answers.)"""
_SECRETS = {
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "s3_session_token": "AWS_SESSION_TOKEN",
    "azure_connection_string": "AZURE_STORAGE_CONNECTION_STRING",
}
"""Options of Beam's whose values are credentials, and the variables that mean the same to the stores' libraries."""


class OptionsReadOnce(PipelineOptions):
    """Beam's options with one view of each kind. Beam makes one whenever it looks at an option, each from the command
    line; while a graph is built that is hundreds of times, and half of the time that it takes (Beam 2.77)."""

    def view_as(self, cls: type[View]) -> View:
        """See `PipelineOptions.view_as`: views have their values in common."""
        views: dict[type[PipelineOptions], Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(View, views[cls])

    def __getstate__(self) -> dict[str, Any]:
        """Without views: a copy makes its own."""
        return {name: value for name, value in super().__getstate__().items() if name != "_views"}


def pipeline_options(config: ScoreConfig, rest: list[str]) -> PipelineOptions:
    """Options for Beam.

    Raises:
        InputError: if Beam refuses a value, a file for it is missing, or a local run is given an option that neither we
            nor Beam know. Other runners have options that only their job servers know, so those are passed on.
    """
    _check_spelling(rest)
    unknown = sorted(_parsed(rest, retain_unknown_options=True).keys() - _parsed(rest).keys())
    if unknown and config.is_local:
        raise InputError(f"option --{unknown[0]} is unknown, to this program and to Beam; --help lists ours")
    if unknown:
        _LOGGER.warning("passed on to %s unchecked: --%s", config.runner, " --".join(unknown))
    rest = _without_secrets(rest, config)
    options = OptionsReadOnce([*rest, f"--runner={config.runner}"])
    portable = options.view_as(PortableOptions)
    portable.job_endpoint = portable.job_endpoint or None
    settle(portable)
    is_awaited = config.stream is None and not config.no_wait
    if is_awaited and portable.job_server_timeout == PortableOptions([]).job_server_timeout:
        portable.job_server_timeout = _EVER_SECONDS
    if config.is_local:
        options.view_as(DirectOptions).direct_num_workers = max(config.local_workers, config.local_threads)
        if not options.view_as(WorkerOptions).default_sdk_harness_log_level:
            options.view_as(WorkerOptions).default_sdk_harness_log_level = "ERROR"
    elif portable.environment_type in ("EXTERNAL", "LOOPBACK", "PROCESS"):
        # Beam would run `pip freeze` for each job, for containers to compare.
        options.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")
    options.view_as(StandardOptions).streaming = config.stream is not None
    setup = options.view_as(SetupOptions)
    for name in ("setup_file", "requirements_file"):
        path = getattr(setup, name)
        if path and not Path(path).is_file():
            raise InputError(f"--{name} {path}: there is no such file")
    # All code is in installed modules; nothing of the main session has to travel.
    setup.save_main_session = False
    return options


def _check_spelling(rest: list[str]) -> None:
    """Beam takes `--a-b` for an unknown `--a_b`, and `-a_b` for a value, and passes over both where it knows `--a_b`.

    Raises:
        InputError: for the first option that is written so, without its value, which may be a secret.
    """
    known = _parsed([])
    for argument in rest:
        name = argument.partition("=")[0]
        meant = name.lstrip("-").replace("-", "_")
        if name.startswith("-") and meant in known and name != f"--{meant}":
            raise InputError(f"option {name} is unknown, to this program and to Beam; is --{meant} meant?")


def _without_secrets(rest: list[str], config: ScoreConfig) -> list[str]:
    """Take credentials out of the options: those are logged, stored with a job, and shown with it.

    In a local run they become the variables in which the stores' libraries look, and worker processes inherit them.

    Raises:
        InputError: on clusters, where only their workers' own environment would be such a place.
    """
    secrets = OneLineParser(add_help=False, allow_abbrev=False)
    for option in _SECRETS:
        secrets.add_argument(f"--{option}")
    given, kept = secrets.parse_known_args(rest)
    for option, value in vars(given).items():
        variable = _SECRETS[option]
        if value is None:
            continue
        if not config.is_local:
            raise InputError(
                f"--{option} would be stored with the job, where others can read it; give the workers a role, or "
                f"{variable} in their environment and in this one"
            )
        os.environ[variable] = value
    return kept


def _parsed(arguments: list[str], retain_unknown_options: bool = False) -> dict[str, Any]:
    """Beam's options by name, its complaints about values as one line, and none about unknown names."""
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    level, complaint = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions(arguments)
            return options.get_all_options(retain_unknown_options=retain_unknown_options)
    except SystemExit:
        raise InputError(complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from None
    finally:
        logger.setLevel(level)


def make_runner(config: ScoreConfig, worker_log: str) -> PipelineRunner:
    """Beam's in-process runner for a local run, otherwise the one of that name.

    Beam's own DirectRunner would first try to download another engine.

    Args:
        config: the run.
        worker_log: file for what worker processes of a local run print; the runner reports their errors by itself.

    Raises:
        InputError: if Beam has no runner of that name, or that one is known to be of no use here.
    """
    if reason := _WRONG.get(config.runner):
        raise InputError(f"--runner {config.runner}: {reason}; docs/runners.md has others")
    if config.is_local:
        from pipelines.runs.local_workers import LocalRunner

        # While one thread converts and writes a batch, another has the model busy; threads share one copy of it.
        return LocalRunner(processes=config.local_workers > 1, worker_log=worker_log)
    if config.runner == "PrismRunner":
        from pipelines.runs.job_servers import Prism

        return Prism()
    try:
        if config.is_dataflow:
            import google.cloud.dataflow  # noqa: F401 - Beam does without until a job is sent
        runner = create_runner(config.runner)
    except Exception as error:  # whatever the import of a module does, of which Beam takes any
        hint = "; install torchmoji-beam[gcp]" if config.is_dataflow else ""
        raise InputError(f"--runner {config.runner}: {first_line(error)}{hint}") from None
    if not isinstance(runner, PipelineRunner):
        raise InputError(f"--runner {config.runner}: that is no runner of Beam; docs/runners.md has some")
    return runner


def why_it_ends_with_us(config: ScoreConfig, options: PipelineOptions) -> str | None:
    """Why a job of a runner ends when the command that has started it does; None where it goes on by itself."""
    portable = options.view_as(PortableOptions)
    if config.is_local or config.runner in _IN_PROCESS:
        return "it works in this command"
    if portable.job_endpoint == "embed" or (portable.job_endpoint is None and config.runner == "PrismRunner"):
        return "its job server is a part of this command"
    if portable.environment_type == "LOOPBACK":
        return "its workers are a part of this command"
    name = {"FlinkRunner": "flink_submit_uber_jar", "SparkRunner": "spark_submit_uber_jar"}.get(config.runner)
    if name and portable.job_endpoint is None and not options.get_all_options()[name]:
        return f"without --{name}, or the --job_endpoint of another one, its job server is a part of this command"
    return None
