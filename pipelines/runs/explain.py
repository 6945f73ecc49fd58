"""Why a run has failed, in one line: from its error, or from the text of worker processes' errors."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pipelines.cli.logs import announce, quoted
from pipelines.runs.local_workers import WORKER_DIED
from torchmoji_core.errors import TorchMojiError, first_line, shortage_of, shortened

_LOGGER = logging.getLogger(__name__)


def _names_of_errors(kind: type[OSError]) -> list[str]:
    return [kind.__name__, *(name for each in kind.__subclasses__() for name in _names_of_errors(each))]


_STORAGE_ERROR = rf"(?m)^(?:\w+\.)*(?:{'|'.join(dict.fromkeys(_names_of_errors(OSError)))}): (.*)"
"""The end of a traceback, as text, if a store or a disk has refused something."""


_DEATHS = ("Channel closed prematurely", "SDK worker disconnected", "send on closed channel", WORKER_DIED)
"""What runners say of a worker that is gone: Beam's in this process, Prism (where it was sending, by a panic), ours."""
_NOT_STARTED = "didn't get control connection"
"""What Prism says of a worker that does not connect within a minute."""
_NOT_FETCHED = re.compile(r"Unable to fetch remote ([\w ]+) at (\S+): ")
"""What Beam says of a program of a runner that it would download."""
_NO_DOCKER = ("returned non-zero", "with docker for env")
"""What Beam's job server and Prism say of a container that cannot be started; both name docker."""
_GRPC_DETAILS = re.compile(r'^\s*details = "(.*)"$', re.MULTILINE)


def explain(error: BaseException, output: str, worker_log: Path | None = None) -> str:
    """One line for a failed run; an error that is not foreseen is logged with its traceback as well.

    Worker processes hand over their errors as text only, so it is the text that is searched.
    """
    text = str(error)
    shortage = shortage_of(error) or shortage_of(text)
    if shortage is not None:
        return f"{shortage} (output {output})"
    if any(said in text for said in _DEATHS):
        return (
            "a worker process died: killed, or out of memory; run again, with a lower --max_batch_tokens or "
            "--direct_num_workers if memory was short"
        )
    if _NOT_STARTED in text:
        return "a worker has not connected to the runner; see whether workers can be started, and what they log"
    ours = re.search(r"torchmoji_core\.errors\.\w+: (.*)", text)
    if ours or isinstance(error, TorchMojiError):
        return (ours[1] if ours else text).partition(" [while running")[0]
    if isinstance(error, OSError):
        return first_line(error)
    if fetched := _NOT_FETCHED.search(text):
        return (
            f"Beam's {fetched[1]} cannot be fetched from {fetched[2]}; give the --job_endpoint of one that runs, or a "
            "file: --prism_location, --flink_job_server_jar, --spark_job_server_jar"
        )
    if "docker" in text and any(said in text for said in _NO_DOCKER):
        return "no container can be started; start Docker, or give another --environment_type: docs/runners.md"
    if details := _GRPC_DETAILS.findall(text):  # the rest of such an error is a table for people who know gRPC
        return f"the runner or a worker cannot be reached, or refuses: {shortened(details[-1])}"
    # The last one is the cause of the others.
    if of_storage := re.findall(_STORAGE_ERROR, text):
        return str(of_storage[-1]).partition(" [while running")[0]
    _LOGGER.error("the run failed", exc_info=error)
    if worker_log is not None and worker_log.exists() and (log := worker_log.read_text("utf-8", "replace")):
        announce("workers_log", ["the workers' last words:", *quoted(log[-2000:])], level=logging.ERROR)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
