"""Several runs have read the same messages: each is taken in once, whichever records there are, and who looks first."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli.options import parse
from pipelines.data_set import adoption, pending
from pipelines.data_set.coverage import Intervals
from pipelines.data_set.recovery import commit_pending, covered
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.accounting import describe_stream
from pipelines.runs.plan import Plan, check_model
from pipelines.streams.stages import Stages
from tests.pipelines.conftest import WORDS, Finished
from tests.streams import live_ids
from tests.tiny import tiny_bundle
from torchmoji_core.errors import InputError
from transforms.input.messages import kafka_message

Run = Callable[..., Finished]
TOPIC = "kafka:cluster:posts"


class Job:
    """A run that has read some messages: one in four is broken, and one in five is a page of two posts and a 5."""

    def __init__(self, output: Path, model: str) -> None:
        address = ["--streaming", "--input", "kafka://b:1/posts", "--output", str(output), "--model", model]
        config, _ = parse(address)
        plan = Plan(config, (), check_model(config)).with_new_run(())
        assert config.stream is not None
        self.output, self.run_id = output, plan.run_id
        pending.begin(str(output), describe_stream(plan))
        self._stages = Stages(plan.config, config.stream)

    def write(self, *intervals: tuple[int, int], partition: int = 0) -> Path:
        """Write what comes of some offsets. Returns the record."""
        before = self.records
        offsets = [offset for first, last in intervals for offset in range(first, last + 1)]
        messages = [
            kafka_message("posts", partition, offset, 1_790_000_000_000, None, _content(partition, offset), [])
            for offset in offsets
        ]
        prepared = [item for message in messages for item in self._stages.prepare(message)]
        covers = {TOPIC: {str(partition): [list(interval) for interval in intervals]}}
        self._stages.write(self._stages.score(prepared), covers)
        (new,) = self.records - before
        return new

    @property
    def records(self) -> set[Path]:
        paths = (self.output / "_journal" / self.run_id).glob("*.json")
        return {path for path in paths if path.name != pending.RUN}


def _content(partition: int, offset: int) -> bytes:
    posts = [
        {"id": f"{partition}-{offset}-{number}", "text": "so happy", "edit_history_tweet_ids": []}
        for number in range(1 + (offset % 5 == 0))
    ]
    content = json.dumps({"data": [*posts, 5], "meta": {}} if len(posts) > 1 else posts[0]).encode()
    return content[:-1] if offset % 4 == 3 else content


def contents(output: Path) -> tuple[list[str], list[str]]:
    """Ids of rows, and positions of dead letters, that are results."""
    letters = [output / path for path in DataSet.read(str(output)).live.dead_letters]
    positions = [json.loads(line)["position"] for path in letters for line in path.read_text().splitlines()]
    return live_ids(output), sorted(positions)


def expected(last: int, partition: int = 0) -> tuple[list[str], list[str]]:
    """What `contents` are of all offsets up to one."""
    good = [offset for offset in range(last + 1) if offset % 4 != 3]
    ids = [f"{partition}-{offset}-{number}" for offset in good for number in range(1 + (offset % 5 == 0))]
    letters = {f"{partition}:{offset}{'' if offset % 4 == 3 else '.2'}": offset for offset in range(last + 1)}
    return sorted(ids), sorted(name for name, offset in letters.items() if offset % 4 == 3 or offset % 5 == 0)


def commit(output: Path) -> None:
    commit_pending(DataSet.read(str(output)))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_what_was_read_again_is_dropped(output: Path, model: str, run_verify: Run) -> None:
    """Wholly, in part, and around what is there already; also if all records wait together."""
    one, other = Job(output, model), Job(output, model)
    one.write((0, 9))
    commit(output)
    other.write((0, 9))
    other.write((5, 14))
    one.write((15, 19), (30, 39))
    commit(output)
    other.write((12, 44))
    assert run_verify().status == 0, "ids that are there twice until then are no mistake"
    commit(output)
    assert contents(output) == expected(44)
    assert covered(DataSet.read(str(output))) == {TOPIC: {"0": [[0, 44]]}}
    assert not one.records | other.records
    assert run_verify().status == 0
    named = list(output.rglob("part-*"))
    assert len(named) == len(DataSet.read(str(output)).live.all_files), "no file is left that nobody lists"


def test_other_partitions_and_topics_are_no_matter(output: Path, model: str) -> None:
    job = Job(output, model)
    job.write((0, 3))
    job.write((0, 3), partition=1)
    record = job.write((0, 3), partition=2)
    record.write_text(record.read_text().replace(TOPIC, "kafka:cluster:others"))
    commit(output)
    assert len(live_ids(output)) == 3 * 4, "three good ones of four, and one more of the page"


def test_a_topic_with_and_without_its_id_is_one(output: Path, model: str, run_verify: Run) -> None:
    """Brokers may tell it one job and not the other; whichever comes first, and whether both wait or not."""
    one, other = Job(output, model), Job(output, model)
    for job, first, name in ((one, 0, TOPIC), (other, 5, f"{TOPIC}:id"), (one, 10, TOPIC), (other, 10, f"{TOPIC}:id")):
        record = job.write((first, first + 9))
        record.write_text(record.read_text().replace(f'"{TOPIC}"', f'"{name}"'))
        if first == 5:
            commit(output)
    commit(output)
    assert contents(output) == expected(19) and not one.records | other.records
    assert run_verify().status == 0


@pytest.mark.parametrize("seed", range(2))
def test_any_jobs_in_any_order(output: Path, model: str, seed: int) -> None:
    dice = random.Random(seed)
    jobs = [Job(output, model) for _ in range(3)]
    last = 0
    for _ in range(12):
        first, length = dice.randrange(last + 1), dice.randrange(1, 12)
        intervals = [(first, first + length)]
        if dice.random() < 0.3:
            intervals.append((first + length + 3, first + length + 6))
        dice.choice(jobs).write(*intervals)
        last = max(last, intervals[0][1])
        if dice.random() < 0.4:
            commit(output)
    jobs[0].write((0, last + 9))
    commit(output)
    assert contents(output) == expected(last + 9)


def test_several_commands_at_once(output: Path, model: str) -> None:
    jobs = [Job(output, model) for _ in range(4)]
    for number, job in enumerate(jobs):
        for first in range(0, 40, 10):
            job.write((first + number, first + number + 9))
    jobs[0].write((40, 42))
    commands = [threading.Thread(target=commit, args=(output,)) for _ in range(4)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    commit(output)
    assert contents(output) == expected(42)


class DiedError(Exception):
    """The process ends here."""


def test_who_dies_on_the_way_has_doubled_nothing(output: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the rest of a record is listed, and before the record is deleted."""

    def die(record: pending.Record, data_set: DataSet) -> None:
        raise DiedError

    one, other = Job(output, model), Job(output, model)
    one.write((0, 9))
    other.write((5, 14))
    with monkeypatch.context() as patched, pytest.raises(DiedError):
        patched.setattr(adoption, "drop", die)
        commit(output)
    assert contents(output) == expected(14)
    commit(output)
    assert contents(output) == expected(14) and not other.records


