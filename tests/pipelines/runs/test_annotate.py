"""Annotation of a growing corpus: every tweet there exactly once, whatever becomes of the inputs and the model."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import score
from pipelines.cli.annotate_options import parse
from pipelines.data_set import recovery
from pipelines.data_set.snapshot import DataSet, live_files
from tests.pipelines.conftest import (
    WORDS,
    Finished,
    corpus,
    read_dead_letters,
    read_live,
    read_scores,
    write_lines,
)
from tests.tiny import tiny_bundle
from torchmoji_core.errors import InputError

Run = Callable[..., Finished]


@pytest.fixture
def other_model(tmp_path: Path) -> str:
    tiny_bundle(WORDS, seed=8).save(tmp_path / "other")
    return str(tmp_path / "other")


def ids(output: Path) -> list[str]:
    return read_live(output).column("id").to_pylist()


def read_count(finished: Finished) -> int:
    """Records that a run says it has read."""
    found = re.search(r"^read +([\d,]+) from", finished.out, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


def is_sound(run_verify: Run) -> bool:
    finished = run_verify()
    assert (finished.status == 0) == finished.out.endswith("sound\n") or finished.out
    assert finished.status == 0, finished.out
    return True


# --- what is new -----------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_scored(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    corpus(tmp_path / "in", 3, 20)
    first = run_annotate()
    assert first.status == 0
    assert read_count(first) == 60
    files = live_files("out")
    second = run_annotate()
    assert second.status == 0
    assert "nothing is new" in second.out
    assert live_files("out") == files
    corpus(tmp_path / "in", 1, 20, first=3)
    third = run_annotate()
    assert read_count(third) == 20
    assert set(files) < set(live_files("out"))
    assert ids(tmp_path / "out") == sorted(f"{number}-{row}" for number in range(4) for row in range(20))
    assert is_sound(run_verify)


def test_rows_are_those_of_score(tmp_path: Path, model: str, run_annotate: Run, run_main: Run) -> None:
    corpus(tmp_path / "in", 3, 50)
    assert run_annotate("--commit_every", "0.001s").status == 0
    arguments = ("--model", model, "--input", "in/*", "--output", "scored", "--progress", "off")
    assert run_main(score.main, *arguments).status == 0
    annotated = read_live(tmp_path / "out", "source", "date")
    assert annotated.equals(read_scores(tmp_path / "scored"))


def test_a_directory_of_inputs_may_be_gone_for_a_while(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    assert "no file matches" in run_annotate().err
    corpus(tmp_path / "in", 2, 5)
    assert run_annotate().status == 0
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    finished = run_annotate()
    assert finished.status == 0
    assert "2 gone" in finished.out
    assert len(ids(tmp_path / "out")) == 10
    assert is_sound(run_verify)


def test_other_options_are_refused(tmp_path: Path, run_annotate: Run) -> None:
    corpus(tmp_path / "in", 1, 5)
    assert run_annotate().status == 0
    finished = run_annotate("--outputs", "top")
    assert finished.status == 2
    assert "other outputs" in finished.err
    assert run_annotate("--partition_by", "lang").status == 2


def test_inputs_of_several_runs_may_have_other_patterns(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    corpus(tmp_path / "in", 4, 5)
    assert run_annotate("--input", "in/000[01].jsonl").status == 0
    finished = run_annotate("--input", "in/000[23].jsonl")
    assert finished.status == 0
    assert "gone" not in finished.out
    assert len(ids(tmp_path / "out")) == 20
    assert is_sound(run_verify)


def test_a_dry_run_changes_nothing(tmp_path: Path, run_annotate: Run) -> None:
    corpus(tmp_path / "in", 1, 5)
    finished = run_annotate("--dry_run")
    assert finished.status == 0
    assert "1 new" in finished.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--settle", "--commit_every", "--lock_timeout", "--every"])
def test_times_that_are_none(option: str) -> None:
    with pytest.raises(InputError, match=f"{option}: must be a time like"):
        parse(["--input", "in", "--output", "out", option, "soon"])


def test_kept_fields_keep_their_types(tmp_path: Path, run_annotate: Run) -> None:
    write_lines_of(tmp_path / "in" / "a.jsonl", [{"id": "1", "text": "i", "likes": 1}])
    assert run_annotate("--keep_fields", "likes").status == 0
    write_lines_of(tmp_path / "in" / "b.jsonl", [{"id": "2", "text": "i", "likes": "x"}, {"id": "3", "text": "you"}])
    finished = run_annotate("--keep_fields", "likes", "--max_dead_fraction", "1")
    assert finished.status == 0
    assert read_live(tmp_path / "out").column("likes").to_pylist() == [1, None]
    assert "not of type int64" in read_dead_letters(tmp_path / "out")[0]["reason"]


def write_lines_of(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_lines(path, rows)


# --- policies --------------------------------------------------------------------------------------------------------


def change(path: Path, rows: list[object]) -> None:
    """New content under an old name, and a time of change that tells it whatever the clock's grain."""
    modified = path.stat().st_mtime
    write_lines(path, rows)
    os.utime(path, (modified + 1, modified + 1))


