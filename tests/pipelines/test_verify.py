"""verify finds what is wrong with a data set, compact changes nothing but the number of its files."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import compact, score
from pipelines.data_set.lock import Lock
from pipelines.data_set.snapshot import DataSet, live_files
from tests.pipelines.conftest import Finished, corpus, read_live, write_lines
from torchmoji_core.errors import InputError
from transforms.storage import files as storage
from transforms.storage.listing import FileFacts

Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves the data set for the others."""
    return tmp_path_factory.mktemp("original") / "corpus"


def annotate(directory: Path, run_annotate: Run) -> None:
    """Two runs over three inputs, the last of which has a dead letter."""
    paths = corpus(directory / "in", 3, 10)
    paths[2].write_bytes(paths[2].read_bytes() + b"{broken\n")
    assert run_annotate("--commit_every", "0.001s", "--max_dead_fraction", "1").status == 0


@pytest.fixture
def data_set(original: Path, tmp_path: Path, run_annotate: Run) -> Path:
    """A copy of it. Inputs are known by their absolute paths, so what annotates it again makes its own."""
    if not original.exists():
        annotate(tmp_path, run_annotate)
        shutil.copytree(tmp_path, original)
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


@pytest.fixture
def own_data_set(tmp_path: Path, run_annotate: Run) -> Path:
    annotate(tmp_path, run_annotate)
    return tmp_path / "out"


