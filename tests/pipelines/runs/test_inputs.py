"""Inputs as they really lie about: names of any bytes, pipes, links to nowhere, what is unmounted, replaced or junk."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import annotate
from pipelines.data_set import manifest, rewrite
from pipelines.data_set.manifest import DataFile
from pipelines.data_set.rewrite import Rewriter
from pipelines.data_set.snapshot import DataSet
from tests.pipelines.conftest import Finished, corpus, posts, read_dead_letters, read_live, read_scores, write_lines
from tests.transforms.storage.test_listing import NAMES, break_directory
from torchmoji_core.bundle import Bundle
from torchmoji_core.files import name_as_text, name_from_text
from torchmoji_core.inference.scores import valid_unicode
from transforms.input import formats, parts, read

Run = Callable[..., Finished]
NOBODY = 65534


@pytest.fixture
def annotate_of(model: str, run_main: Run) -> Run:
    """The annotate command into `out`, of the inputs that the options say."""
    return partial(run_main, annotate.main, "--model", model, "--progress", "off", "--output", "out")


def ids(output: Path) -> list[str]:
    return read_live(output).column("id").to_pylist()


def path_of(directory: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(directory) + b"/" + name))


def one_post(path: Path, id: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_lines(path, [{"id": id, "text": "so happy"}])


def replace_content(path: Path) -> None:
    """Other content of the same length, with the times set back; the clock that cannot be set has gone on."""
    before = path.stat()
    content = path.read_bytes().replace(b"happy", b"sadly")
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def assert_sound(run_verify: Run) -> None:
    finished = run_verify()
    assert finished.status == 0, finished.out


# --- names ---------------------------------------------------------------------------------------------------------


def test_files_of_any_name_are_told_from_each_other(tmp_path: Path, annotate_of: Run, run_verify: Run) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(NAMES):
        path_of(tmp_path / "in", name).write_text(f"so happy {number}\nnot \udcff\n", errors="surrogateescape")
    assert annotate_of("--max_dead_fraction", "1", "--input", "in", "in/.*", "--format", "text").status == 0
    expected = {name_as_text(str(path_of(tmp_path / "in", name))): number for number, name in enumerate(NAMES)}
    table = read_live(tmp_path / "out")
    found = dict(zip(table.column("source").to_pylist(), table.column("text").to_pylist(), strict=True))
    assert found == {source: f"so happy {number}" for source, number in expected.items()}
    assert {os.fsencode(name_from_text(source)).rpartition(b"/")[2] for source in found} == set(NAMES)
    assert sorted(letter["source"] for letter in read_dead_letters(tmp_path / "out")) == sorted(expected)
    assert_sound(run_verify)


def test_a_change_of_one_file_touches_no_other_rows(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    names = [b"latin\xe9.jsonl", b"latin\xe8.jsonl", b"latin\xef\xbf\xbd.jsonl", b"latin%E9.jsonl"]
    paths = [path_of(tmp_path / "in", name) for name in names]
    for number, path in enumerate(paths):
        one_post(path, f"{number}")
        with path.open("a") as file:
            file.write("broken\n")
    assert run_annotate("--max_dead_fraction", "1").status == 0
    assert_sound(run_verify)
    write_lines(paths[0], [{"id": "0-new", "text": "so late"}])
    assert run_annotate("--max_dead_fraction", "1").status == 0
    assert ids(tmp_path / "out") == ["0-new", "1", "2", "3"]
    assert_sound(run_verify)
    paths[1].unlink()
    assert run_annotate("--max_dead_fraction", "1", "--on_vanished", "retire").status == 0
    assert ids(tmp_path / "out") == ["0-new", "2", "3"]
    live = DataSet.read("out").live
    letters = [source for file in live.dead_letters.values() for source in file.sources]
    assert sorted(letters) == sorted(name_as_text(str(path)) for path in paths[2:])
    assert_sound(run_verify)


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Sources as they were when names that are no UTF-8 had U+FFFD in them, until it is undone."""
    with monkeypatch.context() as patched:
        for module in (read, parts, manifest, rewrite):
            patched.setattr(module, "name_as_text", valid_unicode)
        yield patched