def test_files_of_two_models_are_one_record(output: Path, model: str, tmp_path: Path) -> None:
    """They are in two manifests; what others have read of their messages comes too late for both."""
    tiny_bundle(WORDS, seed=8).save(tmp_path / "other")
    one, other = Job(output, model), Job(output, str(tmp_path / "other"))
    record, second = one.write((0, 9)), other.write((10, 19))
    both = [json.loads(path.read_text()) for path in (record, second)]
    files = [written for part in both for written in part["files"]]
    covers: dict[str, dict[str, Intervals]] = {TOPIC: {"0": [[0, 19]]}}
    record.write_text(json.dumps({"files": files, "covers": covers}))
    second.unlink()
    Job(output, model).write((5, 24))
    commit(output)
    assert contents(output) == expected(24)


def test_a_record_without_positions_is_not_guessed_at(output: Path, model: str) -> None:
    one, other = Job(output, model), Job(output, model)
    one.write((0, 9))
    commit(output)
    record = other.write((5, 14))
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"files": [file | {"messages": []} for file in content["files"]]}))
    with pytest.raises(InputError, match="it does not tell which rows are from them; move it away"):
        commit(output)
    record.unlink()
    shutil.rmtree(output / "_tmp", ignore_errors=True)
    assert covered(DataSet.read(str(output))) == {TOPIC: {"0": [[0, 9]]}}
