"""Output that cannot be written never fails the work; what is printed steers no terminal and forges no line."""

from __future__ import annotations

import json
import logging
import os
import socketserver
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import score
from pipelines.cli.exits import run_command
from pipelines.cli.logs import announce, printable, set_up_logging
from pipelines.cli.options import parse
from pipelines.runs.progress import announce_summary
from tests.pipelines.conftest import Finished, environment, posts, write_lines
from torchmoji_core.errors import InputError
from transforms import metrics

Score = Callable[..., Finished]

HOSTILE = "x\nFORGED: done\r\x1b[2J\x9b1m\x08\u202eevil\u2066\u2028\u0085\udcff\x7f\t"
SHOWN = r"x\nFORGED: done\r\x1b[2J\x9b1m\x08\u202eevil\u2066\u2028\x85\udcff\x7f\t"

PROGRAM = """
import logging, os, sys
from pipelines.cli.parsing import OneLineParser
from pipelines.cli.exits import end, run_command
from pipelines.cli.logs import announce

def main(arguments):
    parser = OneLineParser()
    for option in ("--dry_run", "--fail"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--log_format")
    parser.add_argument("--result", default=os.devnull)
    options = parser.parse_args(arguments)
    with open(options.result, "w") as file:  # the first file opened, which must not become standard output
        for i in range(3):
            announce("progress", f"\\N{FACE WITH TEARS OF JOY} \\u00e9 {i}", number=i)
            logging.getLogger("some.where").warning("\\N{BLACK HEART SUIT}")
            print("printed", end="")
            print("printed", file=sys.stderr, end="")
        file.write(f"scored, {sys.stderr.isatty()}")
    return 1 if options.fail else 0

end(run_command(main))
"""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    set_up_logging("text")


def run_program(tmp_path: Path, redirection: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """The program with its streams as a shell leaves them: exit status, and what reached standard error."""
    command = f'"$@" {redirection}'
    finished = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-c", PROGRAM, *arguments],
        cwd=tmp_path,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" not in finished.stderr and b"Exception ignored" not in finished.stderr
    return finished.returncode, finished.stderr.decode()


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        ">/dev/full",
        ">/dev/full 2>&1",
        "1</dev/null 2>&1",
        "> >(exec true) 2>&1; s=$?; wait; exit $s",
    ],
)
def test_the_status_is_that_of_the_work(tmp_path: Path, redirection: str, log_format: str) -> None:
    for arguments, status in (((), 0), (("--fail",), 1)):
        ended, _ = run_program(tmp_path, redirection, "--result", "result", "--log_format", log_format, *arguments)
        assert ended == status
        assert (tmp_path / "result").read_text() == "scored, False"


def test_a_reader_that_is_gone_is_told_of_by_dry_runs_and_help_alone(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        output, gone = os.pipe()
        os.close(output)
        command = [sys.executable, "-c", PROGRAM, *arguments]
        finished = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, env=environment(), timeout=60)
        os.close(gone)
        assert b"Traceback" not in finished.stderr and b"Broken pipe" not in finished.stderr
        return finished.returncode

    assert [run(), run("--fail"), run("--dry_run"), run("--help"), run("--dry_run", "--fail")] == [0, 1, 141, 141, 1]


def test_a_full_disk_is_told_on_standard_error(tmp_path: Path) -> None:
    status, told = run_program(tmp_path, ">/dev/full")
    assert status == 0 and told.endswith("not all could be written to standard output: No space left on device\n")


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_what_an_encoding_lacks_is_escaped(tmp_path: Path, variables: dict[str, str]) -> None:
    status, told = run_program(tmp_path, ">&2", **variables)
    assert status == 0 and told.isascii() and r"\U0001f602 \xe9 2" in told and r"\u2665" in told


def test_a_hung_up_terminal_does_not_end_the_work(tmp_path: Path) -> None:
    """Writing to it fails with EIO; the program is in a session of its own, so that no SIGHUP reaches it."""
    terminal, ours = os.openpty()
    command = [sys.executable, "-c", "import sys; sys.stdin.readline()\n" + PROGRAM, "--result", "result"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=ours, stderr=ours, cwd=tmp_path, env=environment()
    ) as process:
        os.close(terminal)
        os.close(ours)
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0
    assert (tmp_path / "result").exists()


