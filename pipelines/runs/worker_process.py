"""A worker process of a local run: python -m pipelines.runs.worker_process CONTROL ID OPTIONS.

It ends when its standard input does, so it cannot outlive the process that started it, however that dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from typing import NoReturn

from pipelines.cli import console

PARENT_GONE = 1


def main(arguments: list[str]) -> None:
    """Work until told to end.

    Args:
        arguments: address of the runner, id of this worker, file with the pipeline's options as JSON.
    """
    console.secure_streams()  # the disk with the log may be full
    control, worker_id, options = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)

    from pipelines.cli.beam_import import import_beam

    import_beam(is_local=True)

    from apache_beam.portability.api import endpoints_pb2
    from apache_beam.runners.portability.fn_api_runner.worker_handlers import FNAPI_RUNNER_CAPABILITIES
    from apache_beam.runners.worker import sdk_worker_main
    from google.protobuf import text_format

    address = endpoints_pb2.ApiServiceDescriptor(url=control)
    os.environ |= {
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(address),
        "WORKER_ID": worker_id,
        "PIPELINE_OPTIONS_FILE": options,
        "RUNNER_CAPABILITIES": " ".join(FNAPI_RUNNER_CAPABILITIES),
    }
    sdk_worker_main.main([sys.argv[0]])


def _end_with_parent() -> NoReturn:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(PARENT_GONE)


if __name__ == "__main__":
    main(sys.argv[1:])
