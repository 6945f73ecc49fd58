"""python -m pipelines.worker: workers for portable runners, without Docker; a pool of them, or one by itself."""

from __future__ import annotations

import argparse

from pipelines.cli.exits import DONE, FAILED, end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.errors import InputError


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.worker",
        description="Start Beam workers in this environment. With --port: a pool, for runners that are given "
        "--environment_type=EXTERNAL --environment_config=localhost:PORT; it listens on this machine alone. With "
        "--provision_endpoint: one worker, as runners call the command of --environment_type=PROCESS.",
        allow_abbrev=False,
    )
    result.add_argument("--port", type=int, metavar="PORT", help="of the pool; 0 for any that is free")
    result.add_argument("--check", action="store_true", help="status 0 if a pool answers at --port, else 1")
    group = result.add_argument_group("one worker; runners give these")
    group.add_argument("--id", metavar="NAME", help="of the worker")
    for name in ("provision", "control", "logging"):
        group.add_argument(
            f"--{name}_endpoint", default="", metavar="HOST:PORT", help=f"of the runner's {name} service"
        )
    return result


def main(arguments: list[str]) -> int:
    """Serve until told to stop, or work as a worker. Returns the exit status."""
    options, rest = parser().parse_known_args(arguments)
    if options.provision_endpoint:
        from pipelines.runs.beam_alone import import_beam

        import_beam()
        from pipelines.runs.worker_boot import Endpoints, work

        endpoints = Endpoints(options.provision_endpoint, options.control_endpoint, options.logging_endpoint)
        work(options.id or "worker", endpoints)  # of the rest, runners know what it is
        return DONE
    if rest:
        raise InputError(f"{rest[0]} is unknown; --help lists all options")
    if options.port is None or not 0 <= options.port < 1 << 16:
        raise InputError("--port: give that of the pool, 0 to 65535")
    if options.check:
        from pipelines.runs.worker_pool import check

        if check(options.port):
            return DONE
        announce("no_pool", f"no pool of workers answers at port {options.port} of this machine")
        return FAILED

    from pipelines.cli.interrupts import told_to_stop
    from pipelines.runs.worker_pool import END_SECONDS, serving

    with serving(options.port) as port, told_to_stop(END_SECONDS) as stop:
        announce("serving", f"workers are started at localhost:{port}; stop with Ctrl-C or SIGTERM", port=port)
        stop.wait()
    return DONE


def command() -> None:
    """What the installed program torchmoji-worker runs: runners want a program without arguments."""
    end(run_command(main))


if __name__ == "__main__":
    command()