def test_a_non_blocking_pipe_gets_all(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = f"{PROGRAM.partition('end(')[0]}end(run_command(lambda a: announce('x', 'long ' * 100_000) or 0))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=writer, env=environment()) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert len(file.read()) == 500_001
        assert process.wait(60) == 0


def test_a_handler_of_a_signal_may_print_in_the_middle_of_a_print() -> None:
    program = """
import signal
from pipelines.cli.exits import end, run_command
from pipelines.cli.logs import announce

def main(arguments):
    signal.signal(signal.SIGALRM, lambda number, frame: announce("x", "in between"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for _ in range(5_000):
        announce("x", "line")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 0

end(run_command(main))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "in between" in finished.stdout and finished.stdout.count("line") == 5_000


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "1>/dev/full 2>&1"])
def test_score_scores_without_output(model: str, tmp_path: Path, redirection: str) -> None:
    write_lines(tmp_path / "in😂.jsonl", posts(30))
    command = [sys.executable, "-m", "pipelines.score", "--model", model, "--input", "in*.jsonl", "--output", "out"]
    variables = environment() | {"PYTHONIOENCODING": "ascii:strict"}
    shell = ["bash", "-c", f'"$@" --progress bar {redirection}', "bash", *command]
    assert subprocess.run(shell, cwd=tmp_path, env=variables, timeout=120).returncode == 0
    assert pq.read_table(tmp_path / "out").num_rows == 30


@pytest.mark.parametrize("command", ["score", "annotate", "verify", "compact", "convert", "finetune", "pretrain"])
def test_every_command_helps_without_a_reader(command: str) -> None:
    output, gone = os.pipe()
    os.close(output)
    arguments = [sys.executable, "-m", f"pipelines.{command}", "--help"]
    finished = subprocess.run(arguments, stdout=gone, stderr=subprocess.PIPE, env=environment(), timeout=60)
    os.close(gone)
    assert (finished.returncode, finished.stderr) == (141, b"")


# What is printed


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_printable_is_one_line_of_harmless_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and printable(shown) == shown
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in shown)


@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ 🇩🇪", "schön ñandú", "日本語", "שלום مرحبا", "C:\\new", "a b"])
def test_normal_unicode_stays(text: str) -> None:
    assert printable(text) == text


def test_hostile_characters_are_shown() -> None:
    assert printable(HOSTILE) == SHOWN


def test_whatever_is_said_a_value_makes_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: list[str]) -> int:
        announce("plan", ["first", f"second {HOSTILE}"])
        announce("progress", HOSTILE, stream=sys.stderr)
        logging.getLogger("some.where").warning("of %s", HOSTILE)
        warnings.warn(HOSTILE, stacklevel=1)
        try:
            raise OSError(HOSTILE)
        except OSError as error:
            logging.getLogger("some.where").exception("of %s", HOSTILE)
            raise RuntimeError(HOSTILE) from error

    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own cannot pass a lone surrogate on
    monkeypatch.setattr(sys, "argv", ["command"])
    assert run_command(main) == 1
    out, err = capsys.readouterr()
    assert out == f"first\nsecond {SHOWN}\n"
    assert not any(printable(line) != line for line in (out + err).split("\n"))
    ours = [line for line in err.rstrip("\n").split("\n") if not line.startswith("  | ")]
    assert [line.partition(" of ")[0].partition(":")[0] for line in ours] == [
        SHOWN.partition(":")[0], "WARNING some.where", "WARNING py.warnings", "ERROR some.where", "failed",
    ]  # fmt: skip


def test_what_nothing_can_catch_is_shown_too() -> None:
    program = """
import threading
from pipelines.cli.exits import end, run_command

class Hostile:
    def __del__(self):
        raise ValueError("of a finalizer\\nFORGED \\x1b[2J")

def main(arguments):
    def fail():
        raise ValueError("of a thread\\nFORGED \\x1b[2J")
    thread = threading.Thread(target=fail, name="t\\nFORGED")
    thread.start()
    thread.join()
    Hostile()
    return 0

end(run_command(main))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert finished.returncode == 0 and "of a finalizer" in finished.stderr and "of a thread" in finished.stderr
    assert "\x1b" not in finished.stderr
    assert not any(line.startswith("FORGED") for line in finished.stderr.splitlines())


def test_hostile_names_of_files_and_classes_are_shown(run_score: Score, tmp_path: Path) -> None:
    name = "a\nFORGED\x1b[31m\u202e.jsonl"
    write_lines(tmp_path / name, [*posts(3), "not json"])
    for arguments in (("--input", name), ("--input", f"{name}.gone"), ("--output", "a\x1b[2J\nFORGED", "--input", "*")):
        for extra in ((), ("--dry_run",), ("--max_dead_fraction", "1")):
            finished = run_score(*arguments, *extra)
            assert r"\x1b[" in finished.out + finished.err
            assert "\x1b" not in finished.out + finished.err
            assert not any(line.startswith("FORGED") for line in (finished.out + finished.err).split("\n"))


def test_hostile_names_of_classes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {metrics.SCORED: 1, f"{metrics.TOP_PREFIX}0": 1}
    announce_summary(counts, 1.0, [HOSTILE], {"fingerprint": "f", "output": HOSTILE})
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 11 and lines[9] == f"commonest   {SHOWN} 100.0%" and lines[7].endswith(f"in {SHOWN}")


@pytest.mark.parametrize("arguments", [("--top_k", HOSTILE), ("--format", HOSTILE), (HOSTILE,)])
def test_a_wrong_option_is_one_line(arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        parse(list(arguments))
    assert "\n" not in printable(str(error.value))


def test_an_unknown_option_is_one_line(run_score: Score) -> None:
    finished = run_score(f"--{HOSTILE}")
    assert finished.status == 2 and finished.out == ""
    assert printable(finished.err.rstrip("\n")) == finished.err.rstrip("\n")


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 404 no\x1b[2J\x08\x9b31m such thing\x0b\x0cFORGED\r\n\r\n")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_hostile_server_cannot_steer_the_terminal(run_main: Score) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/bundle"
        finished = run_main(score.main, "--model", address, "--dry_run")
        server.shutdown()
    assert finished.status == 2
    error = finished.err.rstrip("\n")
    assert printable(error) == error and "\n" not in error and "404" in error


def test_a_fault_in_json_is_ascii(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> int:
        raise InputError(HOSTILE)

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["command", "--log_format", "json"])
    assert run_command(main) == 2
    err = capsys.readouterr().err
    assert err.isascii() and json.loads(err)["message"] == f"error: {HOSTILE}"