def test_data_sets_of_earlier_versions_are_gone_on_with(
    tmp_path: Path, run_annotate: Run, run_verify: Run, as_before: pytest.MonkeyPatch
) -> None:
    path = path_of(tmp_path / "in", b"latin\xe9.jsonl")
    one_post(path, "old")
    one_post(tmp_path / "in" / "other.jsonl", "other")
    assert run_annotate().status == 0
    as_before.undo()
    assert_sound(run_verify)
    finished = run_annotate()
    assert "nothing is new" in finished.out
    write_lines(path, [{"id": "newer", "text": "so late"}])
    assert run_annotate().status == 0
    assert ids(tmp_path / "out") == ["newer", "other"]
    assert_sound(run_verify)


def test_inputs_that_an_earlier_version_could_not_tell_apart_are_scored_together(
    tmp_path: Path, run_annotate: Run, run_verify: Run, as_before: pytest.MonkeyPatch
) -> None:
    paths = [path_of(tmp_path / "in", name) for name in (b"latin\xe9.jsonl", b"latin\xe8.jsonl", b"plain.jsonl")]
    for number, path in enumerate(paths):
        one_post(path, f"{number}")
        assert run_annotate().status == 0
    as_before.undo()
    write_lines(paths[0], [{"id": "0-new", "text": "so late"}])
    paths[1].rename(tmp_path / "away")
    finished = run_annotate()
    assert finished.status == 2
    assert "cannot be told from those of another" in finished.err
    assert ids(tmp_path / "out") == ["0", "1", "2"]
    (tmp_path / "away").rename(paths[1])
    assert run_annotate("--commit_every", "0.000001s").status == 0
    assert ids(tmp_path / "out") == ["0-new", "1", "2"]
    assert_sound(run_verify)
    paths[1].unlink()
    assert run_annotate("--on_vanished", "retire").status == 0
    assert ids(tmp_path / "out") == ["0-new", "2"]
    assert_sound(run_verify)


def test_dead_letters_of_earlier_versions_keep_the_source_of_their_rows(tmp_path: Path) -> None:
    names = ["/in/latin\udce9.jsonl", "/in/latin\udcff\udcff.jsonl", "/in/plain.jsonl"]
    sources = {valid_unicode(name): 1 for name in names}
    content = b"".join(json.dumps({"source": name}).encode() + b"\n" for name in names)
    (tmp_path / "old.jsonl").write_bytes(content)
    old = DataFile("old.jsonl", 3, len(content), "", sources)
    new = Rewriter(str(tmp_path), "run").dead_letters_without(old, {valid_unicode(names[1]), name_as_text(names[1])})
    assert new is not None
    assert new.sources == {valid_unicode(names[0]): 1, names[2]: 1}
    assert (tmp_path / new.path).read_bytes().splitlines() == content.splitlines()[::2]


def test_a_named_file_is_no_glob(tmp_path: Path, run_score: Run, annotate_of: Run) -> None:
    for number, name in enumerate(("a[1].jsonl", "a1.jsonl", "b*.jsonl", "bb.jsonl")):
        one_post(tmp_path / "in" / name, str(number))
    assert run_score("--input", "in/a[1].jsonl", "in/b*.jsonl", "--output", "scored").status == 0
    assert read_scores(tmp_path / "scored").column("id").to_pylist() == ["0", "2"]
    assert annotate_of("--input", "in/a[1].jsonl", "in/bb.jsonl").status == 0
    (tmp_path / "in" / "a[1].jsonl").unlink()
    finished = annotate_of("--input", "in/a[1].jsonl", "in/bb.jsonl", "--on_vanished", "retire")
    assert (finished.status, ids(tmp_path / "out")) == (0, ["3"]), "and not a1.jsonl in its place"


# --- what is no regular file ---------------------------------------------------------------------------------------


