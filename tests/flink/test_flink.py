"""The job of examples/flink on a cluster of Flink, from a broker of Kafka; both are processes, and are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.data_set.snapshot import live_files
from tests.flink.cluster import JOB, PYTHON, ROOT, FlinkCluster, wait, without_checkout
from tests.kafka import JARS, Broker, RealBroker
from tests.pipelines.conftest import environment
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.flink
KILLS, PARTITIONS = 10, 3
MISSING = [str(each) for each in (PYTHON, JARS) if not each.exists()] + ["java"] * (shutil.which("java") is None)
if MISSING:
    pytest.skip(f"no {', no '.join(MISSING)}: make test-flink", allow_module_level=True)

BROKEN = {
    "no JSON": b"so happy",
    "cut off": b'{"id": "1", "text": "so ha',
    "an array": b'["so happy"]',
    "a string": b'"so happy"',
    "no text": b'{"id": "1"}',
    "null": b'{"id": "1", "text": null}',
    "a number": b'{"id": "1", "text": 12}',
    "an object": b'{"id": "1", "text": {"full": "so happy"}}',
    "no UTF-8": b'{"id": "1", "text": "so h\xe4ppy"}',
    "an id that is none": b'{"id": 1.5, "text": "so happy"}',
    "nested": b"[" * 100_000,
    "a number too long": b'{"id": ' + b"1" * 5_000 + b', "text": "so happy"}',
    "two in one": b'{"id": "1", "text": "so"}{"id": "2", "text": "happy"}',
    "of a schema registry": b"\0\0\0\0\1so happy",
    "blank": b" \n",
    "empty": b"",
    "a tombstone": None,
}
GOOD: dict[str, Any] = {
    "words": "so happy today, what a DAY",
    "emojis": "so happy 😊 #blessed @you http://example.com",
    "empty": "",
    "blank": " \t",
    "long": "so happy " * 100_000,
    "half a pair": "so \ud83d happy",
    "NUL": "so\0happy",
    "quotes": 'it\'s "fine"; DROP TABLE scores',
    "again": "so happy today, what a DAY",
}
"""Texts, among them such as other systems stumble over."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    broker = RealBroker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    cluster = FlinkCluster(tmp_path_factory.mktemp("flink"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_bundle(["so", "happy", "late"], seed=7).save(path)
    return str(path)


