"""Selection: which inputs a run scores, under every policy, and in which groups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.annotate_options import AnnotateConfig, parse
from pipelines.data_set.manifest import Input, Manifest, Model
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.inputs import Inputs
from pipelines.runs.selection import FIRST_BYTES_PER_SECOND, MAX_GROWTH, Groups, Selection, select
from tests.pipelines.data_set.test_manifest import make
from torchmoji_core.errors import InputError
from transforms.input.inputs import InputFile

NOW = 1_700_000_000.0
MODEL, NEW_MODEL = "abc", "def" * 20
"""The first is that of `make`."""


def config(*options: str) -> AnnotateConfig:
    return parse(["--input", "/in/*", "--output", "/out", *options])[0]


def scored(*paths: str, bytes: int = 10, modified: float | None = 5.0) -> tuple[Input, ...]:
    return tuple(Input(path, bytes, modified, "jsonl") for path in paths)


def choose(
    there: Sequence[InputFile], *changes: Manifest, vanished: Sequence[str] = (), options: Sequence[str] = (),
    fingerprint: str = MODEL, now: float = NOW,
) -> Selection:  # fmt: skip
    found = Inputs({file.path: file for file in there}, vanished=list(vanished))
    return select(DataSet("/out", changes), found, config(*options), fingerprint, now)


def file(path: str, bytes: int = 10, modified: float | None = 5.0) -> InputFile:
    return InputFile(path, bytes, modified, "of a regular file")


# --- new and changed -----------------------------------------------------------------------------------------------


def test_everything_is_new_at_first() -> None:
    selection = choose([file("/in/b"), file("/in/a")])
    assert selection.new == selection.work == (file("/in/a"), file("/in/b"))
    assert not selection.is_empty
    assert selection.describe() == "found       2 new"


def test_what_was_scored_and_is_as_it_was_is_left_alone() -> None:
    selection = choose([file("/in/a"), file("/in/b"), file("/in/c")], make(1, inputs=scored("/in/a", "/in/c")))
    assert selection.work == (file("/in/b"),)
    assert selection.unchanged == 2
    nothing = choose([file("/in/a")], make(1, inputs=scored("/in/a")))
    assert nothing.is_empty
    assert nothing.describe() == "found       1 unchanged"
    assert choose([]).describe() == "found       nothing"


CHANGES = {"longer": (11, 5.0), "shorter": (0, 5.0), "later": (10, 6.0), "earlier": (10, 4.0), "no time": (10, None)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_rescored_skipped_or_refused(change: str) -> None:
    there = [file("/in/a", *CHANGES[change]), file("/in/b")]
    before = make(1, inputs=scored("/in/a"))
    for options in ((), ("--on_changed", "rescore")):
        selection = choose(there, before, options=options)
        assert (selection.changed, selection.new, selection.skipped) == ((there[0],), (there[1],), 0)
        assert selection.work == tuple(there)
    selection = choose(there, before, options=("--on_changed", "skip"))
    assert (selection.changed, selection.work, selection.skipped) == ((), (there[1],), 1)
    with pytest.raises(InputError, match=r"input /in/a has changed since it was scored; give --on_changed"):
        choose(there, before, options=("--on_changed", "fail"))


def test_where_a_filesystem_knows_no_times_sizes_tell() -> None:
    before = make(1, inputs=scored("/in/a", "/in/b", modified=None))
    selection = choose([file("/in/a", 10, None), file("/in/b", 11, None)], before, options=("--settle", "1h"))
    assert (selection.unchanged, selection.changed) == (1, (file("/in/b", 11, None),))


# --- settling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "is_settled"),
    [(601, True), (600, True), (599, False), (0, False), (-599, False), (-600, True), (-86_400, True)],
)
def test_what_is_too_young_is_left_to_the_next_run(age: float, is_settled: bool) -> None:
    """A file from the future is as young as one from the past: else a clock that is off would hold it back for ever."""
    there = [file("/in/new", modified=NOW - age), file("/in/changed", modified=NOW - age)]
    before = make(1, inputs=scored("/in/changed"))
    selection = choose(there, before, options=("--settle", "10m"))
    assert selection.work == (tuple(sorted(there)) if is_settled else ())
    assert selection.unsettled == (() if is_settled else ("/in/changed", "/in/new"))
    assert selection.is_empty == (not is_settled)


def test_without_settling_a_file_of_this_moment_is_scored() -> None:
    assert choose([file("/in/a", modified=NOW)]).work == (file("/in/a", modified=NOW),)


def test_a_young_file_that_is_as_it_was_scored_is_unchanged() -> None:
    before = make(1, inputs=scored("/in/a", modified=NOW))
    selection = choose([file("/in/a", modified=NOW)], before, options=("--settle", "10m"))
    assert (selection.unchanged, selection.unsettled) == (1, ())


def test_a_change_is_refused_only_once_it_has_settled() -> None:
    there, before = [file("/in/a", 20, NOW - 5)], make(1, inputs=scored("/in/a"))
    options = ("--on_changed", "fail", "--settle", "10s")
    assert choose(there, before, options=options).unsettled == ("/in/a",)
    with pytest.raises(InputError, match="has changed"):
        choose(there, before, options=options, now=NOW + 60)


# --- vanished ------------------------------------------------------------------------------------------------------


def test_a_vanished_file_is_kept_retired_or_refused() -> None:
    before = make(1, inputs=scored("/in/a", "/in/b"))
    arguments: dict[str, Any] = {"vanished": ["/in/b"]}
    for options in ((), ("--on_vanished", "keep")):
        selection = choose([file("/in/a")], before, options=options, **arguments)
        assert (selection.found.vanished, selection.retired, selection.is_empty) == (["/in/b"], (), True)
        assert selection.describe() == "found       1 unchanged, 1 gone"
    selection = choose([file("/in/a")], before, options=("--on_vanished", "retire"), **arguments)
    assert (selection.found.vanished, selection.retired, selection.is_empty) == (["/in/b"], ("/in/b",), False)
    with pytest.raises(InputError, match=r"inputs /in/b are gone since scored.*--on_vanished keep or retire"):
        choose([file("/in/a")], before, options=("--on_vanished", "fail"), **arguments)


def test_of_many_vanished_files_some_are_named() -> None:
    vanished = [f"/in/{index}" for index in range(1000)]
    with pytest.raises(InputError, match=r"inputs /in/0, /in/1, /in/2, /in/3, /in/4 and 995 more are gone"):
        choose([], make(1, inputs=scored(*vanished)), vanished=vanished, options=("--on_vanished", "fail"))


def test_if_everything_is_gone_nothing_is_retired() -> None:
    """Rather than that a corpus was deleted, a disk is not mounted."""
    before = make(1, inputs=scored("/in/a"))
    with pytest.raises(InputError, match="all inputs are gone; check that their filesystem is there"):
        choose([], before, vanished=["/in/a"], options=("--on_vanished", "retire"))
    assert choose([], before, vanished=["/in/a"]).is_empty


# --- models --------------------------------------------------------------------------------------------------------

OLD = make(1, inputs=scored("/in/a", "/in/b"))


def staged(sequence: int, *paths: str, fingerprint: str = NEW_MODEL, generation: int = 1, **values: Any) -> Manifest:
    return make(
        sequence, model=Model("new", fingerprint, "fp32"), inputs=scored(*paths), generation=generation, **values
    )


def test_another_model_is_refused() -> None:
    with pytest.raises(
        InputError, match=rf"scored by model {MODEL}, and this one is {NEW_MODEL[:12]};.*--rescore_with"
    ):
        choose([file("/in/a")], OLD, fingerprint=NEW_MODEL)


def test_another_model_scores_everything_again_when_asked_to() -> None:
    options = ("--rescore_with_new_model",)
    there = [file("/in/a"), file("/in/b"), file("/in/c")]
    selection = choose(there, OLD, options=options, fingerprint=NEW_MODEL)
    assert selection.work == selection.new == tuple(there)
    assert (selection.generation, selection.promotes) == (1, True)
    same = choose(there, OLD, options=options)
    assert same.work == (file("/in/c"),)
    assert (same.generation, same.promotes) == (0, False)


def test_a_rescoring_that_was_interrupted_is_gone_on_with() -> None:
    options = ("--rescore_with_new_model",)
    there = [file("/in/a"), file("/in/b", 20)]
    selection = choose(there, OLD, staged(2, "/in/a"), options=options, fingerprint=NEW_MODEL)
    assert (selection.work, selection.unchanged) == ((there[1],), 1)
    assert (selection.generation, selection.promotes) == (1, True)
    done = choose([file("/in/a")], OLD, staged(2, "/in/a"), options=options, fingerprint=NEW_MODEL)
    assert not done.work and not done.is_empty, "it is still to be promoted"


def test_a_third_model_begins_a_generation_of_its_own() -> None:
    options = ("--rescore_with_new_model",)
    selection = choose([file("/in/a")], OLD, staged(2, "/in/a"), options=options, fingerprint="third")
    assert (selection.work, selection.generation, selection.promotes) == ((file("/in/a"),), 2, True)


def test_the_old_model_goes_on_while_a_new_one_has_not_finished() -> None:
    selection = choose([file("/in/a"), file("/in/b"), file("/in/c")], OLD, staged(2, "/in/a"))
    assert (selection.work, selection.generation, selection.promotes) == ((file("/in/c"),), 0, False)


def test_a_promoted_model_is_the_one_to_go_on_with() -> None:
    changes = (OLD, staged(2, "/in/a", "/in/b"), staged(3, promotes=True))
    selection = choose([file("/in/a"), file("/in/c")], *changes, fingerprint=NEW_MODEL)
    assert (selection.work, selection.generation, selection.promotes) == ((file("/in/c"),), 1, False)
    with pytest.raises(InputError, match="--rescore_with_new_model"):
        choose([file("/in/a")], *changes)


def test_a_new_model_cannot_score_what_is_gone() -> None:
    there, options = [file("/in/a")], ("--rescore_with_new_model",)
    with pytest.raises(InputError, match=r"inputs /in/b are gone, so the new model cannot score them"):
        choose(there, OLD, vanished=["/in/b"], options=options, fingerprint=NEW_MODEL)
    selection = choose(
        there, OLD, vanished=["/in/b"], options=(*options, "--on_vanished", "retire"), fingerprint=NEW_MODEL
    )
    assert selection.retired == (), "its rows go when the new generation takes the place of the old one"
    assert (selection.work, selection.found.vanished) == ((file("/in/a"),), ["/in/b"])


# --- groups --------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 10_000_000), max_size=60),
    times=st.lists(st.floats(0, 1000), min_size=1, max_size=60),
    seconds=st.sampled_from([0.0, 0.5, 30.0]),
)
def test_groups_cover_all_work_in_order_exactly_once(sizes: list[int], times: list[float], seconds: float) -> None:
    work = [file(f"/in/{index:03}", size) for index, size in enumerate(sizes)]
    groups, done = Groups(work, seconds), []
    for index, group in enumerate(groups):
        assert group
        done += group
        groups.took(group, times[index % len(times)])
        assert seconds or done == work, "0 seconds are one group"
    assert done == work


def simulated(work: Sequence[InputFile], seconds: float, overhead: float, rate: float) -> list[float]:
    """How long each group takes where a run costs some seconds, and so many bytes are scored in one."""
    groups, took = Groups(work, seconds), []
    for group in groups:
        took.append(overhead + sum(file.bytes_ for file in group) / rate)
        groups.took(group, took[-1])
    return took


@pytest.mark.parametrize(
    ("rate", "size"), [(1e4, 1000), (1e6, 100_000), (1e6, 3_000_000), (1e8, 3_000_000), (1e4, 3_000_000)]
)
def test_groups_come_to_take_about_the_time_that_they_should(rate: float, size: int) -> None:
    """Whatever the speed and the size of files, once they have grown; a file is the least that a group can be."""
    seconds, overhead = 30.0, 0.5
    work = [file(f"/in/{index:06}", size) for index in range(int(1000 * rate / size) + 20)]
    took = simulated(work, seconds, overhead, rate)
    least = overhead + size / rate
    settled = took[len(took) // 2 : -1]
    assert settled
    assert all(0.8 * seconds <= one <= 1.2 * seconds + least for one in settled)


def test_the_first_group_is_small_and_the_next_ones_grow_step_by_step() -> None:
    """One fast group, of empty lines for instance, says little of the next."""
    work = [file(f"/in/{index:06}", 1 << 16) for index in range(20_000)]
    groups, sizes = Groups(work, 30.0), []
    for group in groups:
        sizes.append(sum(file.bytes_ for file in group))
        groups.took(group, 0.0)
    assert sizes[0] == 30 * FIRST_BYTES_PER_SECOND
    assert all(after <= MAX_GROWTH * before for before, after in itertools.pairwise(sizes))
    assert max(sizes) > 100 * sizes[0]
