"""From --runner and the options that are not ours to a Beam runner and its pipeline options."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import sys
from typing import Any

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipelines.options import ScoreConfig
from torchmoji_core.errors import InputError

_LOGGER = logging.getLogger(__name__)


def pipeline_options(config: ScoreConfig, rest: list[str]) -> PipelineOptions:
    """Options for Beam.

    Raises:
        InputError: if Beam refuses a value, or a local run is given an option that neither we nor Beam know. Other
            runners have options that only their job servers know, so those are passed on.
    """
    unknown = sorted(_parsed(rest, retain_unknown_options=True).keys() - _parsed(rest).keys())
    if unknown and config.is_local:
        raise InputError(f"option --{unknown[0]} is unknown, to this program and to Beam; --help lists ours")
    if unknown:
        _LOGGER.warning("passed on to %s unchecked: --%s", config.runner, " --".join(unknown))
    options = PipelineOptions([*rest, f"--runner={config.runner}"])
    if config.is_local:
        options.view_as(DirectOptions).direct_num_workers = max(config.local_workers, config.local_threads)
        if not options.view_as(WorkerOptions).default_sdk_harness_log_level:
            options.view_as(WorkerOptions).default_sdk_harness_log_level = "ERROR"
    options.view_as(StandardOptions).streaming = config.stream is not None
    # All code is in installed modules; nothing of the main session has to travel.
    options.view_as(SetupOptions).save_main_session = False
    return options


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


def make_runner(config: ScoreConfig, options: PipelineOptions, worker_log: str) -> PipelineRunner:
    """Beam's in-process runner for a local run, otherwise the one of that name.

    Beam's own DirectRunner would first try to download another engine. Options reach worker processes only in the
    provision info.

    Args:
        config: the run.
        options: for Beam.
        worker_log: file for what worker processes of a local run print; the runner reports their errors by itself.

    Raises:
        InputError: if Beam has no runner of that name.
    """
    if not config.is_local:
        return cluster_runner(config)
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle
    from apache_beam.transforms.environments import (
        EmbeddedPythonEnvironment,
        EmbeddedPythonGrpcEnvironment,
        SubprocessSDKEnvironment,
    )

    if config.local_workers == 1 == config.local_threads:
        environment = EmbeddedPythonEnvironment.default()
    elif config.local_workers == 1:
        # While one thread converts and writes a batch, another has the model busy; they share one copy of it.
        environment = EmbeddedPythonGrpcEnvironment.default()
    else:
        from pipelines import local_workers  # noqa: F401 - it replaces Beam's own, which do not notice a death

        command = f"exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
        environment = SubprocessSDKEnvironment.from_command_string(f"{command} 2>>{shlex.quote(worker_log)}")
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    return fn_runner.FnApiRunner(default_environment=environment, provision_info=provision)


def cluster_runner(config: ScoreConfig) -> PipelineRunner:
    """Beam's runner of the given name.

    Raises:
        InputError: if Beam has none.
    """
    try:
        return create_runner(config.runner)
    except (ValueError, ImportError) as error:
        raise InputError(f"--runner {config.runner}: {str(error).splitlines()[0]}") from None
