"""What a command says reaches people as text and machines as JSON, and no credential gets out with it."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli.exits import run_command
from pipelines.cli.logs import announce, set_up_logging, wanted_format
from pipelines.cli.redaction import redact, redact_all
from tests.pipelines.conftest import Finished, environment, posts, write_lines
from torchmoji_core.errors import InputError, RunError

Run = Callable[..., Finished]
Score = Callable[..., Finished]

CREDENTIALS = {
    "s3://someone:Hunter2hunter@minio:9000/bucket": ["Hunter2hunter", "someone"],
    "postgres://u:pa/ss@Hunter2@host/x": ["pa/ss", "Hunter2"],
    "https://:Hunter2@proxy:3128": ["Hunter2"],
    "HTTPS://ghp_Hunter2Hunter2@host/repository": ["ghp_Hunter2Hunter2"],
    "key AKIAIOSFODNN7EXAMPLE is not valid": ["IOSFODNN7EXAMPLE"],
    "ASIAIOSFODNN7EXAMPLE": ["IOSFODNN7EXAMPLE"],
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG": ["wJalr", "K7MDENG"],
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG": ["wJalr"],
    "AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI/K7MDENG": ["wJalr"],
    "{'SecretAccessKey': 'wJalrXUtnFEMI/K7MDENG', 'n': 1}": ["wJalr"],
    '{"aws_session_token": "FwoGZXIv+/="}': ["FwoGZXIv"],
    r"{\"token\": \"abc\\\"def\"} ": ["abc", "def"],
    "password='two words'": ["two", "words"],
    'password="cut off': ["cut off"],
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2025&X-Amz-Signature=fe5f80f&a=b": [
        "IOSFODNN7EXAMPLE",
        "fe5f80f",
    ],
    "https://b/k?X-Amz-Security-Token=FwoGZXIv&x": ["FwoGZXIv"],
    "https://storage/k?GoogleAccessId=me&Signature=a%2Bb%3D": ["a%2Bb"],
    "https://account.blob/container?sv=2022&sig=a%2Bb%3D": ["a%2Bb"],
    "https://host/feed?token=Hunter2&x=1": ["Hunter2"],
    "https://host/feed?access_token=Hunter2": ["Hunter2"],
    "Authorization: Bearer Hunter2.abc-def": ["Hunter2", "abc-def"],
    "authorization: Basic dTpw": ["dTpw"],
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/x, SignedHeaders=host, Signature=fe5f80f": [
        "IOSFODNN7EXAMPLE",
        "fe5f80f",
    ],
    "{'Proxy-Authorization': 'Basic dTpw'}": ["dTpw"],
    "[('authorization', 'Bearer Hunter2')]": ["Hunter2"],
    r"b'Authorization: Basic dTpw\r\nHost: x'": ["dTpw"],
    "sent Bearer eyJhbGciOiJIUzI1NiJ9.e30.x": ["eyJhbGciOiJIUzI1NiJ9"],
    "got eyJhbGciOiJIUzI1NiJ9.e30.Hunter2, which has expired": ["eyJhbGciOiJIUzI1NiJ9", "Hunter2"],
    """s3://us"er:Hunt'er2"zwei@host/b""": ["us", "Hunt", "er2", "zwei"],
    '{"address":"s3://me:Hunter2","zwei@host/b"}': ["Hunter2", "zwei"],
    "https://ghp'Hunter2@host": ["Hunter2"],
    "pw=Hunter2": ["Hunter2"],
    "https://host/?pw=Hunter2&x=1": ["Hunter2"],
    "pass: Hunter2": ["Hunter2"],
    "{'pass': 'Hunter2 zwei'}": ["Hunter2", "zwei"],
    "smtp_pass = Hunter2": ["Hunter2"],
    "dbPwd=Hunter2": ["Hunter2"],
    "PGPASSWORD=Hunter2,zwei psql": ["Hunter2", "zwei"],
    "jwt=Hunter2": ["Hunter2"],
    "Server=host;User ID=sa;Password=Hunter2 zwei;Encrypt=yes": ["Hunter2", "zwei"],
    "AccountName=me;AccountKey=Hunter2==;EndpointSuffix=x": ["Hunter2"],
    "Endpoint=sb://host/;SharedAccessKeyName=me;SharedAccessKey=Hunter2=": ["Hunter2"],
    "SharedAccessSignature sr=x&sig=Hunter2%3D&se=1": ["Hunter2"],
    "sv=2022&sig=Hunter2": ["Hunter2"],
    "command --password Hunter2 --verbose": ["Hunter2"],
    "command --s3_secret_access_key 'Hunter2 zwei'": ["Hunter2", "zwei"],
    "['command', '--db-pw', 'Hunter2 zwei']": ["Hunter2", "zwei"],
    "next=x%3Fpassword%3DHunter2": ["Hunter2"],
    "%7B%22password%22%3A%22Hunter2%22%7D": ["Hunter2"],
    "endpoint=https%3A%2F%2Fme%3AHunter2%40host%2F": ["Hunter2"],
    "-----BEGIN PRIVATE KEY-----\nHunter2+/=\nzwei-\n-----END PRIVATE KEY-----": ["Hunter2", "zwei"],
    'private_key: "-----BEGIN RSA PRIVATE KEY-----\\nHunter2\\nzwei': ["Hunter2", "zwei"],
    "private_key: -----BEGIN EC PRIVATE KEY-----\nHunter2\nzwei": ["Hunter2", "zwei"],
    "Cookie: session=Hunter2; other=zwei": ["Hunter2", "zwei"],
    "X-Vault-Token: Hunter2": ["Hunter2"],
    "password=)Hunter2&zwei, and more": ["Hunter2", "zwei"],
    "'password' => 'Hunter2', password := Hunter2zwei, pw == Hunter2": ["Hunter2", "zwei"],
    "{'pw': b'Hunter2 zwei'}": ["Hunter2", "zwei"],
    "<db:password>Hunter2 zwei</db:password>": ["Hunter2", "zwei"],
    "machine host login me password Hunter2": ["Hunter2"],
    "curl --user me:Hunter2 https://host": ["Hunter2"],
    "token: Hunter2abcdefghijk": ["Hunter2"],
    "Ocp-Apim-Subscription-Key: Hunter2": ["Hunter2"],
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    set_up_logging("text")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command with a given main."""

    def run(main: Callable[[list[str]], int], *arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        status = run_command(main)
        return Finished(status, *capsys.readouterr())

    return run


def entries(text: str) -> list[dict[str, Any]]:
    """Every line, parsed strictly."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("text", CREDENTIALS)
