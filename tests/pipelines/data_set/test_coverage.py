"""Which messages the files of a stream are made from: known from the first record on, whatever becomes of the files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.options import parse
from pipelines.data_set import coverage, pending
from pipelines.data_set.coverage import Covers, Intervals
from pipelines.data_set.recovery import commit_pending
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.accounting import describe_stream
from pipelines.runs.plan import Plan, check_model
from pipelines.streams.stages import Stages
from tests.pipelines.conftest import Finished, posts, write_lines
from torchmoji_core.errors import InputError
from transforms.output.commit import journal_directory, record_together
from transforms.records import Message

INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)).map(lambda pair: [pair[0], sum(pair)]))


@given(INTERVALS, INTERVALS, st.integers(0, 60))
def test_intervals_are_sets_of_offsets(some: Intervals, others: Intervals, offset: int) -> None:
    def members(intervals: Intervals) -> set[int]:
        return {number for first, last in intervals for number in range(first, last + 1)}

    joined = coverage.union({"a": {"0": some}}, {"a": {"0": others}})["a"]["0"]
    assert members(joined) == members(some) | members(others)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(joined))
    assert coverage.is_within({"a": {"0": some}}, {"a": {"0": others}}) == (members(some) <= members(others))
    rest = coverage.without({"a": {"0": some}}, {"a": {"0": others}})
    assert members(rest.get("a", {}).get("0", [])) == members(some) - members(others)
    assert coverage.overlap({"a": {"0": some}}, {"a": {"0": others}}) == bool(members(some) & members(others))
    expected = next(number for number in range(offset, 200) if number not in members(joined))
    assert coverage.first_uncovered(joined, offset) == expected


@pytest.fixture
def plan(model: str, tmp_path: Path) -> Plan:
    """Of a stream that has begun."""
    config, _ = parse(
        ["--streaming", "--input", "kafka://b:1/posts", "--output", str(tmp_path / "out"), "--model", model]
    )
    plan = Plan(config, (), check_model(config)).with_new_run(())
    pending.begin(config.output, describe_stream(plan))
    return plan


def record(plan: Plan, name: str, *covered: list[int]) -> Path:
    path = f"{journal_directory(plan.config.output, plan.run_id)}/{name}.json"
    record_together((), (), path, {"kafka:posts": {"0": list(covered)}})
    return Path(path)


def covers(*covered: list[int]) -> Covers:
    return {"kafka:posts": {"0": list(covered)}}


def test_what_made_no_row_is_covered_too(plan: Plan) -> None:
    """And a record that is still there, after a kill, is not listed again."""
    output = plan.config.output
    path = record(plan, "one", [0, 4])
    content = path.read_bytes()
    assert len(commit_pending(DataSet.read(output))) == 1 and not path.exists()
    path.write_bytes(content)
    assert not commit_pending(DataSet.read(output)) and not path.exists()
    record(plan, "two", [5, 5])
    commit_pending(DataSet.read(output))
    assert DataSet.read(output).covers == covers([0, 5])


def test_it_outlives_compaction_and_not_a_replacement(
    plan: Plan, run_compact: Callable[..., Finished], run_score: Callable[..., Finished], tmp_path: Path
) -> None:
    output = plan.config.output
    assert plan.config.stream is not None
    stages = Stages(plan.config, plan.config.stream)
    for offsets in ([0, 4], [7, 9]):
        stages.write(stages.score(stages.prepare(Message("0:0", b'{"text": "so late"}', 0))), covers(offsets))
        commit_pending(DataSet.read(output))
    assert run_compact().status == 0
    compacted = DataSet.read(output)
    assert len(compacted.manifests) == 1 and compacted.covers == covers([0, 4], [7, 9])
    pending.end(output, plan.run_id)
    write_lines(tmp_path / "in.jsonl", posts(3))
    replaced = run_score("--input", "in.jsonl", "--output", "out", "--if_exists", "replace")
    assert replaced.status == 0, replaced.err
    assert DataSet.read(output).covers == {}


@pytest.mark.parametrize("wrong", [{"a": {"0": [[4, 3]]}}, {"a": {"x": [[0, 1]]}}, {"a": [[0, 1]]}, {"a": {"0": [1]}}])
def test_a_record_with_other_intervals_is_refused(plan: Plan, wrong: object) -> None:
    path = f"{journal_directory(plan.config.output, plan.run_id)}/one.json"
    record_together((), (), path, {"a": wrong["a"]})  # type: ignore[index]
    with pytest.raises(InputError, match=r"one\.json: not what a stream writes"):
        pending.read(plan.config.output)
