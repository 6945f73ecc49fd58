"""The process that workers are forked from: python -m pipelines.runs.worker_forks, with a socket as its standard input.

It imports Beam and torch, which the workers need not then, and does nothing else: it has no threads, as a process that
forks should not. Each line that it reads is a worker to be started. The answer is the worker's number, and with it the
end of a pipe that the worker alone holds: it closes when the worker ends, whoever else has died by then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

from pipelines.cli.exits import DONE, YOUNG_OBJECTS, end, run_command
from pipelines.cli.logs import set_up_logging
from pipelines.runs.beam_alone import import_beam


def load() -> None:
    """Import all that a worker needs."""
    set_up_logging("text")  # Beam speaks while it is imported, of extras that nobody asked for
    gc.set_threshold(YOUNG_OBJECTS)
    import_beam()
    for name in ("worker_boot", "graph"):
        importlib.import_module(f"pipelines.runs.{name}")
    # A search for cycles in what stays would only have each worker make a copy of it.
    gc.freeze()


def serve(requests: socket.socket) -> None:
    """Fork workers until nobody asks for any more."""
    signal.signal(signal.SIGCHLD, forget)  # not before: programs that imports start are not ours
    for line in requests.makefile():
        worker_id, *endpoints = json.loads(line)
        pipe: tuple[int, ...] = ()
        try:
            pipe = theirs, ours = os.pipe()
            number = os.fork()
        except OSError as error:
            answer, pipes = str(error.strerror), []
        else:
            if not number:
                os.close(theirs)
                os.close(requests.detach())
                _become_worker(ours, worker_id, *endpoints)
            answer, pipes = str(number), [theirs]
        with contextlib.suppress(OSError):  # the pool has ended meanwhile
            socket.send_fds(requests, [answer.encode()], pipes)
        for end_of_pipe in pipe:
            os.close(end_of_pipe)


def forget(*_: object) -> None:
    """Let go of the workers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_worker(pipe: int, worker_id: str, *endpoints: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def main(_: list[str]) -> int:
        from pipelines.runs.worker_boot import Endpoints, work

        work(worker_id, Endpoints(*endpoints))
        return DONE

    status = run_command(main)
    with contextlib.suppress(OSError):  # the pool has ended before
        os.write(pipe, str(status).encode())
    end(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the pool ends the workers, and then this
    asked = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with open(os.devnull) as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    load()
    serve(asked)
    end(DONE)
