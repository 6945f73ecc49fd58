"""Options for endless input: what is wrong is said in one line before any work, with exit status 2 and the remedy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from pipelines.cli.streaming_options import StreamOptions
from tests.pipelines.conftest import Finished, posts, write_lines
from tests.pipelines.test_bad_input import assert_refused, assert_unparsable
from torchmoji_core.errors import InputError

Score = Callable[..., Finished]
PUBSUB = "--streaming --input pubsub://projects/my-project/subscriptions/posts"
KAFKA = "--streaming --input kafka://broker:9092/posts"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (f"{PUBSUB} --window 0", "--window must be more than 0"),
        (f"{PUBSUB} --window -5m", "--window"),
        (f"{PUBSUB} --window 5min", "--window: must be a time like 500ms, 30s, 10m, 2h or 1d, not '5min'"),
        (f"{PUBSUB} --max_latency 0ms", "--max_latency must be more than 0"),
        (f"{PUBSUB} --allowed_lateness late", "--allowed_lateness: must be a time"),
        (f"{PUBSUB} --runner FlinkRunner --shards 0", "--shards must be at least 1"),
        (f"{PUBSUB} --shards 2", "--shards belongs to clusters"),
        (f"{PUBSUB} --shards many", "--shards: invalid int value"),
        (f"{PUBSUB} --commit_every 0", "--commit_every must be more than 0"),
        (f"{PUBSUB} --max_in_flight 0", "--max_in_flight must be at least 1"),
        (f"{PUBSUB} --drain soon", "--drain: must be a time"),
        (f"{PUBSUB} --model_poll 5s", "--model_poll belongs to --model_watch"),
        (f"{PUBSUB} --format csv", "--format of messages must be jsonl or text"),
        (f"{PUBSUB} --keep_fields lang", "--keep_fields lang: no data tells the type yet; give it, lang:string"),
        (f"{PUBSUB} --keep_fields source:as=app", "give it, source:string:as=app"),
        (f"{PUBSUB} --format text --timestamp_field at", "text messages have no fields"),
        (f"{PUBSUB} --if_exists replace", "--if_exists cannot be used with --streaming"),
        (f"{PUBSUB} --no_wait", "--no_wait cannot be used with --streaming"),
        (f"{PUBSUB} --direct_num_workers 2", "--direct_num_workers cannot be used with --streaming"),
        (f"{PUBSUB} --consumer_option group.id=x", "--consumer_option belongs to kafka://"),
        (f"{PUBSUB} --producer_option acks=all", "--producer_option belongs to kafka://"),
        (f"{PUBSUB} --publish gs://bucket/x", "--publish gs://bucket/x: no address of messages"),
        (f"{PUBSUB} --publish pubsub://projects/my-project/subscriptions/x", "topics/TOPIC"),
        (f"{PUBSUB} pubsub://projects/my-project/subscriptions/b", "--streaming reads one"),
        ("--streaming --input pubsub://my-project/posts", "it must be pubsub://projects/PROJECT/subscriptions"),
        ("--streaming --input kafka://broker/posts", "it must be kafka://HOST:PORT"),
        ("--streaming --input in.jsonl", "leave out --streaming to score files"),
        ("--streaming", "--streaming reads one pubsub:// or kafka:// address, not --input (none given)"),
        (PUBSUB.removeprefix("--streaming "), "has no end; add --streaming"),
        ("--input in.jsonl --window 5m", "--window belongs to endless input; add --streaming, or leave it out"),
        ("--input in.jsonl --max_latency 1s", "--max_latency belongs to endless input"),
        (f"{KAFKA} --consumer_config no.properties", "--consumer_config no.properties: cannot be read"),
        (f"{KAFKA} --consumer_config a --runner FlinkRunner", f"--consumer_config {Path.cwd()}/a: cannot be read"),
        (
            f"{KAFKA} --runner FlinkRunner --consumer_option sasl.password=x",
            "--consumer_option sasl.password would be stored with the job, where others can read it",
        ),
        (f"{KAFKA} --runner FlinkRunner --shards 2", "--shards belongs to pubsub://"),
        (f"{PUBSUB} --consumer_config a", "--consumer_config belongs to kafka://"),
        (f"{KAFKA} --runner FlinkRunner --consumer_option group.id", "--consumer_option: must be NAME=VALUE"),
        (f"{PUBSUB} --producer_config a", "--producer_config belongs to kafka://"),
        (f"{KAFKA} --publish {KAFKA.split()[-1]}", "is what --input reads: rows would come back as messages"),
    ],
)
def test_wrong_options(arguments: str, expected: str) -> None:
    assert_unparsable(arguments, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (f"{PUBSUB} --runner NoRunner", "NoRunner"),
        (f"{PUBSUB} --no_such_option 5", "--no_such_option"),
    ],
)
def test_options_that_beam_refuses(run_score: Score, tmp_path: Path, arguments: str, expected: str) -> None:
    assert_refused(run_score(*arguments.split(), "--output", "out"), expected, tmp_path)
    assert not (tmp_path / "out").exists()


def test_pubsub_without_its_extra(run_score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.pubsub", None)
    finished = run_score(*PUBSUB.split(), "--output", "out")
    assert_refused(finished, "pip install 'torchmoji-beam[pubsub]'", tmp_path)


def test_kafka_without_its_extra(run_score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finished = run_score(*KAFKA.split(), "--output", "out")
    assert_refused(finished, "pip install 'torchmoji-beam[kafka]'", tmp_path)


def test_a_pipe_with_settings_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings")
    with pytest.raises(InputError, match=r"--consumer_config .*settings: cannot be read"):
        parse([*KAFKA.split(), "--consumer_config", str(tmp_path / "settings")])


def test_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "consumer.properties"
    path.write_text("# ours\n\n group.id = a \nsasl.password=x=y\n")
    config, _ = parse([*KAFKA.split(), "--consumer_config", str(path), "--consumer_option", "group.id=b"])
    assert config.stream is not None
    assert config.stream.consumer_settings() == {"group.id": "b", "sasl.password": "x=y"}
    assert "x=y" not in repr(config)
    path.write_text("group.id=a\nsasl.password\n")
    with pytest.raises(InputError, match=r"line 2 is not NAME=VALUE"):
        parse([*KAFKA.split(), "--consumer_config", str(path)])


def test_results_of_another_command_are_not_added_to(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0
    finished = run_score(*PUBSUB.split(), "--output", "out")
    assert finished.status == 2 and "out holds results of another command" in finished.err


def test_a_dry_run_reads_nothing(run_score: Score, tmp_path: Path) -> None:
    finished = run_score(*PUBSUB.split(), "--dry_run", "--window", "90s", "--output", "out")
    assert finished.status == 0 and "windows     of 90 s" in finished.out and "dry run" in finished.out
    assert not (tmp_path / "out").exists()


def test_values() -> None:
    config, rest = parse([*PUBSUB.split(), "--window", "5m", "--max_latency", "250ms", "--project", "p"])
    stream = config.stream
    assert isinstance(stream, StreamOptions) and rest == ["--project", "p"]
    assert (stream.window, stream.max_latency, stream.allowed_lateness) == (300, 0.25, None)
    assert config.score.timestamp, "a row's window is told by its time"


def test_options_of_kafka_are_passed_through() -> None:
    options = ["--consumer_option", "group.id=a", "--consumer_option", "client.rack=x=y z"]
    config, _ = parse([*KAFKA.split(), "--runner", "FlinkRunner", *options])
    assert config.stream is not None
    assert config.stream.shards == 4
    assert config.stream.consumer_options == (("group.id", "a"), ("client.rack", "x=y z"))


def test_files_that_workers_open_are_named_for_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("of_kafka").write_text("group.id=a")
    files = ["--consumer_config", "of_kafka", "--model_watch", "models/*", "--model", "deepmoji"]
    config, _ = parse([*KAFKA.split(), "--runner", "FlinkRunner", *files])
    assert config.stream is not None
    assert config.stream.consumer_config == str(tmp_path / "of_kafka")
    assert config.stream.model_watch == str(tmp_path / "models" / "*")
    assert config.score.model == "deepmoji"  # a name
    Path("deepmoji").mkdir()
    assert parse(["--runner", "FlinkRunner", "--model", "deepmoji"])[0].score.model == str(tmp_path / "deepmoji")


def test_help_has_a_group_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    streaming = text[text.index("\nstreaming:") :]
    assert all(name in streaming for name in ("--window", "--drain", "--consumer_option"))
    assert "--precision" not in streaming


def test_a_batch_run_needs_no_option_of_streams(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    with pytest.raises(InputError, match="add --streaming"):
        parse(["--input", "in.jsonl", "--shards", "2"])
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0
