"""From --runner and the options that are not ours to a Beam runner and its pipeline options."""

from __future__ import annotations

import logging

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.runner import PipelineRunner

from pipelines.options import ScoreConfig
from torchmoji_core.errors import InputError

_LOGGER = logging.getLogger(__name__)


def pipeline_options(config: ScoreConfig, rest: list[str]) -> PipelineOptions:
    """Options for Beam.

    Raises:
        InputError: if a local run is given an option that neither we nor Beam know. Other runners have options that
            only their job servers know, so those are passed on.
    """
    options = PipelineOptions([*rest, f"--runner={config.runner}"])
    unknown = unknown_options(rest)
    if unknown and config.is_local:
        raise InputError(f"option {unknown[0]} is unknown, to this program and to Beam; --help lists ours")
    if unknown:
        _LOGGER.warning("passed on to %s unchecked: %s", config.runner, " ".join(unknown))
    if config.is_local:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = config.local_workers
        if config.local_workers > 1 and direct.direct_running_mode == "in_memory":
            direct.direct_running_mode = "multi_processing"
    # All code is in installed modules; nothing of the main session has to travel.
    options.view_as(SetupOptions).save_main_session = False
    return options


def unknown_options(arguments: list[str]) -> list[str]:
    """Those of the arguments that no option class of Beam knows."""
    unknown = PipelineOptions(arguments).view_as(StandardOptions).get_all_options(retain_unknown_options=True).keys()
    known = PipelineOptions(arguments).get_all_options().keys()
    extra = unknown - known
    return [argument for argument in arguments if argument.startswith("--") and argument[2:].partition("=")[0] in extra]


def make_runner(config: ScoreConfig, options: PipelineOptions) -> PipelineRunner | str:
    """Beam's in-process runner for a local run, the name of the runner for any other.

    Beam's own DirectRunner would first try to download another engine. It also hands its options to worker processes
    only in this way.
    """
    if not config.is_local:
        return config.runner
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    return fn_runner.FnApiRunner(provision_info=provision)