def make_irregular(directory: Path) -> list[str]:
    directory.mkdir(exist_ok=True)
    os.mkfifo(directory / "pipe.jsonl")
    (directory / "zero.jsonl.gz").symlink_to("/dev/zero")
    (directory / "terminal.txt").symlink_to("/dev/ptmx")
    (directory / "dangling.csv").symlink_to("nothing")
    (directory / "loop.parquet").symlink_to("loop.parquet")
    (directory / "directory.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(directory / "socket.tsv"))
    return sorted(path.name for path in directory.iterdir())


def test_what_is_no_file_is_reported_and_the_others_are_scored(
    tmp_path: Path, run_annotate: Run, run_verify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    irregular = make_irregular(tmp_path / "in")
    corpus(tmp_path / "in", 2, 5)
    for _ in range(2):
        finished = run_annotate("--report", str(tmp_path / "report.json"))
        assert finished.status == 1
        assert finished.err.count("cannot be opened") == len(irregular) == 7
        assert all(f"/in/{name} cannot be opened: " in finished.err for name in irregular)
        assert "Traceback" not in finished.err
        assert len(ids(tmp_path / "out")) == 10
    assert json.loads((tmp_path / "report.json").read_text())["inputs_unreadable"] == 7
    assert_sound(run_verify)


@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_an_input_that_is_no_file_any_more_has_not_changed(
    tmp_path: Path, run_annotate: Run, run_verify: Run, policy: str
) -> None:
    corpus(tmp_path / "in", 2, 5)
    assert run_annotate().status == 0
    path = tmp_path / "in" / "0000.jsonl"
    path.unlink()
    os.mkfifo(path)
    finished = run_annotate("--on_changed", policy)
    assert finished.status == 1
    assert f"failed: input {path} cannot be opened: " in finished.err
    assert len(ids(tmp_path / "out")) == 10
    assert_sound(run_verify)


def test_in_a_directory_each_is_a_dead_letter_of_score(
    tmp_path: Path, run_score: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    irregular = make_irregular(tmp_path / "in")
    corpus(tmp_path / "in", 4, 25)
    finished = run_score("--input", "in", "--output", "out")
    assert finished.status == 0
    irregular.remove("directory.jsonl")  # what is in it is read
    assert "unreadable  6 file(s), a dead letter each" in finished.out
    assert read_scores(tmp_path / "out").num_rows == 100
    assert sorted(Path(letter["source"]).name for letter in read_dead_letters(tmp_path / "out")) == irregular


def test_score_refuses_what_is_no_file_and_is_named(
    tmp_path: Path, run_score: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_post(tmp_path / "good.jsonl", "1")
    for name in make_irregular(tmp_path / "in"):
        if name not in ("directory.jsonl", "pipe.jsonl"):  # a pipe that is named is read
            finished = run_score("--input", f"in/{name}", "good.jsonl", "--output", "out")
            assert finished.status == 2
            assert finished.err.startswith("error: input ") and finished.err.count("\n") == 1
            assert name in finished.err
    assert not (tmp_path / "out").exists()


# --- what cannot be listed, or is not mounted ----------------------------------------------------------------------


def test_what_cannot_be_listed_is_not_gone(
    tmp_path: Path, annotate_of: Run, run_score: Run, run_verify: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--input", "in/**.jsonl", "--on_vanished", "retire")
    for number in range(3):
        one_post(tmp_path / "in" / f"{number}.jsonl", f"{number}")
    one_post(tmp_path / "in" / "deep" / "x.jsonl", "deep")
    assert annotate_of(*options).status == 0
    (tmp_path / "in" / "0.jsonl").unlink()
    one_post(tmp_path / "in" / "3.jsonl", "3")
    with monkeypatch.context() as patched:
        break_directory(patched, tmp_path / "in" / "deep", 5)
        finished = annotate_of(*options)
        assert finished.status == 1
        assert f"failed: directory {tmp_path}/in/deep cannot be listed: [Errno 5]" in finished.err
        assert ids(tmp_path / "out") == ["1", "2", "3", "deep"]
        finished = run_score("--input", "in/**.jsonl", "--output", "scored")
        assert (finished.status, finished.err.count("\n")) == (2, 1)
        assert f"input {tmp_path}/in/deep: cannot be listed" in finished.err
        finished = annotate_of("--input", "in/deep/*")
        assert finished.status == 1
    assert_sound(run_verify)
    assert annotate_of(*options).status == 0


def test_a_filesystem_that_is_not_mounted_is_not_gone(tmp_path: Path, annotate_of: Run, run_verify: Run) -> None:
    options = ("--input", "one/*.jsonl", "disks/*/*.jsonl", "--on_vanished", "retire")
    (tmp_path / "disks").mkdir()
    for name in ("one/a", "one/b", "disks/1/c", "disks/2/d", "disks/2/e"):
        one_post(tmp_path / f"{name}.jsonl", name[-1])
    assert annotate_of(*options).status == 0
    (tmp_path / "disks" / "2").rename(tmp_path / "unmounted")
    (tmp_path / "disks" / "2").mkdir()
    (tmp_path / "one" / "b.jsonl").unlink()
    finished = annotate_of(*options)
    assert finished.status == 1
    assert "not retired: the rows of 2 input(s)" in finished.err
    assert f"{tmp_path}/disks/2 is empty" in finished.err
    assert ids(tmp_path / "out") == ["a", "c", "d", "e"]

    (tmp_path / "one").rename(tmp_path / "gone")
    finished = annotate_of(*options)
    assert finished.status == 1
    assert f"nothing that {tmp_path}/one/*.jsonl matches is there" in finished.err
    assert ids(tmp_path / "out") == ["a", "c", "d", "e"]

    (tmp_path / "gone").rename(tmp_path / "one")
    (tmp_path / "disks" / "2").rmdir()
    assert annotate_of(*options).status == 0
    assert ids(tmp_path / "out") == ["a", "c"]
    assert_sound(run_verify)


def test_what_is_behind_a_link_to_nowhere_is_not_gone(tmp_path: Path, annotate_of: Run, run_verify: Run) -> None:
    one_post(tmp_path / "in" / "a.jsonl", "a")
    one_post(tmp_path / "disk" / "b.jsonl", "b")
    (tmp_path / "in" / "archive").symlink_to(tmp_path / "disk")
    options = ("--input", "in/a.jsonl", "in/archive/b.jsonl", "--on_vanished", "retire")
    assert annotate_of(*options).status == 0
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    finished = annotate_of(*options)
    assert finished.status == 1
    assert f"{tmp_path}/in/archive is a link that leads nowhere" in finished.err
    assert ids(tmp_path / "out") == ["a", "b"]
    assert_sound(run_verify)


# --- one file does not stop the others -----------------------------------------------------------------------------


def test_names_that_tell_no_format_are_passed_over(
    tmp_path: Path, run_annotate: Run, annotate_of: Run, run_score: Run
) -> None:
    corpus(tmp_path / "in", 2, 5)
    for name in (".DS_Store", ".tweets.jsonl.gz.Ab12cd", "README", "Thumbs.db", "0.jsonl.part"):
        (tmp_path / "in" / name).write_bytes(b"\0\1\2")
    for name in (".writing.jsonl", "_half.jsonl"):
        write_lines(tmp_path / "in" / name, [{"id": name, "text": "so late"}, "{"])
    finished = run_annotate("--report", "report.json")
    assert finished.status == 0
    assert "passed over 7 whose names tell no format or begin with . or _" in finished.out
    assert json.loads((tmp_path / "report.json").read_text())["inputs_passed_over"] == 7
    assert run_score("--input", "in/_*", "--output", "halves", "--max_dead_fraction", "1").status == 0
    assert read_scores(tmp_path / "halves")["id"].to_pylist() == ["_half.jsonl"]
    finished = run_score("--input", "in", "--output", "scored")
    assert finished.status == 0
    assert "passed over 7 whose names" in finished.out
    for command in (annotate_of, run_score):
        finished = command("--input", "in/.DS_Store", "in/0000.jsonl", "--output", "other")
        assert finished.status == 2
        assert ".DS_Store: the name does not tell its format; give --format" in finished.err
    finished = run_score("--input", "in/*.part", "--output", "other")
    assert finished.status == 2
    assert "0.jsonl.part" in finished.err and "--format {" in finished.err
    finished = run_score("--input", "in/*.part", "in/.D*", "--output", "other", "--format", "jsonl", "--dry_run")
    assert finished.status == 0, "as the message before has advised"


def test_the_first_files_do_not_decide_for_all(tmp_path: Path, run_annotate: Run, run_verify: Run) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "00-empty.jsonl").touch()
    (source / "01-corrupt.parquet").write_bytes(b"PAR1 and nothing more")
    os.mkfifo(source / "02-pipe.jsonl")
    (source / "03-notes.txt").write_text("so happy\n")
    (source / "04-cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    for number in range(30):
        write_lines(source / f"10-{number:02}.jsonl", [{"id": f"none-{number}", "title": "no text"}])
    pq.write_table(pa.table({"id": ["p"], "text": ["so late"], "at": [5], "likes": [None]}), source / "20.parquet")
    rows: list[object] = [{"id": f"{n}", "text": "so late", "at": 7, "likes": 3} for n in range(5)]
    write_lines(source / "30.jsonl", rows)
    options = ("--timestamp_field", "at", "--keep_fields", "likes", "--max_dead_fraction", "1")
    finished = run_annotate(*options)
    assert finished.status == 1
    assert finished.err.count("cannot be opened") == 1
    assert "likes (int64)" in finished.out
    table = read_live(tmp_path / "out")
    found: dict[str, Any] = dict(zip(table.column("id").to_pylist(), table.column("likes").to_pylist(), strict=True))
    assert len(found) == 7
    assert [found["p"], found["0"]] == [None, 3]
    assert len(read_dead_letters(tmp_path / "out")) == 32
    assert_sound(run_verify)


def test_a_file_of_no_use_does_not_stop_the_annotation_of_others(
    tmp_path: Path, run_annotate: Run, run_score: Run, run_verify: Run
) -> None:
    corpus(tmp_path / "in", 2, 5)
    (tmp_path / "in" / "00.csv").write_text("id,text,text\n1,a,b\n")
    finished = run_score("--input", "in", "--output", "scored")
    assert finished.status == 2 and "column text is there twice" in finished.err
    finished = run_annotate("--max_dead_fraction", "1")
    assert finished.status == 0
    assert len(read_live(tmp_path / "out")) == 10
    (letter,) = read_dead_letters(tmp_path / "out")
    assert "column text is there twice" in letter["reason"]
    assert_sound(run_verify)


def test_fields_that_are_in_no_file_are_refused(tmp_path: Path, run_score: Run) -> None:
    corpus(tmp_path / "in", 30, 2)
    finished = run_score("--input", "in", "--output", "out", "--keep_fields", "mood")
    assert finished.status == 2
    assert "kept field 'mood' is in no record" in finished.err
    finished = run_score("--input", "in", "--output", "out", "--text_field", "tekst")
    assert finished.status == 2
    assert "no record has a text" in finished.err


# --- replaced while it is read -------------------------------------------------------------------------------------


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something happen after the first records of the first file that is read."""

    def register(action: Callable[[], None]) -> None:
        read_records, waiting = formats.read_records, [action]

        def reading(*arguments: Any) -> Iterator[Any]:
            for number, record in enumerate(read_records(*arguments)):
                if number == 3 and waiting:
                    waiting.pop()()
                yield record

        monkeypatch.setattr(parts, "read_records", reading)

    return register


def by_rename(path: Path) -> None:
    """As tools do that write a new file and put it in the place of the old one, times and all."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    replace_content(other)
    other.rename(path)


@pytest.mark.parametrize(("name", "replace"), [("x.jsonl", replace_content), ("x.parquet", by_rename)])
def test_a_file_that_is_replaced_while_it_is_read_is_noticed(
    tmp_path: Path,
    run_score: Run,
    run_annotate: Run,
    run_verify: Run,
    meanwhile: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    replace: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 500)
    monkeypatch.setattr(parts, "PART_ROWS", 10)
    (tmp_path / "in").mkdir()
    one_post(tmp_path / "in" / "a.jsonl", "other")
    path = tmp_path / "in" / name

    def write() -> None:
        write_lines(path, posts(50))
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(posts(50)), path)

    write()
    meanwhile(lambda: replace(path))
    finished = run_score("--input", "in", "--output", "scored")
    assert finished.status == 1
    assert f'failed: input "{path}" changed while it was read' in finished.err
    assert finished.err.count("\n") == 1
    assert not list((tmp_path / "scored").glob("*.parquet"))

    write()
    meanwhile(lambda: replace(path))
    finished = run_annotate()
    assert finished.status == 0
    assert f"left to the next run: {path} changed while it was read" in finished.err
    assert ids(tmp_path / "out") == ["other"]
    assert run_annotate().status in (0, 3)
    assert len(read_live(tmp_path / "out")) + len(read_dead_letters(tmp_path / "out")) == 51
    assert_sound(run_verify)


def test_a_copy_with_its_times_kept_is_not_scored_again(tmp_path: Path, run_annotate: Run) -> None:
    paths = corpus(tmp_path / "in", 2, 5)
    assert run_annotate().status == 0
    for path in paths:
        shutil.copy2(path, tmp_path / "copy")
        (tmp_path / "copy").rename(path)
    assert "nothing is new" in run_annotate().out


@pytest.fixture
def as_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, run_annotate: Run, run_verify: Run
) -> Iterator[Path]:
    """The rights of somebody whom permissions bind, as they do not bind root, in a directory of their own."""
    corpus(tmp_path / "in", 1, 2)
    assert run_annotate().status == 0  # so that all modules are there, which others may not be allowed to read
    assert_sound(run_verify)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(model, f"{directory}/model")
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        monkeypatch.chdir(directory)
        try:
            yield Path(directory)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
                os.setegid(0)
            for path in Path(directory).rglob("*"):
                path.chmod(0o700)


def test_permissions_that_are_missing_cost_nothing_but_themselves(
    as_a_user: Path, run_main: Run, run_verify: Run
) -> None:
    options = ("--model", "model", "--progress", "off", "--input", "in/**.jsonl", "--on_vanished", "retire")
    run_annotate = partial(run_main, annotate.main, *options, "--output", "out")
    corpus(as_a_user / "in", 3, 5)
    one_post(as_a_user / "in" / "locked" / "x.jsonl", "locked")
    (as_a_user / "in" / "0001.jsonl").chmod(0)
    finished = run_annotate()
    assert finished.status == 1
    assert "0001.jsonl cannot be opened: [Errno 13]" in finished.err
    (as_a_user / "in" / "locked").chmod(0o300)
    (as_a_user / "in" / "0002.jsonl").unlink()
    one_post(as_a_user / "in" / "0003.jsonl", "new")
    finished = run_annotate()
    assert finished.status == 1
    assert finished.err.count("failed: ") == 2
    assert f"directory {as_a_user}/in/locked cannot be listed: [Errno 13]" in finished.err
    assert ids(as_a_user / "out") == ["0-0", "0-1", "0-2", "0-3", "0-4", "locked", "new"]
    assert_sound(run_verify)


# --- other files that commands take --------------------------------------------------------------------------------


COMMANDS = [
    "convert --output new --vocabulary vocabulary.json --checkpoint FILE",
    "convert --output new --checkpoint checkpoint.bin --vocabulary FILE",
    "convert --output new --checkpoint checkpoint.bin --vocabulary vocabulary.json --classes FILE",
    "pretrain --data texts.jsonl --output new --card FILE",
    "finetune --data texts.jsonl --output new --checkpoint FILE",
    "finetune --data FILE --output new",
    "score --input texts.jsonl --output new --model FILE",
]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (command, kind)
        for command in COMMANDS
        for kind in ("pipe", "/dev/zero", "directory")
        if not (kind == "directory" and "--model" in command)  # a bundle may be one
    ],
)
def test_files_that_are_none_are_refused_in_one_line(
    tmp_path: Path, run_main: Run, command: str, kind: str, bundle: Bundle
) -> None:
    name, *arguments = command.split()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "vocabulary.json").write_text(bundle.vocabulary.to_json())
    torch.save(dict(bundle.state), tmp_path / "checkpoint.bin")
    rows = [{"text": "so happy 😂", "label": ("a", "b")[n % 2], "split": "train"} for n in range(20)]
    write_lines(tmp_path / "texts.jsonl", rows)
    main = importlib.import_module(f"pipelines.{name}").main
    finished = run_main(main, *(kind if argument == "FILE" else argument for argument in arguments))
    assert finished.status == 2, finished.err
    said = finished.err.splitlines()[-1]  # behind a progress bar, perhaps
    assert said.startswith("error: ") and kind in said
    assert "Traceback" not in finished.err