def committed(output: Path, table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of the files that count: names with a dot in front are of files that are being written, or were."""
    files = [path for path in (output / table).glob("*") if not path.name.startswith(".")]
    return [row for path in files for row in pq.read_table(path, columns=columns).to_pylist()]


def ids(output: Path) -> list[str]:
    return [row["id"] for row in committed(output, "scores", ["id"])]


def test_every_id_once_whoever_is_killed_and_when_it_is_cancelled_or_stopped_and_gone_on_with(
    cluster: FlinkCluster, broker: RealBroker, tiny_model: str, tmp_path: Path
) -> None:
    broker.create("posts", PARTITIONS)
    output, dice, sender, sent = tmp_path / "out", random.Random(5), Broker(broker.address), Counter[int]()
    slow = Path(__file__).with_name("slow_job.py")

    def send(count: int) -> None:
        for partition in range(PARTITIONS):
            # So long that Flink's own buffers do not take them all.
            sender.posts("posts", count, partition, first=sent[partition], about="x" * 500)
            sent[partition] += count

    def start(*options: str) -> str:
        topic = f"kafka://{broker.address}/posts"
        arguments = ("--input", topic, "--output", str(output), "--model", tiny_model, "--commit_every", "1")
        return cluster.submit(*arguments, job=slow, options=("--pyFiles", f"{JOB}", *options))

    def next_checkpoint(job: str) -> None:
        before = cluster.checkpoints(job)
        wait(lambda: cluster.checkpoints(job) > before)

    def seen(count: int) -> None:
        wait(lambda: len(ids(output)) >= count)
        assert len(ids(output)) == count, "doubled"

    send(2_000)
    job, killed = start(), Counter[str]()
    for number in range(KILLS):
        next_checkpoint(job)
        send(500)
        restored = cluster.checkpoints(job, "restored")
        time.sleep(dice.uniform(0, 3))
        if number % 3 == 2:
            cluster.kill_task_manager()
            cluster.start_task_manager()
            killed["task managers"] += 1
        else:
            os.kill(dice.choice(cluster.workers()), signal.SIGKILL)
            killed["workers"] += 1
        send(1)  # a worker is missed when it is needed
        wait(lambda restored=restored: cluster.checkpoints(job, "restored") > restored)
    for leave in (cluster.cancel, cluster.suspend, cluster.suspend):
        next_checkpoint(job)
        send(2_000)
        place = leave(job)
        assert len(ids(output)) < sum(sent.values()), "stopped at its end, not under way"
        send(500)
        job = start("--fromSavepoint", place)
    expected = sorted(f"{partition}-{number}" for partition, count in sent.items() for number in range(count))
    seen(len(expected))
    assert sorted(ids(output)) == expected, "lost"
    cluster.cancel(job)
    print(f"{len(expected):,} messages, {dict(killed)} killed, cancelled once, stopped twice")


def test_lines_of_files_are_there_once_when_the_job_has_ended_whoever_is_killed(
    cluster: FlinkCluster, tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    expected = [f"{file}-{number}" for file in range(2) for number in range(2_000 + 2_000 * file)]
    for file in range(2):
        lines = [json.dumps({"id": each, "text": "so happy"}) for each in expected if each.startswith(f"{file}-")]
        (tmp_path / "in" / f"{file}.jsonl").write_text("\n".join(lines))
    output, slow = tmp_path / "out", Path(__file__).with_name("slow_job.py")
    arguments = ("--input", str(tmp_path / "in"), "--output", str(output), "--model", tiny_model)
    job = cluster.submit(*arguments, job=slow, options=("--pyFiles", f"{JOB}"))
    wait(lambda: len(cluster.workers()) > 0)
    time.sleep(3)
    os.kill(cluster.workers()[0], signal.SIGKILL)
    time.sleep(3)
    cluster.kill_task_manager()
    cluster.start_task_manager()
    assert not ids(output), "files are in place before the end"
    wait(lambda: cluster.state(job) in ("FINISHED", "FAILED"))
    assert cluster.state(job) == "FINISHED"
    assert sorted(ids(output)) == sorted(expected)


def test_broken_messages_are_dead_letters_and_scores_are_the_pipelines(
    cluster: FlinkCluster, broker: RealBroker, tmp_path: Path
) -> None:
    broker.create("mixed", 1)
    sender, output = Broker(broker.address), tmp_path / "out"
    lines = [json.dumps({"id": id_, "text": text}).encode() for id_, text in GOOD.items()]
    sender.send("mixed", [*lines[:4], *BROKEN.values(), *lines[4:]])
    topic = f"kafka://{broker.address}/mixed"
    job = cluster.submit("--input", topic, "--output", str(output), "--commit_every", "1")
    wait(lambda: len(committed(output, "scores")) >= len(GOOD))
    wait(lambda: len(committed(output, "dead_letters")) >= len(BROKEN))
    dead = committed(output, "dead_letters")
    assert Counter(row["message"] for row in dead) == Counter(BROKEN.values())
    for row in dead:
        print(row["reason"])
    assert (cluster.state(job), cluster.checkpoints(job, "restored")) == ("RUNNING", 0)

    sender.send("mixed", [b'{"id": 7, "text": "still there", "text": "still here"}'])
    wait(lambda: "7" in ids(output))
    cluster.cancel(job)

    (tmp_path / "posts.jsonl").write_bytes(b"\n".join(lines))
    command = ["-m", "pipelines.score", "--input", "posts.jsonl", "--output", "scored", "--layout", "plain"]
    subprocess.run([ROOT / ".venv" / "bin" / "python", *command], cwd=tmp_path, env=environment(), check=True)
    rows = [row for path in live_files(str(tmp_path / "scored")) for row in pq.read_table(path).to_pylist()]
    expected = {row["id"]: row for row in rows}
    found = {row["id"]: row for row in committed(output, "scores") if row["id"] != "7"}
    assert found.keys() == expected.keys() == GOOD.keys()
    for id_, row in found.items():
        other = expected[id_]
        top = other.pop("top_emojis")
        for part in ("emoji", "probability"):
            assert row.pop(f"top_emojis_{part}") == (None if top is None else [item[part] for item in top])
        assert row == {name: other[name] for name in row}, id_


def run_job(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own, as on a desk."""
    return subprocess.run(
        [PYTHON, JOB, *arguments], cwd=directory, env=without_checkout(), capture_output=True, text=True, check=False
    )


def test_files_are_scored_on_this_machine(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for file in range(2):
        lines = [json.dumps({"id": f"{file}-{number}", "text": "so happy"}) for number in range(2_500)]
        (tmp_path / "in" / f"{file}.jsonl").write_text("\n".join([*lines, "so happy"]))
    finished = run_job(tmp_path, "--input", "in", "--output", "out", "--model", tiny_model)
    assert finished.returncode == 0, finished.stderr
    assert sorted(ids(tmp_path / "out")) == sorted(f"{file}-{number}" for file in range(2) for number in range(2_500))
    assert [row["message"] for row in committed(tmp_path / "out", "dead_letters")] == [b"so happy"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "nowhere"), "argument --input: nowhere: there is no such file or directory"),
        (("--input", "kafka://host:9092"), "a topic is written kafka://HOST:PORT/TOPIC"),
        (("--input", ".", "--commit_every", "1.5"), "1.5 is no whole number of seconds above 0"),
        (("--input", ".", "--model", "nowhere"), "no such directory or file; give a bundle"),
    ],
    ids=["input", "topic", "commit_every", "model"],
)
def test_a_wrong_option_is_told_in_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    finished = run_job(tmp_path, *arguments, "--output", "out")
    assert finished.returncode == 2
    assert said in finished.stderr.splitlines()[-1]


def test_the_distribution_holds_the_whole_package() -> None:
    """`torchmoji-core`, as it is installed beside PyFlink."""
    program = "from importlib.metadata import files; print(*files('torchmoji-core'), sep='\\n')"
    installed = subprocess.run(
        [PYTHON, "-c", program], env=without_checkout(), capture_output=True, text=True, check=True
    )
    listed = subprocess.run(["git", "ls-files", "torchmoji_core"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name for name in installed.stdout.splitlines() if name.startswith("torchmoji_core/")}
    assert {name for name in found if not name.endswith(".pyc")} | {"torchmoji_core/pyproject.toml"} == {
        *listed.stdout.splitlines()
    }
