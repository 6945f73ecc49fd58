"""A signal ends a command whatever it is doing: cleaned up if that works, at once if it does not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.cli import interrupts
from pipelines.cli.exits import run_command
from tests.pipelines.conftest import environment

SLOW = 120.0
"""Seconds within which even a busy machine has ended a process."""


def start(code: str, directory: Path, seconds: float = 600.0) -> subprocess.Popen[str]:
    """A command whose main is some code; it has so many seconds to end after a signal, and half of them after that."""
    script = (
        "import sys, threading, time\n"
        "from pipelines.cli import interrupts\n"
        "from pipelines.cli.exits import end, run_command\n"
        f"interrupts.END_SECONDS, interrupts.LAST_SECONDS, interrupts.REPEAT_SECONDS = {seconds}, {seconds / 2}, 0.2\n"
        "def ready(): print('ready', flush=True)\n"
        "def main(arguments):\n" + textwrap.indent(textwrap.dedent(code), "    ") + "\n"
        "end(run_command(main))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=directory, env=environment(), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


SLOW_MODULE = """
import time
print("ready", flush=True)
begun = time.monotonic()
while time.monotonic() < begun + 0.5:
    pass
print("imported", flush=True)
"""

BUSY = {
    "python": ("while True: pass", "interrupted"),
    "a sleep": ("time.sleep(600)", "interrupted"),
    "a lock": ("threading.Lock().__enter__(); lock = threading.Lock(); lock.acquire(); lock.acquire()", "interrupted"),
    # One call of a library, which no handler of Python's interrupts.
    "a library": (
        "import ctypes; libc = ctypes.CDLL(None)\nwhile True: libc.sleep(600)",
        "interrupted",
    ),
    "a library that goes on": (
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')", "interrupted|ended at once",
    ),
    "cleaning up": (
        "try:\n    ready(); time.sleep(600)\nfinally:\n    interrupts.heed_interrupt(); time.sleep(600)",
        "ended at once",
    ),
    "cleaning up, while what is printed goes elsewhere": (
        "import contextlib, io\nwith contextlib.redirect_stderr(io.StringIO()):\n"
        "    try:\n        ready(); time.sleep(600)\n"
        "    finally:\n        interrupts.heed_interrupt(); time.sleep(600)",
        "ended at once",
    ),
    "a finalizer": (
        "class Slow:\n    def __del__(self): time.sleep(2)\nwhile True: Slow()", "interrupted|ended at once",
    ),
    "an error of the interrupt": (
        "try:\n    ready(); time.sleep(600)\nexcept KeyboardInterrupt:\n    raise ValueError('cannot import')",
        "interrupted",
    ),
    "a failure of the interrupt, dealt with": (
        "try:\n    ready(); time.sleep(600)\nexcept KeyboardInterrupt:\n    return 5", "interrupted",
    ),
    "an import": ("sys.path.insert(0, '.'); import slow_module  # which says ready()\ntime.sleep(600)", "interrupted"),
    "a thread that does not end": (
        "threading.Thread(target=time.sleep, args=(600,)).start()\ntime.sleep(600)", "interrupted",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("code", "said"), BUSY.values(), ids=BUSY)
def test_a_signal_ends_it(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    seconds = 1.0 if "ended at once" in said else 600.0
    processes: dict[signal.Signals, subprocess.Popen[str]] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            processes[number] = start(code if "ready()" in code else f"ready()\n{code}", tmp_path, seconds)
            processes[number].send_signal(number)
        for number, process in processes.items():
            out, err = process.communicate(timeout=SLOW)
            assert process.returncode == interrupts.INTERRUPTED, (number, err)
            assert re.search(said, err.splitlines()[-1]), (number, err)
            assert "slow_module" not in code or out == "imported\n", "native modules do not survive an exception there"
            assert "__del__" in code or "Traceback" not in err, number
    finally:
        for process in processes.values():
            process.kill()


@pytest.mark.parametrize("stops", ["", "with interrupts.told_to_stop(600) as stop: "])
def test_a_terminal_that_is_hung_up_is_a_signal_to_end_unless_that_is_ignored(stops: str, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite itself may have been started by nohup
    try:
        heard = "stop.wait(); ready(); " if stops else ""
        process = start(f"ready()\n{stops}{heard}time.sleep(600)", tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        ignoring = start(f"ready()\n{stops}sys.stdin.readline()\nreturn 3", tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    if stops:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=SLOW)
    assert (process.returncode, err) == (interrupts.INTERRUPTED, "interrupted\n")
    process = ignoring
    process.send_signal(signal.SIGHUP)
    assert process.communicate("\n", timeout=SLOW) == ("", "")
    assert process.returncode == 3


@pytest.mark.parametrize(
    ("code", "seconds", "status"),
    [
        ("stop.wait()", 600, 0),
        ("stop.wait(); time.sleep(600)", 1, 130),  # its time is over
        ("stop.wait(); ready(); time.sleep(600)", 600, 130),  # at the second signal
        ("while True: pass", 1, 130),
    ],
)
def test_what_is_told_to_stop_has_time_for_it(code: str, seconds: int, status: int, tmp_path: Path) -> None:
    process = start(
        f"with interrupts.told_to_stop({seconds}) as stop:\n    ready()\n    {code}\nreturn 0",
        tmp_path,
    )
    process.terminate()
    if "ready" in code:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
    try:
        _, err = process.communicate(timeout=SLOW)
    finally:
        process.kill()
    assert process.returncode == status, err


def test_what_has_done_its_work_does_not_wait_for_threads(tmp_path: Path) -> None:
    process = start(
        "from pipelines.cli import exits\nexits.LAST_SECONDS = 0.5\nready()\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\nreturn 3",
        tmp_path,
    )
    assert process.wait(SLOW) == 3


def test_what_was_abandoned_says_its_own_error(tmp_path: Path) -> None:
    process = start(
        """
        from torchmoji_core.errors import RunError
        try:
            ready(); interrupts.abandon(1); time.sleep(600)
        except KeyboardInterrupt:
            raise RunError("no progress") from None
        """,
        tmp_path,
    )
    _, err = process.communicate(timeout=SLOW)
    assert (process.returncode, err) == (1, "failed: no progress\n")


def test_a_command_that_is_interrupted_while_it_begins_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "pipelines.worker", "--port=0"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=False)
    assert (finished.returncode, finished.stderr) == (-signal.SIGINT, b"")


def test_handlers_are_as_they_were_afterwards() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    assert run_command(lambda arguments: 0) == 0
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_done_cannot_be_interrupted_any_more(number: signal.Signals) -> None:
    """It has said so, and still takes half a second to end."""
    program = (
        "import atexit, os\n"
        "from pipelines.cli.exits import end, run_command\n"
        f"atexit.register(os.kill, os.getpid(), {number.value})\n"
        "end(run_command(lambda arguments: 0))\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, b"")


@pytest.mark.parametrize(("error", "status"), [("KeyboardInterrupt()", 130), ("ValueError()", 1)])
def test_a_command_that_has_failed_does_not_wait_for_finalizers(error: str, status: int, tmp_path: Path) -> None:
    """gRPC's of a channel waits for ever, if an interrupt has come while it was being closed."""
    code = f"""
        class Channel:
            def __del__(self):
                threading.Event().wait()

        channel = Channel()
        ready()
        raise {error}
    """
    with start(code, tmp_path) as process:
        try:
            assert process.wait(SLOW) == status
        finally:
            process.kill()
