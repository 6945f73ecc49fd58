"""Two that commit at once, suspended anywhere between their look and their commit: every input is listed once."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import annotate_options
from pipelines.cli.options import parse
from pipelines.data_set import pending
from pipelines.data_set.compaction import compact
from pipelines.data_set.manifest import DIRECTORY, DataFile, now
from pipelines.data_set.recovery import commit_pending, recover, register_run
from pipelines.data_set.snapshot import DataSet, registration
from pipelines.runs import annotation
from pipelines.runs.accounting import Finished, describe_stream
from pipelines.runs.annotation import Annotation
from pipelines.runs.context import RunContext
from pipelines.runs.inputs import Inputs
from pipelines.runs.plan import ModelFacts, Plan
from pipelines.runs.selection import select
from tests.object_store_server import ObjectStoreServer
from tests.pipelines.steps import explore, gate, interleave, suspend_everywhere
from torchmoji_core.errors import RunError
from transforms.input.inputs import InputFile
from transforms.output.commit import TEMPORARY, WrittenFile, journal_directory
from transforms.output.commit import commit as put_in_place
from transforms.storage import files as storage

MODEL = ModelFacts("tiny", "abc", ("joy",), 8, 30, "fp32")
CLAIMS = rf"/{DIRECTORY}/"
"""Before which two are suspended: listing manifests, claiming a number, deleting manifests."""
ANNOUNCEMENTS = rf"/{TEMPORARY}/\w+/run\.json$"
"""Looking whether one is registered still, and taking the registration back."""
RECORDS = r"/_journal/\*/\*\.json|/_journal/\w+/\w\.json"
"""Listing what streams have put in place, and deleting the records of that."""
ELSEWHERE = {"host": "another", "pid": 1, "process": ["boot", "pid:[1]", "5"]}

Task = Callable[[], object]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """New directories."""
    numbers = itertools.count()
    yield lambda: str(tmp_path / f"out-{next(numbers)}")


@pytest.fixture
def stepwise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of `steps` wait before claims, and before what the test's parameter says."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here
    gate(monkeypatch, "|".join([CLAIMS, *getattr(request, "param", ())]))


def with_steps(pattern: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stepwise", [[pattern]], indirect=True, ids=[""])


def put(output: str, run_id: str, *inputs: str) -> DataFile:
    """A file in place, with a row of each input."""
    name = f"part-{run_id}-{os.urandom(6).hex()}.parquet"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": list(inputs), "source": list(inputs)}), buffer)
    content = buffer.getvalue()
    storage.publish(f"{output}/{name}", content, f"{output}/{TEMPORARY}/{run_id}/{name}", lasting=False)
    return DataFile(name, len(inputs), len(content), hashlib.sha256(content).hexdigest(), dict.fromkeys(inputs, 1))


class Annotator:
    """A run on another machine that has looked, and scored what it has found."""

    def __init__(self, output: str, *inputs: str, size: int = 10, vanished: Sequence[str] = (), files: int = 1) -> None:
        options = ["--input", "in/*", "--format", "jsonl", "--output", output, "--on_vanished", "retire"]
        config, _ = annotate_options.parse(options)
        data_set = DataSet.read(output)
        found = {path: InputFile(path, size, 5.0) for path in inputs}
        selection = select(data_set, Inputs(found, vanished=[*vanished]), config, MODEL.fingerprint, 1e9)
        plan = annotation.make_plan(config, data_set, selection, MODEL)
        context = RunContext(cast(Any, None), cast(Any, None), "", {}, data_set)
        self.run = Annotation(config, plan, context, selection)
        self.plan = plan.with_new_run(selection.work)
        register_run(output, self.plan.run_id)
        path = registration(output, self.plan.run_id)
        storage.publish(path, json.dumps(ELSEWHERE).encode(), f"{path}.tmp", lasting=False)
        scored = [file.path for file in selection.work]
        written = tuple(put(output, self.plan.run_id, *scored[part::files]) for part in range(files) if scored)
        self.finished = Finished({"read": len(scored), "scored": len(scored)}, written, (), 1.0)

    def commit(self) -> set[str]:
        """Gives the inputs that another has listed meanwhile."""
        return self.run.commit(self.plan, self.finished, now())


def annotated(output: str, *inputs: str, files: int = 1) -> str:
    assert Annotator(output, *inputs, files=files).commit() == set()
    return output


def listed(output: str) -> Counter[str]:
    """How often the manifests list each input."""
    return Counter(entry.path for change in DataSet.read(output).manifests for entry in change.inputs)


def rows(output: str) -> Counter[str]:
    """How often each row is there, as its files say; they are there, and nothing else is."""
    data_set = DataSet.read(output)
    found: Counter[str] = Counter()
    for file in data_set.live.files.values():
        content = storage.read_bytes(f"{output}/{file.path}")
        assert hashlib.sha256(content).hexdigest() == file.sha256
        found.update(pq.read_table(io.BytesIO(content)).column("source").to_pylist())
    in_place = {found.path.rpartition("/")[2] for found in storage.match([f"{output}/part-*"])}
    waiting = {entry.file.path for entry in pending.read(output).files}
    assert in_place <= data_set.known_files | waiting, "what was not committed is gone"
    return found


# --- in every order ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stepwise")
def test_of_two_runs_that_have_scored_an_input_one_lists_it(output: Callable[[], str]) -> None:
    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = output()
        one, other = Annotator(place, "/a", "/b"), Annotator(place, "/b", "/c")
        taken: dict[str, set[str]] = {}

        def check() -> None:
            assert sorted(map(len, taken.values())) == [0, 1]
            assert set().union(*taken.values()) == {"/b"}, "who has come too late scores the rest again"
            assert listed(place) == rows(place) == Counter(["/b", "/c" if taken["one"] else "/a"])

        return [lambda: taken.update(one=one.commit()), lambda: taken.update(other=other.commit())], check

    assert explore(prepare) > 20


@pytest.mark.usefixtures("stepwise")
def test_two_runs_with_different_inputs_both_commit(output: Callable[[], str]) -> None:
    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = output()
        annotators = [Annotator(place, "/a"), Annotator(place, "/b")]

        def check() -> None:
            assert listed(place) == rows(place) == Counter(["/a", "/b"])
            assert [change.sequence for change in DataSet.read(place).manifests] == [1, 2]

        return [annotator.commit for annotator in annotators], check

    assert suspend_everywhere(prepare) > 7


@pytest.mark.usefixtures("stepwise")
def test_what_is_rewritten_for_two_changes_at_once_has_both(output: Callable[[], str]) -> None:
    """One file has the rows of what has changed, of what is gone, and of what stays."""

    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = annotated(output(), "/changed", "/gone", "/stays")
        changed = Annotator(place, "/changed", size=20)
        retirer = Annotator(place, "/stays", vanished=("/gone",))

        def check() -> None:
            assert rows(place) == Counter(["/changed", "/stays"])
            assert DataSet.read(place).live.inputs.keys() == {"/changed", "/stays"}
            assert len(DataSet.read(place).retired) == 2, "each file is retired once"

        return [changed.commit, retirer.run.run], check

    assert suspend_everywhere(prepare) > 10


@pytest.mark.usefixtures("stepwise")
def test_files_are_merged_while_rows_are_replaced(output: Callable[[], str]) -> None:
    """Who merges them takes all other runs for dead when it begins."""
    outcomes = set()

    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = annotated(output(), "/a", "/b", "/c", files=3)
        refused: list[RunError] = []

        def check() -> None:
            assert rows(place) == Counter(["/a", "/b", "/c"])
            assert DataSet.read(place).live.inputs["/a"].bytes == (10 if refused else 20)
            outcomes.add(bool(refused))

        return [unless_dead(lambda: Annotator(place, "/a", size=20), refused), lambda: compact(place, 1 << 20)], check

    assert suspend_everywhere(prepare) > 10
    assert outcomes == {True, False}


def unless_dead(make: Callable[[], Annotator], refused: list[RunError]) -> Task:
    """Commits unless another has taken the run for dead."""

    def commit() -> None:
        try:
            make().commit()
        except RunError as error:
            assert "taken this run for dead" in str(error)
            refused.append(error)

    return commit


def put_by_stream(output: str, *names: str) -> str:
    """A stream that has put a file in place for each name."""
    config, _ = parse(["--input", "in", "--output", output, "--model", "models/tiny"])
    plan = Plan(config, (), MODEL).with_new_run(())
    pending.begin(plan.config.output, describe_stream(plan))
    for name in names:
        file = put(output, plan.run_id, name)
        final, record = f"{output}/{file.path}", f"{journal_directory(output, plan.run_id)}/{name}.json"
        model = {"name": MODEL.name, "fingerprint": MODEL.fingerprint, "arithmetic": MODEL.arithmetic}
        put_in_place(WrittenFile(final, final, record, 1, file.bytes, file.sha256, {}, model=model), journal=True)
    return output


@with_steps(RECORDS)
@pytest.mark.usefixtures("stepwise")
def test_two_that_commit_what_is_pending_list_each_file_once(output: Callable[[], str]) -> None:
    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = put_by_stream(output(), "x", "y")
        data_sets = [DataSet.read(place) for _ in range(2)]

        def check() -> None:
            changes = DataSet.read(place).manifests
            assert [len(change.files) for change in changes] == [2]
            assert rows(place) == Counter(["x", "y"])
            assert list(pending.pending_records(place)) == []

        return [lambda data_set=data_set: commit_pending(data_set) for data_set in data_sets], check  # type: ignore[misc]

    assert suspend_everywhere(prepare) > 10


@pytest.mark.usefixtures("stepwise")
def test_files_are_merged_while_a_stream_commits(output: Callable[[], str]) -> None:
    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = put_by_stream(output(), "x", "y")
        commit_pending(DataSet.read(place))
        put_by_stream(place, "z")
        data_set = DataSet.read(place)

        def check() -> None:
            assert rows(place) == Counter(["x", "y", "z"])
            assert list(pending.pending_records(place)) == []

        return [lambda: commit_pending(data_set), lambda: compact(place, 1 << 20)], check

    assert suspend_everywhere(prepare) > 10


@with_steps(ANNOUNCEMENTS)
@pytest.mark.usefixtures("stepwise")
def test_a_run_that_is_taken_for_dead_has_committed_or_never_will(output: Callable[[], str]) -> None:
    """It is suspended while another deletes what it has left."""
    outcomes = set()

    def prepare() -> tuple[list[Task], Callable[[], None]]:
        place = output()
        suspended = Annotator(place, "/a")
        refused: list[RunError] = []

        def check() -> None:
            assert listed(place) == rows(place) == Counter([] if refused else ["/a"])
            outcomes.add(bool(refused))

        return [unless_dead(lambda: suspended, refused), lambda: recover(DataSet.read(place))], check

    assert suspend_everywhere(prepare) > 7
    assert outcomes == {True, False}


# --- suspended for long --------------------------------------------------------------------------------------------


@with_steps(RECORDS)
@pytest.mark.usefixtures("stepwise")
def test_a_number_that_is_free_again_is_worth_nothing(output: Callable[[], str]) -> None:
    """While one is suspended, the number that it has in mind is taken, becomes superfluous, and is deleted."""
    for steps in range(8):
        place = put_by_stream(annotated(output(), "/a", "/b", files=2), "x")

        def meanwhile(place: str = place) -> None:
            compact(place, 1 << 20)
            DataSet.read(place).purge()
            put_by_stream(place, "y")

        suspended = DataSet.read(place)
        interleave([lambda suspended=suspended: commit_pending(suspended), meanwhile], [0] * steps + [1] * 1000)  # type: ignore[misc]
        assert rows(place) + Counter(journal_of(place)) == Counter(["/a", "/b", "x", "y"]), steps
        commit_pending(DataSet.read(place))
        assert rows(place) == Counter(["/a", "/b", "x", "y"]), steps


def journal_of(place: str) -> list[str]:
    return [path.rpartition("/")[2].removesuffix(".json") for path in pending.pending_records(place)]


# --- in an object store --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stepwise")
def test_in_an_object_store_an_input_is_listed_once_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some of the orders."""
    chance = random.Random(1)
    with ObjectStoreServer() as server:
        server.use(monkeypatch)
        server.client().create_bucket(Bucket="data")
        for number in range(6):
            place = f"s3://data/out-{number}"
            annotators = [Annotator(place, "/a"), Annotator(place, "/a")]
            interleave([annotator.commit for annotator in annotators], chance.choices([0, 1], k=20))
            assert listed(place) == rows(place) == Counter(["/a"])