def test_no_credential_gets_out(run: Run, text: str, log_format: str) -> None:
    def main(arguments: list[str]) -> int:
        logging.getLogger("somewhere").warning("a record with %s", text)
        try:
            raise OSError(text)
        except OSError:
            logging.getLogger("somewhere").exception("an exception")
        announce("plan", f"plan with {text}", where=text, several=[{text: text}])
        raise RuntimeError(text)

    def user_error(arguments: list[str]) -> int:
        raise InputError(f"input {text}: cannot be read")

    def failure(arguments: list[str]) -> int:
        raise RunError(text)

    for command, status in ((main, 1), (user_error, 2), (failure, 1)):
        finished = run(command, "--log_format", log_format)
        assert finished.status == status
        assert "***" in finished.out + finished.err
        for secret in CREDENTIALS[text]:
            assert secret not in finished.out + finished.err


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key@2x.png",
        "http://localhost:9000/bucket/a@b?x=1",
        "http://[::1]:9000/a@b",
        "abfs://container@account.dfs.core.windows.net/path",
        "mailto someone@example.org: no",
        "tokens      1,234, 3.1% unknown; max_batch_tokens=8192, n_tokens: 5",
        "unexpected token: ] at 5",
        "the bundle's signature: does not match the SHA-256",
        "fingerprint 0123456789abcdef0123456789abcdef",
        "--keep_fields key=value",
        "basic English and bearer of news",
        "a pass over the data; the first passed: 3, passes=2, a passenger=1",
        "bypass=yes compass: north surpass=1 orig=5 config=3 assignment: none",
        "argument --s3_secret_access_key: expected one argument; --password must be given, --token is unknown",
        "secret: none; signature: does not match; the token: 17, <b>password</b> and a login page",
        '{"endpoint":"http://host:9000","mail":"a@b"}',
        "<http://host:9000>, <a@b>",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_what_is_around_a_credential_stays() -> None:
    text = "output s3://me:Hunter2@minio:9000/bucket: cannot be written (403); check path"
    assert redact(text) == "output s3://***@minio:9000/bucket: cannot be written (403); check path"
    assert redact("k?X-Amz-Signature=abc&partNumber=3") == "k?X-Amz-Signature=***&partNumber=3"
    assert redact("AccountKey=abc==;Suffix=x") == "AccountKey=***;Suffix=x"
    assert redact("token=&next=1, password= ") == "token=&next=1, password= "


