"""ReadTweets on the in-process runner: every record of every file once, as a tweet or as a dead letter."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.transforms.conftest import Ran, Run, functions_of, make_texts
from torchmoji_core.errors import InputError
from transforms import metrics
from transforms.input.fields import FieldMapping, KeptField, position_id
from transforms.input.forms import Form, FormOptions
from transforms.input.inputs import InputFile, match_files
from transforms.input.parts import Split, UnreadableInput, split_file, unreadable_path
from transforms.input.read import ReadTweets
from transforms.records import DeadLetter, Tweet


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(prefix: str, n: int) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}-{index}", "text": text} for index, text in enumerate(make_texts(n))]


def tweets_of(rows: list[dict[str, Any]], path: Path) -> list[Tweet]:
    return [Tweet(row["id"], row["text"], source=str(path)) for row in rows]


def read(run: Run, *patterns: Path | str, **arguments: Any) -> Ran:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        outcome = pipeline | "ReadTweets" >> ReadTweets([str(pattern) for pattern in patterns], **arguments)
        return {"tweets": outcome.results, "dead": outcome.dead_letters | beam.Flatten()}

    return run(build)


def assert_reconciles(ran: Ran) -> None:
    assert ran.count(metrics.READ) == len(ran["tweets"]) + len(ran["dead"])


def test_all_formats_in_one_run(run: Run, tmp_path: Path) -> None:
    names = {name: f"x.{name}" for name in ("jsonl", "csv", "tsv", "parquet")}
    names |= {"gz": "a.jsonl.gz", "bz2": "b.jsonl.bz2", "zst": "c.jsonl.zst"}
    rows = {name: rows_of(name, 20) for name in names}
    lines = make_texts(20, seed=5)
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        file = io.StringIO()
        writer = csv.DictWriter(file, ["id", "text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows[name])
        (tmp_path / f"x.{name}").write_text(file.getvalue())
    pq.write_table(pa.Table.from_pylist(rows["parquet"]), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_bytes(jsonl(rows["jsonl"]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(rows["gz"])))
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(jsonl(rows["bz2"])))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(rows["zst"])))
    (tmp_path / "x.txt").write_text("\n".join(lines))

    ran = read(run, tmp_path / "*")

    named = [tweet for tweet in ran["tweets"] if "-" in tweet.id]
    assert sorted(named) == sorted(tweet for name in names for tweet in tweets_of(rows[name], tmp_path / names[name]))
    assert sorted(tweet.text for tweet in ran["tweets"] if "-" not in tweet.id) == sorted(lines)
    assert all(type(tweet) is Tweet for tweet in ran["tweets"])
    assert ran["dead"] == []
    assert_reconciles(ran)
    assert ran.count(metrics.READ) == 160
    assert ran.count(metrics.FILES_READ) == 8
    assert ran.count(metrics.BYTES_READ) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_files_that_several_patterns_match_are_read_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(rows_of(name, 3)))
    monkeypatch.chdir(tmp_path)
    ran = read(run, tmp_path / "*.jsonl", tmp_path / "one.jsonl", tmp_path / "t*", "*.jsonl", "./two.jsonl")
    assert sorted(ran["tweets"]) == sorted(
        tweet for name in ("one", "two", "three") for tweet in tweets_of(rows_of(name, 3), tmp_path / f"{name}.jsonl")
    )
    assert ran.count(metrics.FILES_READ) == 3


def test_match_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/deeper/d.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)

    def names(*patterns: str) -> list[str]:
        found = match_files(list(patterns))
        assert all(isinstance(file, InputFile) for file in found)
        return [str(Path(file.path).relative_to(tmp_path)) for file in found]

    assert names("*.txt") == ["a.txt", "b.txt"]
    assert names(f"{tmp_path}/**.txt") == ["a.txt", "b.txt", "deep/c.txt", "deep/deeper/d.txt"]
    assert names("b.txt", f"file://{tmp_path}/a.txt") == ["a.txt", "b.txt"]
    os.utime("a.txt", (1_700_000_000.5, 1_700_000_000.5))
    (file,) = match_files(["a.txt"])
    assert file[:3] == (str(tmp_path / "a.txt"), 5, 1_700_000_000.5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.jsonl", "no file matches"),
        ("/no/such/file.jsonl", "no file matches"),
        ("nosuch://bucket/x.jsonl", "cannot be listed.*check the address"),
    ],
)
def test_patterns_that_match_nothing(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        match_files([pattern])
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_matches_nothing_fails_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(Exception, match="no file matches"):
        read(run, tmp_path / "x.txt", tmp_path / "y.txt")


def test_a_truncated_file_among_good_ones(run: Run, tmp_path: Path) -> None:
    good, cut = rows_of("good", 30), rows_of("cut", 2000)
    (tmp_path / "good.jsonl").write_bytes(jsonl(good))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(jsonl(cut))[:-2000])
    pq.write_table(pa.Table.from_pylist(cut), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-100])
    (tmp_path / "whole.parquet").unlink()

    ran = read(run, tmp_path / "*")

    found = {tweet.id for tweet in ran["tweets"]}
    assert {row["id"] for row in good} < found
    n_cut = len(found) - len(good)
    assert 0 < n_cut < 2000
    assert found == {row["id"] for row in (*good, *cut[:n_cut])}
    letters = {Path(letter.source).name: letter for letter in ran["dead"]}
    assert len(ran["dead"]) == len(letters) == 2
    assert int(letters["cut.jsonl.gz"].position) == len(jsonl(cut[:n_cut]))
    assert "cannot be read" in letters["cut.jsonl.gz"].reason
    assert "not a readable Parquet file" in letters["cut.parquet"].reason
    assert_reconciles(ran)


def test_what_is_no_tweet_is_a_dead_letter(run: Run, tmp_path: Path) -> None:
    lines = [
        b'{"id": "1", "text": "fine"}',
        b'{"id": "2"}',
        b'{"id": 3.5, "text": "float"}',
        b'{"id": "4", "text": ["list"]}',
        b"not json",
        b"\xff\xfe",
        b'{"id": "7", "text": "no number", "likes": "many"}',
        b'{"id": "8", "text": "no time", "at": "yesterday"}',
        b'{"id": "9", "text": "kept", "likes": "12", "at": "2024-03-21T08:58:32Z"}',
        b"",
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    ran = read(run, path, fields=FieldMapping(timestamp="at", keep=(KeptField("likes", "int64"),)))
    assert sorted(ran["tweets"]) == [
        Tweet("1", "fine", None, (None,), str(path)),
        Tweet("8", "no time", None, (None,), str(path)),
        Tweet("9", "kept", 1711011512_000000, (12,), str(path)),
    ]
    assert {letter.raw for letter in ran["dead"]} == set(lines[1:7])
    assert all(type(letter) is DeadLetter and letter.source == str(path) for letter in ran["dead"])
    content = path.read_bytes()
    assert all(content[int(letter.position) :].startswith(letter.raw) for letter in ran["dead"])
    assert_reconciles(ran)
    assert ran.count(metrics.READ) == 9


def test_dead_rows_of_parquet_have_their_content(run: Run, tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "fine"}, {"id": "2", "text": None}, {"id": "3", "text": "also"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    ran = read(run, tmp_path / "x.parquet")
    (letter,) = ran["dead"]
    assert (letter.position, json.loads(letter.raw)) == ("1", rows[1])
    assert_reconciles(ran)


def test_missing_columns_make_dead_letters(run: Run, tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["a", "b", "c"]}), tmp_path / "x.parquet")
    ran = read(run, tmp_path / "x.parquet")
    assert sorted(letter.position for letter in ran["dead"]) == ["0", "1", "2"]
    assert all("no text" in letter.reason for letter in ran["dead"])
    assert_reconciles(ran)


def test_nested_columns(run: Run, tmp_path: Path) -> None:
    rows = [{"data": {"text": "deep", "id": "7", "lang": "en"}, "user": {"name": "ann", "x": 1}, "unused": "u"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_bytes(jsonl(rows))
    fields = FieldMapping(keep=(KeptField("data.lang"), KeptField("user", "json")))
    ran = read(run, tmp_path / "x.*", fields=fields)
    assert sorted(ran["tweets"]) == [
        Tweet("7", "deep", None, ("en", '{"name": "ann", "x": 1}'), str(tmp_path / name))
        for name in ("x.jsonl", "x.parquet")
    ]


def test_unreadable_files_are_one_dead_letter_each(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.docx").write_text("what is this")
    (tmp_path / "x.txt").write_text("hello\n")
    ran = read(run, tmp_path / "*")
    assert [tweet.text for tweet in ran["tweets"]] == ["hello"]
    (letter,) = ran["dead"]
    assert letter.source == str(tmp_path / "x.docx")
    assert "does not tell its format" in letter.reason
    assert_reconciles(ran)


def test_a_given_format_is_used_for_all_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("hello\nworld\n")
    ran = read(run, tmp_path / "x.log", form=FormOptions("text"))
    assert sorted(tweet.text for tweet in ran["tweets"]) == ["hello", "world"]


def test_a_file_that_vanishes_after_it_was_found(run: Run, tmp_path: Path) -> None:
    part = Split(InputFile(str(tmp_path / "gone.txt"), 10), Form("text"), 0, 10, 10)
    (read_parts,) = functions_of(ReadTweets([part.file]), "ReadParts")

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        read = pipeline | beam.Create([part]) | beam.ParDo(read_parts).with_outputs("dead", main="tweets")
        return {"tweets": read["tweets"], "dead": read["dead"]}

    ran = run(build)
    (letter,) = ran["dead"]
    assert letter.source == part.file.path
    assert "cannot be opened" in letter.reason
    assert_reconciles(ran)


def test_ids_are_stable_and_unique(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("same\n" * 50)
    whole = read(run, tmp_path / "*.txt")
    assert len({tweet.id for tweet in whole["tweets"]}) == 100
    monkeypatch.setattr("transforms.input.parts.PART_BYTES", 17)
    monkeypatch.chdir(tmp_path)
    again = read(run, "*.txt")
    assert sorted(again["tweets"]) == sorted(whole["tweets"])
    assert position_id(str(tmp_path / "a.txt"), 5) in {tweet.id for tweet in whole["tweets"]}


def test_a_big_file_is_read_in_parts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of("row", 300)
    path = tmp_path / "big.jsonl"
    path.write_bytes("\ufeff".encode() + jsonl(rows) + b'{"id": "bad"}\n')
    monkeypatch.setattr("transforms.input.parts.PART_BYTES", 1000)
    parts = list(split_file(InputFile(str(path), path.stat().st_size)))
    assert len(parts) > 20
    assert sum(part.bytes_ for part in parts) == path.stat().st_size
    ran = read(run, path)
    assert sorted(ran["tweets"]) == sorted(tweets_of(rows, path))
    assert len(ran["dead"]) == 1
    assert ran.count(metrics.BYTES_READ) == path.stat().st_size
    assert_reconciles(ran)


@pytest.mark.parametrize("group", [3, 16, 1000])
def test_big_parquet_is_read_in_parts(group: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of("row", 100)
    path = tmp_path / "big.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    monkeypatch.setattr("transforms.input.parts.PART_ROWS", 7)
    assert len(list(split_file(InputFile(str(path), path.stat().st_size)))) == 15
    ran = read(run, path)
    assert sorted(ran["tweets"]) == sorted(tweets_of(rows, path))
    assert_reconciles(ran)


def test_compressed_and_csv_files_are_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transforms.input.parts.PART_BYTES", 10)
    for name, content, form, layout in (
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 99), Form("jsonl", ("gz",)), None),
        ("x.csv", b"id,text,label\n" + b"1,hi,2\n" * 99, Form("csv"), "plain"),
    ):
        (tmp_path / name).write_bytes(content)
        file = InputFile(str(tmp_path / name), 1000, 7.5)
        assert list(split_file(file)) == [Split(file, form, 0, None, 1000, layout)]


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.csv", "empty.jsonl.gz"])
def test_empty_files(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    ran = read(run, tmp_path / name)
    assert (ran["tweets"], ran["dead"], ran.count(metrics.READ)) == ([], [], 0)
    assert ran.count(metrics.FILES_READ) == 1


def test_progress_is_left_in_its_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    (tmp_path / "x.txt").write_text("hello\n" * 10)
    read(run, tmp_path / "x.txt", progress=str(tmp_path / "progress"))
    assert metrics.Progress.total(str(tmp_path / "progress")) == (0, 60)


def test_types_of_the_outputs_are_known() -> None:
    """So that Beam uses the coders of `records`; with an unknown type it pickles."""
    outcome = beam.Pipeline() | ReadTweets(["x.txt"])
    assert outcome.results.element_type is Tweet
    assert {letters.element_type for letters in outcome.dead_letters} == {DeadLetter}


# --- strict --------------------------------------------------------------------------------------------------------


def listed(*paths: Path) -> list[InputFile]:
    return [InputFile(str(path), path.stat().st_size, path.stat().st_mtime) for path in paths]


def read_strictly(run: Run, files: list[InputFile], **arguments: Any) -> Ran:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        outcome = pipeline | "ReadTweets" >> ReadTweets(files, strict=True, **arguments)
        return {"tweets": outcome.results, "dead": outcome.dead_letters | beam.Flatten()}

    return run(build)


def test_files_that_were_listed_are_read_as_they_are_named(run: Run, tmp_path: Path) -> None:
    """No glob is made of them."""
    paths = [tmp_path / "a[1].jsonl", tmp_path / "b*.jsonl"]
    for path in (*paths, tmp_path / "a1.jsonl", tmp_path / "bb.jsonl"):
        path.write_bytes(jsonl(rows_of(path.name, 3)))
    ran = read_strictly(run, [*listed(*paths), *listed(paths[0])])
    assert sorted(ran["tweets"]) == sorted(tweet for path in paths for tweet in tweets_of(rows_of(path.name, 3), path))
    assert ran.count(metrics.FILES_READ) == 2


@pytest.mark.parametrize(
    "name", ["gone.jsonl", "gone.parquet", "gone.csv.gz", 'quo"ted \\ näme.jsonl', "line\nbreak.txt"]
)
def test_a_file_that_cannot_be_opened_fails_a_strict_run_by_its_name(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("hello\n")
    missing = InputFile(str(tmp_path / name), 10, 5.0)
    with pytest.raises(Exception, match="UnreadableInput") as caught:
        read_strictly(run, [*listed(tmp_path / "good.txt"), missing])
    assert unreadable_path(str(caught.value)) == missing.path


def test_what_is_unreadable_in_a_file_that_opens_fails_no_strict_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "x.docx").write_bytes(b"what is this")
    (tmp_path / "x.jsonl").write_bytes(b"not json\n" + jsonl(rows_of("x", 2)))
    ran = read_strictly(run, listed(tmp_path / "x.parquet", tmp_path / "x.docx", tmp_path / "x.jsonl"))
    assert sorted(ran["tweets"]) == tweets_of(rows_of("x", 2), tmp_path / "x.jsonl")
    assert sorted(Path(letter.source).name for letter in ran["dead"]) == ["x.docx", "x.jsonl", "x.parquet"]
    assert_reconciles(ran)


@pytest.mark.parametrize(
    "path", ["/a/b.jsonl", 'a "quoted" one', "back\\slash", "ünï 😂", "line\nbreak", "half \udcff"]
)
def test_the_path_is_found_in_what_runners_say(path: str) -> None:
    error = UnreadableInput(path, "Permission denied")
    text = f"Traceback (most recent call last):\ntransforms.read.UnreadableInput: {error} [while running 'ReadTweets']"
    assert unreadable_path(text) == path


@pytest.mark.parametrize("text", ["", 'input "x" cannot be opened', "OSError: UnreadableInput", "RunError: x is gone"])
def test_other_errors_have_no_path(text: str) -> None:
    assert unreadable_path(text) is None


# --- partitions ----------------------------------------------------------------------------------------------------


def test_rows_without_a_timestamp_field_are_partitioned_by_the_date_of_their_file(run: Run, tmp_path: Path) -> None:
    """In every format and in every part of a file."""
    moment = 1_700_000_000
    (tmp_path / "x.txt").write_text("hello\nworld\n")
    (tmp_path / "x.jsonl").write_bytes(jsonl(rows_of("x", 2)))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(jsonl(rows_of("y", 2))))
    pq.write_table(pa.Table.from_pylist(rows_of("z", 2)), tmp_path / "x.parquet")
    for path in tmp_path.iterdir():
        os.utime(path, (moment, moment))
    ran = read(run, tmp_path / "*", fields=FieldMapping(partition_by=("date",)))
    assert [tweet.partition for tweet in ran["tweets"]] == ["date=2023-11-14"] * 8


def test_partitions_that_are_no_name_are_dead_letters(run: Run, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "text": "fine", "lang": "en", "at": 0},
        {"id": "2", "text": "long", "lang": "x" * 10_000, "at": 0},
        {"id": "3", "text": "nested", "lang": {"code": "en"}, "at": 0},
        {"id": "4", "text": "hostile", "lang": "../../etc", "at": 86_400},
        {"id": "5", "text": "none", "at": None},
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl(rows))
    ran = read(run, path, fields=FieldMapping(timestamp="at", partition_by=("date", "lang")))
    assert {tweet.id: tweet.partition for tweet in ran["tweets"]} == {
        "1": "date=1970-01-01/lang=en",
        "4": "date=1970-01-02/lang=..%2F..%2Fetc",
        "5": "date=__HIVE_DEFAULT_PARTITION__/lang=__HIVE_DEFAULT_PARTITION__",
    }
    reasons = {json.loads(letter.raw)["id"]: letter.reason for letter in ran["dead"]}
    assert reasons == {
        "2": "partition field 'lang' makes a name of more than 255 bytes",
        "3": "partition field 'lang' is dict, not a string or a number",
    }
    assert_reconciles(ran)
