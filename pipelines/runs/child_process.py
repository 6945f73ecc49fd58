"""python -I child_process.py PARENT PROGRAM [ARGUMENT]...: a program that does not outlive who has started it.

The system kills it when the thread that started it ends, also by SIGKILL. Linux only; elsewhere it is a program like
others. This file is run as it is, whatever package of that name the current directory has.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def become(parent: int, command: list[str]) -> NoReturn:
    """Replace this process by a program.

    Args:
        parent: number of the process that has started this one.
        command: the program, and its arguments.

    Raises:
        OSError: if it cannot be run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended before
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