@pytest.mark.parametrize("text", CREDENTIALS)
def test_redacting_again_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


PROSE = (
    "a the is was of over 3 pass passed passing pw password passwords token tokens secret key keys jwt sig signature "
    'bearer basic authorization bypass compass private account cookie user\'s "quoted" https://host:80/x'
)
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=["Z", "C"]), min_size=8)


@pytest.mark.parametrize(
    "written",
    [
        lambda secret: f"s3://me:k{secret}@host/bucket",
        lambda secret: f"https://{urllib.parse.quote(secret, safe='')}@host",
        lambda secret: json.dumps({"a": 1, "password": secret, "b": 2}),
        lambda secret: repr({"pw": secret}),
        lambda secret: f"mysql --pass {shlex.quote(f'k{secret}')} --verbose",
        lambda secret: repr(["mysql", "--password", f"k{secret}"]),
        lambda secret: repr(["mysql", f"--password=k{secret.replace('=', '.')}"]),
        lambda secret: f"jwt={urllib.parse.quote(secret, safe='')}&x=1",
        lambda secret: urllib.parse.quote(json.dumps({"client_secret": secret})),
        lambda secret: f"Server=x;Pwd={secret.replace(';', '.')};Encrypt=yes",
    ],
)
@settings(max_examples=60, deadline=None)
@given(secret=SECRETS)
def test_no_part_of_a_secret_stays(written: Callable[[str], str], secret: str) -> None:
    text = written(secret)
    around = written("\N{SNOWMAN}" * 8)
    shown = redact(text)
    assert redact(shown) == shown
    parts = {secret[i : i + 4] for i in range(len(secret) - 3)}
    assert not [part for part in parts if part in shown and part not in around and "***" not in part]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(PROSE.split(" ")),
    ),
    st.sampled_from([" ", ", ", "; ", ". ", "\n", " - "]),
)
def test_prose_stays(words: list[str], between: str) -> None:
    text = between.join(words)
    assert redact(text) == text


def test_the_name_of_a_field_makes_it_a_secret() -> None:
    fields = {"password": "Hunter2", "aws_session_token": "Hunter2", "n_tokens": "3", "options": [{"pw": "Hunter2"}]}
    assert redact_all(fields) == {
        "password": "***", "aws_session_token": "***", "n_tokens": "3", "options": [{"pw": "***"}],
    }  # fmt: skip


UNITS = (
    "://a:|token=|token='|authorization:|secret_|a| |\\\"|AKIA|-----BEGIN PRIVATE KEY-----|--a-|pass=|;pwd=|%22"
    "|%3A%2F%2F|password%3D|eyJaaaaaaaa.|x-a-|token=a,|http://a|<pw>|-u a:|login a |token:a"
)


