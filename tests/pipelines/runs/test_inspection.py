"""What a user sees of the inputs before work starts, and that what errors advise works on what has caused them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.cli.options import ScoreConfig, parse
from pipelines.runs.identity import differences, identity
from pipelines.runs.inspection import check_fields, describe
from torchmoji_core.errors import InputError
from transforms.input.inputs import match_files


def plan(path: Path, *options: str) -> tuple[ScoreConfig, list[str]]:
    """The checked command, and what is said of its inputs."""
    config, _ = parse(["--input", str(path), *options])
    files = match_files(config.inputs)
    fields, seen = check_fields(config.form, config.fields, files, config.keep_without_type)
    config = config.with_fields(fields)
    return config, [line for group in describe(config, files, seen) for line in group.describe(config.dry_run)]


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


POST = {"id_str": "1", "full_text": "tea &amp;\nrain", "created_at": "Thu Mar 21 08:58:32 +0000 2024", "lang": "en"}


def test_a_plan_names_the_layout_and_the_fields_of_each_kind_of_input(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", POST)
    write(tmp_path / "b.jsonl", POST)
    (tmp_path / "c.csv").write_text("Tweet,tweet_id,label\nso glad,17,1\n")
    _, said = plan(tmp_path / "*", "--dry_run")
    assert said == [
        "layout      twitter-v1, JSON lines: text from full_text; id from id_str; time in created_at; language in lang",
        "    1  'tea &\\nrain'",
        "    1  'tea &\\nrain'",
        "layout      plain:Tweet, CSV, commas between columns: text from Tweet",
        "    no record has an id: ids are hashes of file and position; --id_field tweet_id takes that one",
        "    (a hash)  'so glad'",
    ]
    assert len(plan(tmp_path / "*")[1]) == 3, "texts are shown where nothing is done"
    assert "id from tweet_id" in plan(tmp_path / "c.csv", "--id_field", "tweet_id")[1][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--id_field", "key,tweet.key"), "--id_field key,tweet.key is in no record; fields are: id_str, full_text"),
        (("--timestamp_field", "when"), "--timestamp_field when is in no record; fields are: id_str"),
        (("--keep_fields", "place.name"), "kept field 'place.name' is in no record; fields are: id_str"),
        (("--layout", "mastodon"), "no text: none of the fields content"),
        (("--text_field", "words"), "no record has a text"),
    ],
)
def test_fields_that_no_record_has_end_the_command(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        plan(write(tmp_path / "a.jsonl", POST), *options)


REMEDIES: list[tuple[str, Any, tuple[str, ...]]] = [
    ("nested", {"event": {"record": {"text": "hi", "n": 1}, "kind": "post"}, "n": 2}, ()),
    ("top-level", {"words": "hi", "list": [{"text": "a"}], "data": {"n": 1}}, ()),
    ("several", {"Comment": "hi", "message": "there"}, ()),
    ("another layout", {"content": "<p>hi</p>", "reblog": None, "id": "1"}, ("--layout", "twitter-v1")),
    ("a text that is none", {"text": 5, "words": "hi"}, ()),
    ("no id there", {"text": "hi", "key": "7"}, ("--id_field", "id2")),
    ("no time there", {"text": "hi", "at": "2024-03-21"}, ("--timestamp_field", "time")),
    ("no time of the layout", {"text": "hi", "at": "2024-03-21"}, ("--timestamp_field", "auto")),
    ("kept and not there", {"text": "hi", "at": "2024-03-21"}, ("--keep_fields", "place")),
]


@pytest.mark.parametrize(("record", "options"), [row[1:] for row in REMEDIES], ids=[row[0] for row in REMEDIES])
def test_what_an_error_advises_works(record: dict[str, Any], options: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record)
    with pytest.raises(InputError) as caught:
        plan(path, *options)
    listed = re.search(r"(?:one of|fields are): (.*)", str(caught.value))
    assert listed, caught.value
    option = next((name for name in options if name not in ("auto", "--layout", "twitter-v1")), "--text_field")
    for advised in re.split(", ?", listed[1]):
        if option in ("--timestamp_field", "--keep_fields") and advised != "at":
            continue  # all fields are listed
        others = options if option == "--text_field" else ()
        assert plan(path, *others, option, advised)[1]


@pytest.mark.parametrize("name", ["user_id", "author_id", "business_id", "in_reply_to_status_id", "id_of_channel"])
def test_ids_of_something_else_are_not_advised(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"Tweet": "so glad", name: "17"})
    assert plan(tmp_path / "a.jsonl")[1][1:] == ["    no record has an id: ids are hashes of file and position"]


def test_of_ids_that_nobody_wants_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"Tweet": "so glad", "tweet_id": "17"})
    assert len(plan(tmp_path / "a.jsonl", "--id_field", "")[1]) == 1


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"name": "c", "messages": [{"words": "hi"}]}, ".messages"),
        ({"took": 1, "hits": {"hits": [{"words": "hi"}]}}, ".hits.hits"),
        ({"name": "c", "my tweets": [{"words": "hi"}]}, '.["my tweets"]'),
        ({"of 2024": {"tweets": {'the "best"': [{"words": "hi"}]}}}, r'.["of 2024"].tweets["the \"best\""]'),
        ({"name": "c", "it's": [{"words": "hi"}]}, r""".["it'\''s"]"""),
    ],
)
def test_of_a_document_the_list_of_its_records_is_named(document: dict[str, Any], path: str, tmp_path: Path) -> None:
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        plan(whole)
    assert f"jq -c '{path}[]' A > B.jsonl" in str(caught.value)
    assert plan(write(tmp_path / "b.jsonl", {"words": "hi"}), "--text_field", "words")[1]


TABLE = pd.DataFrame({"id": ["1", "2"], "text": ["so cold", "so warm"]})


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_a_table_of_pandas_is_no_post_and_can_be_written_as_its_message_says(orient: Any, tmp_path: Path) -> None:
    TABLE.to_json(tmp_path / "a.json", orient=orient)
    with pytest.raises(InputError, match=r"a table by columns.*to_json\(orient='records', lines=True\)"):
        plan(tmp_path / "a.json")
    TABLE.to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    assert plan(tmp_path / "b.jsonl", "--dry_run")[1][1:] == ["    1  'so cold'", "    2  'so warm'"]
    (tmp_path / "a.json").write_text(json.dumps(TABLE.to_dict(orient="list")))
    with pytest.raises(InputError, match="a table by columns"):
        plan(tmp_path / "a.json")


def test_a_set_without_any_number_in_its_first_row_is_read_as_its_message_says(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("x\tgood\tso cold\ny\tbad\tso warm\n")
    with pytest.raises(InputError, match="if the first line is a row, give --no_header, and --columns"):
        plan(path)
    _, said = plan(path, "--no_header", "--columns", "id,label,text", "--dry_run")
    assert said[1:] == ["    x  'so cold'", "    y  'so warm'"]


def test_a_set_without_a_header_is_read_as_its_message_says(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"0","146781","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","ann","so cold"\n' * 3)
    with pytest.raises(InputError) as caught:
        plan(path)
    advised = re.search(r"--columns (\S+), and (--no_header)", str(caught.value))
    assert advised
    _, said = plan(path, "--columns", advised[1], advised[2], "--timestamp_field", "auto", "--dry_run")
    assert said[0].startswith("layout      sentiment140, CSV") and "time from date" in said[0]
    assert said[1:] == ["    146781  'so cold'"] * 3


def test_ids_that_are_refused_are_told_beforehand_and_the_advice_works(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,key,text\n1.2E+18,k1,so cold\n")
    _, said = plan(path, "--dry_run")
    assert "dead letters: id field 'id' is '1.2E+18', a float" in said[1] and said[2] == "    (refused)  'so cold'"
    assert plan(path, "--dry_run", "--id_field", "key")[1][1] == "    k1  'so cold'"
    assert plan(path, "--dry_run", "--id_field", "")[1][1] == "    (a hash)  'so cold'"


def test_columns_in_capitals_are_text_and_id(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ID,TEXT\n17,so cold\n")
    assert plan(tmp_path / "a.csv", "--dry_run")[1][1] == "    17  'so cold'"


def test_a_field_that_is_called_like_a_column_is_kept_as_its_message_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", POST | {"source": "an app", "truncated": False})
    for name in ("source", "truncated:bool"):
        with pytest.raises(InputError) as caught:
            plan(path, "--keep_fields", name)
        advised = re.search(r"rename it: (\S+)$", str(caught.value))
        assert advised
        config, _ = plan(path, "--keep_fields", advised[1])
        (kept,) = config.fields.keep
        assert (kept.path, kept.name) == (name.partition(":")[0], f"input_{name.partition(':')[0]}")


@pytest.mark.parametrize(
    ("given", "path", "kind", "column"),
    [
        ("lang", "lang", "string", "lang"),
        ("n:int64", "n", "int64", "n"),
        ("user.name:as=who", "user.name", "string", "who"),
        ("n:int64:as=count", "n", "int64", "count"),
        ("n:as=count:int64", "n", "int64", "count"),
        ("n:as=count", "n", "int64", "count"),
    ],
)
def test_kept_fields_can_be_renamed(given: str, path: str, kind: str, column: str, tmp_path: Path) -> None:
    record = POST | {"user": {"name": "ann"}, "n": 3}
    config, _ = plan(write(tmp_path / "a.jsonl", record), "--keep_fields", given)
    (kept,) = config.score.keep
    assert (kept.path, kept.kind, kept.name) == (path, kind, column)
    assert kept.column.name == column


def test_data_sets_of_before_there_were_layouts_are_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", POST)
    earlier = {
        "format": None,
        "text_field": ["extended_tweet.full_text", "full_text", "data.text", "text"],
        "id_field": ["id_str", "data.id", "id"],
        "timestamp_field": None,
        "keep_fields": ["lang:string"],
        "partition_by": [],
    }
    ours = identity(plan(path, "--keep_fields", "lang")[0])
    assert not set(differences(ours, {**ours, **earlier}))
    for option in (("--layout", "twitter-v1"), ("--html", "keep"), ("--keep_fields", "lang:as=language")):
        other = identity(plan(path, "--keep_fields", "lang", *option)[0])
        assert differences(ours, other), option