def manifests(output: Path) -> list[Path]:
    return sorted((output / "_manifests").glob("*.json"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def first_file(output: Path) -> Path:
    return Path(live_files(str(output))[0])


def first_dead_letters(output: Path) -> Path:
    return next((output / "_dead_letters").glob("*.jsonl"))


def test_what_was_found_is_said_where_there_is_no_room_to_compare_ids(
    data_set: Path, run_verify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    unknown = run_verify()
    assert unknown.status == 5 and "ids could not be compared" in unknown.out, unknown
    flip_a_byte(first_dead_letters(data_set))
    finished = run_verify()
    assert finished.status == 1 and "problem " in finished.out and "give another TMPDIR" in finished.out, finished


def test_a_sound_data_set(data_set: Path, run_verify: Run) -> None:
    finished = run_verify()
    assert finished.status == 0
    assert "30 rows in 3 file(s), 1 dead letters, 3 input(s)" in finished.out
    assert finished.out.endswith("sound\n")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda output: first_file(output).unlink(), "listed, but not there"),
        (lambda output: flip_a_byte(first_file(output)), "its content is not what was written"),
        (lambda output: os.truncate(first_file(output), 100), "has 100 bytes, its manifest says"),
        (lambda output: first_dead_letters(output).unlink(), "listed, but not there"),
        (lambda output: flip_a_byte(first_dead_letters(output)), "its content is not what was written"),
        (lambda output: shutil.copy(first_file(output), output / "part-copy.parquet"), "no manifest lists it"),
        (lambda output: (output / "_tmp").mkdir() or (output / "_tmp/x").touch(), "no manifest"),
        (lambda output: manifests(output)[1].write_text("{"), "not a manifest"),
        (lambda output: os.truncate(manifests(output)[1], 0), "not a manifest"),
        (lambda output: shutil.copy(manifests(output)[0], output / "_manifests/00000001-zz.json"), "2 times"),
        (lambda output: edit(manifests(output)[0], lambda content: content["counts"].update(read=11)), "read 11"),
        (lambda output: edit(manifests(output)[0], lambda content: content["inputs"][0].update(rows=9)), "says 9 rows"),
        (lambda output: edit(manifests(output)[0], lambda content: content["inputs"].clear()), "says 0 rows"),
        (
            lambda output: edit(manifests(output)[2], lambda content: content["model"].update(fingerprint="0" * 64)),
            "scored by model",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(
    data_set: Path, run_verify: Run, damage: Callable[[Path], object], problem: str
) -> None:
    damage(data_set)
    finished = run_verify()
    assert finished.status == 1
    assert problem in finished.out
    assert "not sound" in finished.out


class BadDisk:
    """A disk on which some files cannot be read, the first time or from a later one on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: Path | None = None
        self.good_reads = 0
        opened = io.open

        def open_or_fail(path: Any, *arguments: Any, **options: Any) -> Any:
            if self.bad is not None and Path(str(path)).absolute() == self.bad:
                if self.good_reads == 0:
                    raise OSError(5, "Input/output error", str(path))
                self.good_reads -= 1
            return opened(path, *arguments, **options)

        monkeypatch.setattr(io, "open", open_or_fail)


@pytest.fixture
def bad_disk(monkeypatch: pytest.MonkeyPatch) -> BadDisk:
    return BadDisk(monkeypatch)


@pytest.mark.parametrize("good_reads", [0, 1, 2])
def test_what_cannot_be_read_is_no_problem_but_unknown(
    data_set: Path, bad_disk: BadDisk, run_verify: Run, good_reads: int
) -> None:
    bad_disk.bad, bad_disk.good_reads = first_file(data_set), good_reads
    finished = run_verify()
    assert finished.status == 5, finished.out + finished.err
    assert "unknown     " in finished.out and "Input/output error" in finished.out
    assert "problem     " not in finished.out
    assert finished.out.endswith("could not be looked at; try again\n")
    bad_disk.bad = None
    assert run_verify().status == 0


@pytest.mark.parametrize("which", [lambda output: manifests(output)[1], first_dead_letters])
def test_manifests_and_dead_letters_may_be_unknown_too(
    data_set: Path, bad_disk: BadDisk, run_verify: Run, run_compact: Run, which: Callable[[Path], Path]
) -> None:
    bad_disk.bad = which(data_set)
    assert run_verify().status == 5
    if bad_disk.bad in manifests(data_set):
        finished = run_compact()
        assert finished.status == 1 and "cannot be read" in finished.err and "Traceback" not in finished.err


def test_one_file_that_differs_decides_whatever_is_unknown(data_set: Path, bad_disk: BadDisk, run_verify: Run) -> None:
    first, second, *_ = map(Path, live_files(str(data_set)))
    bad_disk.bad = first
    flip_a_byte(second)
    finished = run_verify()
    assert finished.status == 1
    assert "unknown     " in finished.out and "SHA-256 differs" in finished.out


def test_ids_that_are_there_twice(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_lines(tmp_path / "in" / f"{name}.jsonl", [{"id": "same", "text": "so late"}, {"id": name, "text": "i"}])
    assert run_annotate().status == 0
    finished = run_verify()
    assert finished.status == 1
    assert "id 'same' is there 2 times" in finished.out
    assert run_verify("--duplicate_ids", "allow").status == 0


def test_results_of_score_can_be_verified(tmp_path: Path, run_score: Run, run_verify: Run) -> None:
    corpus(tmp_path / "in", 2, 10)
    for _ in range(2):
        assert run_score("--input", "in/*", "--output", "out").status == 0
        assert run_verify().status == 0
    flip_a_byte(first_file(tmp_path / "out"))
    assert run_verify().status == 1


def test_a_directory_without_a_data_set(tmp_path: Path, run_verify: Run, run_compact: Run) -> None:
    for run in (run_verify, run_compact):
        finished = run()
        assert finished.status == 2
        assert "no data set; check the path" in finished.err
    assert not (tmp_path / "out").exists()


def test_cleaning_deletes_what_is_old_and_nothing_else(
    tmp_path: Path, data_set: Path, run_annotate: Run, run_verify: Run
) -> None:
    young, old, foreign = data_set / "part-young.parquet", data_set / "date=x/part-old.parquet", data_set / "mine.txt"
    old.parent.mkdir()
    for path in (young, old, foreign):
        path.touch()
    two_days_ago = time.time() - 2 * 86_400
    for path in (old, foreign, first_file(data_set)):
        os.utime(path, (two_days_ago, two_days_ago))
    rows = read_live(data_set)
    finished = run_verify("--clean")
    assert "deleted     1 file(s)" in finished.out
    assert finished.status == 1
    assert (young.exists(), old.exists(), foreign.exists()) == (True, False, True)
    assert read_live(data_set).equals(rows)
    assert run_verify("--clean", "--older_than", "0s").status == 0
    assert not young.exists()
    assert read_live(data_set).equals(rows)


def test_retired_files_stay_for_readers_that_have_begun(
    tmp_path: Path, own_data_set: Path, run_annotate: Run, run_compact: Run, run_verify: Run
) -> None:
    reader = live_files(str(own_data_set))
    rows = read_live(own_data_set)
    finished = run_compact()
    assert finished.status == 0
    assert "merged      3 file(s) into 1, 3 manifest(s) into 1" in finished.out
    assert read_live(own_data_set).equals(rows)
    assert len(live_files(str(own_data_set))) == 1
    assert all(Path(path).exists() for path in reader)
    assert run_verify("--clean").status == 0
    assert all(Path(path).exists() for path in reader)
    assert run_verify("--clean", "--older_than", "0s").status == 0
    assert not any(Path(path).exists() for path in reader)
    assert len(manifests(own_data_set)) == 1
    assert read_live(own_data_set).equals(rows)
    assert "nothing is new" in run_annotate("--max_dead_fraction", "1").out
    assert "nothing to do" in run_compact().out


def test_inputs_can_change_after_their_files_were_merged(
    tmp_path: Path, own_data_set: Path, run_annotate: Run, run_compact: Run, run_verify: Run
) -> None:
    assert run_compact().status == 0
    rows = read_live(own_data_set)
    path = tmp_path / "in" / "0001.jsonl"
    write_lines(path, [{"id": "new", "text": "so happy"}])
    os.utime(path, (time.time() + 5,) * 2)
    assert run_annotate().status == 0
    kept = [name for name in rows.column("id").to_pylist() if not name.startswith("1-")]
    assert read_live(own_data_set).column("id").to_pylist() == sorted([*kept, "new"])
    assert run_verify().status == 0


def test_files_of_other_columns_are_not_merged(
    tmp_path: Path, run_score: Run, run_compact: Run, run_verify: Run
) -> None:
    corpus(tmp_path / "in", 1, 10)
    for outputs in ("top", "top", "probabilities"):
        arguments = ("--input", "in/*", "--output", "out", "--outputs", outputs, "--if_exists", "append")
        assert run_score(*arguments).status == 0
    assert "merged      2 file(s) into 1" in run_compact().out
    assert run_verify("--duplicate_ids", "allow").status == 0


def test_large_files_are_left_alone(data_set: Path, run_compact: Run) -> None:
    sizes = {path: Path(path).stat().st_size for path in live_files(str(data_set))}
    assert run_compact("--target_mb", "1", "--dry_run").out.startswith("dry run: 3 of 3 file(s)")
    assert {path: Path(path).stat().st_size for path in live_files(str(data_set))} == sizes
    with pytest.raises(InputError, match="--target_mb must be at least 1, not 0"):
        compact.main(["out", "--target_mb", "0"])


def test_a_merge_that_fails_changes_nothing(data_set: Path, run_compact: Run, run_verify: Run) -> None:
    files = live_files(str(data_set))
    content = first_file(data_set).read_bytes()
    os.truncate(first_file(data_set), 1000)
    finished = run_compact()
    assert finished.status == 1
    assert "cannot be read" in finished.err
    first_file(data_set).write_bytes(content)
    assert live_files(str(data_set)) == files
    assert run_verify().status == 0


def test_merged_files_have_bounded_row_groups_and_the_metadata_of_their_parts(data_set: Path, run_compact: Run) -> None:
    before = pq.read_schema(first_file(data_set)).metadata
    assert run_compact().status == 0
    after = pq.read_schema(first_file(data_set)).metadata
    assert {name: value for name, value in after.items() if name != b"torchmoji.run_id"} == {
        name: value for name, value in before.items() if name != b"torchmoji.run_id"
    }
    assert after[b"torchmoji.run_id"].decode() == DataSet.read(str(data_set)).manifests[-1].run_id


def test_merging_lists_the_output_once(data_set: Path, run_compact: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store, a listing of many files takes long."""
    listed: list[str] = []
    match = storage.match

    def counted(patterns: Iterable[str]) -> list[FileFacts]:
        wanted = list(patterns)
        listed.extend(wanted)
        return match(wanted)

    monkeypatch.setattr(storage, "match", counted)
    assert run_compact().out.startswith("merged      3 file(s) into 1")
    assert listed.count(f"{data_set}/**") == 1


def test_who_holds_the_lock_keeps_others_out(
    data_set: Path, run_annotate: Run, run_compact: Run, run_verify: Run, run_main: Run, model: str
) -> None:
    with Lock("out"):
        for finished in (
            run_annotate(),
            run_compact(),
            run_verify("--clean"),
            run_main(score.main, "--model", model, "--output", "out", "--if_exists", "append"),
        ):
            assert finished.status == 4
            assert f"not started: {Path('out')} is being written by process {os.getpid()} on " in finished.err.replace(
                f"{data_set}", "out"
            )
        assert run_verify().status == 0
    assert not (data_set / "_lock.json").exists()