@pytest.mark.parametrize("unit", UNITS.split("|"))
def test_a_hostile_text_does_not_hang_it(unit: str) -> None:
    started = time.thread_time()
    redact(unit * (300_000 // len(unit)))
    assert time.thread_time() - started < 20  # a guard against quadratic time, which would be many minutes


def test_json_is_one_object_a_line_whatever_is_in_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own cannot pass a lone surrogate on
    hostile = 'line\nbreak\r\u2028 "quoted" \x1b[31m \x00 \ud800 {"level": "INFO"}'

    def main(arguments: list[str]) -> int:
        logging.getLogger("some.where").warning(hostile)
        announce("plan", hostile, files=3, path=Path("a/b"), message="mine", level_of="a")
        warnings.warn(hostile, stacklevel=1)
        try:
            raise ValueError(hostile)
        except ValueError:
            logging.getLogger("some.where").exception("went wrong")
        return 0

    finished = run(main, "--log_format=json")
    assert finished.status == 0 and finished.out == "" and finished.err.isascii()
    record, plan, warning, exception = entries(finished.err)
    assert (record["level"], record["logger"], record["message"]) == ("WARNING", "some.where", hostile)
    assert (plan["event"], plan["message"], plan["files"], plan["path"]) == ("plan", hostile, 3, "a/b")
    assert warning["logger"] == "py.warnings"
    assert exception["message"] == "went wrong" and hostile in exception["exception"]
    assert exception["exception"].startswith("Traceback")
    for entry in (record, plan, warning, exception):
        assert entry["time"].endswith("Z") and len(entry["time"]) == len("2025-01-01T00:00:00.000Z")
        assert datetime.fromisoformat(entry["time"]).utcoffset() is not None


def test_as_text_it_is_what_it_was(run: Run) -> None:
    def main(arguments: list[str]) -> int:
        logging.getLogger("some.where").warning("mind %s", "this")
        logging.getLogger("some.where").info("not this")
        logging.getLogger("apache_beam.runners.portability").error("nor Beam's noise")
        announce("plan", ["two", "lines"], files=3)
        raise InputError("no file matches")

    finished = run(main)
    assert finished == (2, "two\nlines\n", "WARNING some.where: mind this\nerror: no file matches\n")


def test_a_traceback_that_is_text_already_is_said_too(run: Run) -> None:
    """As those of a worker's records are, in which nothing may be that is not redacted."""
    text = "Traceback (most recent call last):\nOSError: password=Hunter2"

    def main(arguments: list[str]) -> int:
        values = {"name": "some.where", "levelname": "ERROR", "levelno": logging.ERROR, "msg": "oh", "exc_text": text}
        logging.getLogger().handle(logging.makeLogRecord(values))
        return 0

    said = "ERROR some.where: oh\n  | Traceback (most recent call last):\n  | OSError: password=***\n"
    assert run(main) == (0, "", said)
    (entry,) = entries(run(main, "--log_format=json").err)
    assert entry["exception"].endswith("\nOSError: password=***")


def test_a_fault_of_the_program_is_status_1_with_a_traceback(run: Run) -> None:
    def main(arguments: list[str]) -> int:
        raise ZeroDivisionError("oh")

    finished = run(main)
    assert (
        finished.status == 1 and finished.err.startswith("failed: a fault") and "ZeroDivisionError: oh" in finished.err
    )
    (entry,) = entries(run(main, "--log_format", "json").err)
    assert entry["event"] == "failed" and entry["exception"].endswith("ZeroDivisionError: oh")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "text"),
        ("--input a b --log_format json --threads 2", "json"),
        ("--log_format=json", "json"),
        ("--log_format json --log_format text", "text"),
        ("--log_format", "text"),
        ("--log_form json", "text"),
    ],
)
def test_the_format_is_known_before_the_rest_is_parsed(arguments: str, expected: str) -> None:
    assert wanted_format(arguments.split()) == expected


def test_score_speaks_json(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(20))
    finished = run_score("--input", "in.jsonl", "--output", "out", "--log_format", "json")
    assert finished.status == 0 and finished.out == ""
    plan, summary = entries(finished.err)
    assert plan["event"] == "plan" and plan["input_files"] == 1
    assert summary["event"] == "summary" and summary["read"] == summary["scored"] + summary["empty"] == 20
    assert summary["run_id"] == plan["run_id"] and summary["message"].startswith("read        20 from 1")


def test_score_says_what_is_wrong_in_json(run_score: Score, tmp_path: Path) -> None:
    for arguments in (("--top_k", "many"), ("--input", "nothing.jsonl")):
        (entry,) = entries(run_score(*arguments, "--log_format", "json").err)
        assert entry["event"] == "error" and entry["level"] == "ERROR" and entry["message"].startswith("error: ")
    assert "--log_format: invalid choice: 'xml'" in run_score("--log_format", "xml").err


def test_too_many_dead_letters_are_said_in_json(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [*posts(3), "not json", "nor this"])
    finished = run_score("--input", "in.jsonl", "--output", "out", "--log_format", "json")
    assert finished.status == 3
    assert [entry["event"] for entry in entries(finished.err)] == ["plan", "summary", "too_many_dead_letters"]


def test_a_terminated_run_says_so_and_cleans_up(model: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(200_000))
    (tmp_path / "scratch").mkdir()
    # One row a batch: the more often the threads write their progress, the likelier they do while it is removed.
    options = ["--output", "out", "--report", "report.json", "--log_format", "json", "--max_batch_rows", "1"]
    command = [sys.executable, "-m", "pipelines.score", "--model", model, "--input", "in.jsonl", *options]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment() | {"TMPDIR": str(tmp_path / "scratch")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    events = (json.loads(line).get("event") for line in iter(process.stderr.readline, ""))
    guard = threading.Timer(150, process.kill)
    guard.start()
    try:
        assert "plan" in events  # after what libraries may warn of
        while not list(tmp_path.glob("scratch/*/progress-*/*")):  # until its threads are at work
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        last = next((event for event in events if event in ("interrupted", "failed", "summary")), "nothing")
        assert process.wait() == 130
    finally:
        guard.cancel()
        process.kill()
    assert last == "interrupted"
    assert not list(tmp_path.glob("out/**/*.parquet"))
    assert json.loads((tmp_path / "report.json").read_text())["exit_status"] == 130