def test_a_changed_input_replaces_its_rows_and_no_others(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    paths = corpus(tmp_path / "in", 3, 20)
    paths[2].write_bytes(paths[2].read_bytes() + b"{broken\n")
    assert run_annotate("--max_dead_fraction", "1").status == 0
    before = read_live(tmp_path / "out")
    change(paths[1], [{"id": "new", "text": "so happy"}])
    finished = run_annotate()
    assert finished.status == 0
    assert read_count(finished) == 1
    after = read_live(tmp_path / "out")
    assert after.filter(pa.compute.field("id") != "new").equals(
        before.filter(~pa.compute.starts_with(pa.compute.field("id"), "1-"))
    )
    assert after.num_rows == 41
    assert is_sound(run_verify)
    # And once more, where dead letters must go and others stay.
    change(paths[2], [{"id": "newer", "text": "so sad"}])
    assert run_annotate().status == 0
    assert ids(tmp_path / "out") == sorted(["new", "newer", *(f"0-{row}" for row in range(20))])
    assert DataSet.read("out").live.dead_letters == {}
    assert is_sound(run_verify)


def test_changed_inputs_may_be_skipped_or_fail(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    (path,) = corpus(tmp_path / "in", 1, 5)
    assert run_annotate().status == 0
    change(path, [{"id": "new", "text": "so happy"}])
    finished = run_annotate("--on_changed", "fail")
    assert finished.status == 2
    assert "has changed since it was scored" in finished.err
    finished = run_annotate("--on_changed", "skip")
    assert finished.status == 0
    assert "1 changed but left as they are" in finished.out
    assert "new" not in ids(tmp_path / "out")
    assert is_sound(run_verify)


def test_vanished_inputs(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    paths = corpus(tmp_path / "in", 3, 5)
    assert run_annotate().status == 0
    paths[1].unlink()
    assert run_annotate("--on_vanished", "fail").status == 2
    assert run_annotate().status == 0
    assert len(ids(tmp_path / "out")) == 15
    assert run_annotate("--on_vanished", "retire").status == 0
    assert ids(tmp_path / "out") == sorted(f"{number}-{row}" for number in (0, 2) for row in range(5))
    assert is_sound(run_verify)
    shutil.rmtree(tmp_path / "in")
    finished = run_annotate("--on_vanished", "retire")
    assert finished.status == 2
    assert "all inputs are gone" in finished.err
    assert len(ids(tmp_path / "out")) == 10


def test_files_that_are_still_written_are_left(tmp_path: Path, run_annotate: Run) -> None:
    old, young, future = corpus(tmp_path / "in", 3, 5)
    now = time.time()
    os.utime(old, (now - 3600, now - 3600))
    os.utime(future, (now + 300, now + 300))
    finished = run_annotate("--settle", "10m")
    assert finished.status == 0
    assert "2 too young" in finished.out
    assert ids(tmp_path / "out") == [f"0-{row}" for row in range(5)]
    os.utime(young, (now - 700, now - 700))
    os.utime(future, (now + 7200, now + 7200))  # a clock that was set back does not keep files for ever
    assert run_annotate("--settle", "10m").status == 0
    assert len(ids(tmp_path / "out")) == 15


def test_a_file_that_grows_while_it_is_read_is_left_to_the_next_run(
    tmp_path: Path, run_annotate: Run, run_verify: Run
) -> None:
    _, growing = corpus(tmp_path / "in", 2, 20)
    stop = threading.Event()

    def grow() -> None:
        number = 0
        while not stop.wait(0.01):
            with growing.open("a") as file:
                file.write(json.dumps({"id": f"more-{number}", "text": "so late"}) + "\n")
            number += 1

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        finished = run_annotate()
    finally:
        stop.set()
        thread.join()
    assert finished.status == 0
    assert f"left to the next run: {growing} changed while it was read" in finished.err
    assert ids(tmp_path / "out") == sorted(f"0-{row}" for row in range(20))
    assert run_annotate().status == 0
    assert len(ids(tmp_path / "out")) == len(growing.read_text().splitlines()) + 20
    assert is_sound(run_verify)


def test_a_file_that_cannot_be_opened_fails_the_run_but_no_other_file(
    tmp_path: Path, run_annotate: Run, run_verify: Run
) -> None:
    corpus(tmp_path / "in", 2, 5)
    with socket.socket(socket.AF_UNIX) as unreadable:
        unreadable.bind(str(tmp_path / "in" / 'what\'s "this".csv'))
    finished = run_annotate()
    assert finished.status == 1
    assert re.search(r"failed: input .*/in/what's \"this\"\.csv cannot be opened: .*a socket, where", finished.err)
    assert len(ids(tmp_path / "out")) == 10
    assert is_sound(run_verify)
    (tmp_path / "in" / 'what\'s "this".csv').unlink()
    (tmp_path / "in" / 'what\'s "this".csv').write_text("id,text\nnow,happy\n")
    assert run_annotate().status == 0
    assert "now" in ids(tmp_path / "out")


def test_too_many_dead_letters_are_said_once_and_written(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    write_lines_of(tmp_path / "in" / "bad.jsonl", ["{broken", {"id": "1", "text": "happy"}])
    finished = run_annotate()
    assert finished.status == 3
    assert "too many dead letters: 50.0%" in finished.err
    assert ids(tmp_path / "out") == ["1"]
    assert is_sound(run_verify)
    assert run_annotate().status == 0


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_new_model_is_refused_unless_everything_is_to_be_scored_again(
    tmp_path: Path, run_annotate: Run, run_verify: Run, other_model: str
) -> None:
    paths = corpus(tmp_path / "in", 3, 10)
    assert run_annotate().status == 0
    old = read_live(tmp_path / "out")
    finished = run_annotate("--model", other_model)
    assert finished.status == 2
    assert "--rescore_with_new_model" in finished.err
    assert read_live(tmp_path / "out").equals(old)
    finished = run_annotate("--model", other_model, "--rescore_with_new_model", "--commit_every", "0.001s")
    assert finished.status == 0
    new = read_live(tmp_path / "out")
    assert new.column("id").equals(old.column("id"))
    assert not new.column("probabilities").equals(old.column("probabilities"))
    assert len({pq.read_schema(path).metadata[b"torchmoji.fingerprint"] for path in live_files("out")}) == 1
    assert is_sound(run_verify)
    assert "nothing is new" in run_annotate("--model", other_model).out
    paths[0].unlink()
    assert run_annotate("--rescore_with_new_model").status == 2
    finished = run_annotate("--rescore_with_new_model", "--on_vanished", "retire")
    assert finished.status == 0
    assert len(ids(tmp_path / "out")) == 20
    assert is_sound(run_verify)


def test_readers_see_the_old_results_until_the_new_model_has_scored_all(
    tmp_path: Path, run_annotate: Run, run_verify: Run, other_model: str
) -> None:
    paths = corpus(tmp_path / "in", 3, 10)
    assert run_annotate().status == 0
    old = read_live(tmp_path / "out")
    # A file that is too young keeps the new generation from being complete.
    os.utime(paths[0], (time.time() - 3600,) * 2)
    os.utime(paths[1], (time.time() - 3600,) * 2)
    finished = run_annotate("--model", other_model, "--rescore_with_new_model", "--settle", "10m")
    assert finished.status == 0
    assert "the old results stay" in finished.out
    assert read_live(tmp_path / "out").equals(old)
    assert is_sound(run_verify)
    finished = run_annotate("--model", other_model, "--rescore_with_new_model")
    assert read_count(finished) == 10
    assert not read_live(tmp_path / "out").column("probabilities").equals(old.column("probabilities"))
    assert is_sound(run_verify)


# --- layout and readers ----------------------------------------------------------------------------------------------


def partitions(output: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in map(Path, live_files(str(output))):
        names = pq.read_table(path, partitioning=None).column("id").to_pylist()
        found.setdefault(str(path.parent.relative_to(output)), []).extend(names)
    return {name: sorted(rows) for name, rows in found.items()}


def test_directories_are_days_of_timestamps(tmp_path: Path, run_annotate: Run) -> None:
    rows: list[object] = [
        {"id": "1", "text": "i", "created": "2026-01-31T23:59:59Z"},
        {"id": "2", "text": "i", "created": "2026-02-01T01:30:00+02:00"},
        {"id": "3", "text": "you", "created": -1},
        {"id": "4", "text": "you"},
    ]
    write_lines_of(tmp_path / "in" / "a.jsonl", rows)
    assert run_annotate("--timestamp_field", "created").status == 0
    assert partitions(tmp_path / "out") == {
        "date=2026-01-31": ["1", "2"],
        "date=1969-12-31": ["3"],
        "date=__HIVE_DEFAULT_PARTITION__": ["4"],
    }


def test_directories_are_days_of_files_without_timestamps(tmp_path: Path, run_annotate: Run) -> None:
    for path, day in zip(corpus(tmp_path / "in", 2, 2), (1, 2), strict=True):
        os.utime(path, (datetime(2026, 3, day, 12, tzinfo=UTC).timestamp(),) * 2)
    assert run_annotate().status == 0
    assert partitions(tmp_path / "out") == {"date=2026-03-01": ["0-0", "0-1"], "date=2026-03-02": ["1-0", "1-1"]}


def test_directories_are_values_of_fields(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    hostile = ["../../up", "/etc/passwd", "..", ".", "a=b/c=d", "nul\0", "new\nline", "😂", "*?[x]", "", "x" * 300, " "]
    hostile.append("__HIVE_DEFAULT_PARTITION__")
    rows: list[object] = [{"id": f"{n:02}", "text": "so late", "lang": value} for n, value in enumerate(hostile)]
    write_lines_of(tmp_path / "in" / "a.jsonl", rows)
    before = {path.name for path in tmp_path.parent.iterdir()}
    assert run_annotate("--partition_by", "lang", "--max_dead_fraction", "0.2").status == 0
    assert {path.name for path in tmp_path.parent.iterdir()} == before
    assert all(name.startswith("lang=") and "/" not in name for name in partitions(tmp_path / "out"))
    assert [letter["reason"] for letter in read_dead_letters(tmp_path / "out")] == [
        "partition field 'lang' makes a name of more than 255 bytes",
        "partition field 'lang' is '__HIVE_DEFAULT_PARTITION__', which readers take for a missing value",
    ]
    table = read_live(tmp_path / "out")
    values = dict(zip(table.column("id").to_pylist(), table.column("lang").to_pylist(), strict=True))
    assert values == {f"{n:02}": value or None for n, value in enumerate(hostile[:-1]) if len(value) < 300}
    assert is_sound(run_verify)


def test_a_partition_is_no_column() -> None:
    with pytest.raises(InputError, match="do not keep it as well"):
        parse(["--input", "in", "--output", "out", "--partition_by", "lang", "--keep_fields", "lang"])


def test_rows_may_be_in_no_partitions(tmp_path: Path, run_annotate: Run) -> None:
    corpus(tmp_path / "in", 1, 6)
    assert run_annotate("--partition_by", "").status == 0
    assert partitions(tmp_path / "out").keys() == {"."}


def test_text_lines_have_days_and_sources_too(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.txt"
    path.write_text("so happy\nso late\n")
    os.utime(path, (86_400, 86_400))
    assert run_annotate().status == 0
    table = read_live(tmp_path / "out")
    assert table.column("source").to_pylist() == [str(path)] * 2
    assert table.column("date").to_pylist() == ["1970-01-02"] * 2
    assert is_sound(run_verify)


# --- security --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "files", "directories"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_have_the_permissions_that_the_umask_leaves(
    tmp_path: Path, run_annotate: Run, umask: int, files: int, directories: int
) -> None:
    write_lines_of(tmp_path / "in" / "a.jsonl", [{"id": "1", "text": "i"}, "{broken"])
    before = os.umask(umask)
    try:
        assert run_annotate("--max_dead_fraction", "1").status == 0
    finally:
        os.umask(before)
    found = list((tmp_path / "out").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {files}
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {directories}


def test_manifests_hold_no_credentials(tmp_path: Path, model: str, run_annotate: Run) -> None:
    corpus(tmp_path / "in", 1, 2)
    shutil.make_archive(str(tmp_path / "model"), "zip", model)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://someone:hunter2@127.0.0.1:{server.server_port}/model.zip"
        finished = run_annotate("--model", address)
        assert finished.status == 0
        assert "nothing is new" in run_annotate("--model", address).out
    finally:
        server.shutdown()
        server.server_close()
    said = finished.out + finished.err
    written = "".join(path.read_text() for path in (tmp_path / "out" / "_manifests").iterdir())
    assert "hunter2" not in said + written


def test_a_data_set_of_the_former_version_is_gone_on_with(
    tmp_path: Path, run_annotate: Run, run_verify: Run, run_compact: Run
) -> None:
    corpus(tmp_path / "in", 2, 5)
    assert run_annotate("--commit_every", "0.001s").status == 0
    for path in sorted((tmp_path / "out" / "_manifests").iterdir()):
        content = json.loads(path.read_text())
        path.with_name(f"{path.stem}-{content['run_id']}.json").write_text(json.dumps(content | {"version": 2}))
        path.unlink()
    assert is_sound(run_verify)
    corpus(tmp_path / "in", 1, 5, first=2)
    assert "1 new, 2 unchanged" in run_annotate().out
    assert (tmp_path / "out" / "_manifests" / "00000003.json").exists()
    assert is_sound(run_verify)
    assert len(ids(tmp_path / "out")) == 15
    assert run_compact().status == 0
    assert "3 unchanged" in run_annotate().out
    assert is_sound(run_verify)


def test_an_interrupt_right_after_a_commit_leaves_nothing_behind(
    tmp_path: Path, run_annotate: Run, run_verify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "in", 2, 5)

    remove, interrupts = recovery.remove_temporary, iter([KeyboardInterrupt])

    def interrupt(output: str, run_id: str) -> None:
        for error in interrupts:
            raise error
        remove(output, run_id)

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "remove_temporary", interrupt)
        assert run_annotate().status == 130
    assert not (tmp_path / "out" / "_tmp").exists() and not (tmp_path / "out" / "_lock.json").exists()
    assert is_sound(run_verify)
    assert len(ids(tmp_path / "out")) == 10
