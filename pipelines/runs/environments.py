"""Where the workers of a job come from: --environment_type and what belongs to it, in one spelling."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from apache_beam.options.pipeline_options import PortableOptions

from torchmoji_core.errors import InputError

_URN = re.compile(r"beam:env:(\w+):v1")
_TYPES = ("EXTERNAL", "PROCESS", "LOOPBACK", "DOCKER")
_OPTIONS = {"EXTERNAL": "external_service_address", "PROCESS": "process_command"}
_FIELDS = {"EXTERNAL": "url", "PROCESS": "command"}
_NEEDED = {"EXTERNAL": "the HOST:PORT of a pool of workers", "PROCESS": """'{"command": "PROGRAM"}'"""}


def settle(portable: PortableOptions) -> None:
    """Bring options to one spelling, of those that Beam knows or should: it fails on some of them (Beam 2.77).

    Args:
        portable: a job's options. Those of its environment are changed.

    Raises:
        InputError: if one is wrong, or means nothing without another.
    """
    given, configuration = portable.environment_type, portable.environment_config
    if not given:
        if configuration or portable.environment_options:
            raise InputError(f"--environment_config means nothing without --environment_type: {', '.join(_TYPES)}")
        return
    urn = _URN.fullmatch(given)
    kind = (urn[1] if urn else given).upper()
    if kind not in _TYPES:
        raise InputError(f"--environment_type {given} is unknown; it must be one of {', '.join(_TYPES)}")
    portable.environment_type = kind
    if kind not in _NEEDED:
        return
    if not configuration:
        option = portable.lookup_environment_option(_OPTIONS[kind])
        if not isinstance(option, str):
            raise InputError(f"--environment_type {kind} needs --environment_config, {_NEEDED[kind]}")
        if kind == "EXTERNAL":  # of a process there may be variables too
            portable.environment_config, portable.environment_options = option, None
    elif not configuration.lstrip().startswith("{"):
        if kind == "PROCESS":
            portable.environment_config = json.dumps({"command": configuration})
    elif not _field(configuration, _FIELDS[kind]):
        raise InputError(f"--environment_config {configuration}: it must be {_NEEDED[kind]}")
    if kind == "EXTERNAL" and not re.search(r":\d+$", address := source_of(portable)):
        raise InputError(f"--environment_config {address}: it must be {_NEEDED[kind]}")


def source_of(portable: PortableOptions) -> str:
    """The address of the pool (EXTERNAL), or the program (PROCESS), of options that are settled; else empty."""
    kind, configuration = portable.environment_type, portable.environment_config
    if kind not in _NEEDED:
        return ""
    if not configuration:
        return str(portable.lookup_environment_option(_OPTIONS[kind]))
    return _field(configuration, _FIELDS[kind]) or configuration


def _field(configuration: str, name: str) -> str:
    """A value of a JSON object; empty if it has none, or is no JSON object."""
    with contextlib.suppress(ValueError):
        said: Any = json.loads(configuration)
        if isinstance(said, dict) and isinstance(value := said.get(name), str):
            return value
    return ""
