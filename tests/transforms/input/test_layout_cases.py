"""Layouts as people have met them: files from outside the repository, where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transforms.input.fields import FieldMapping
from transforms.input.inputs import InputFile
from transforms.input.parts import split_file
from transforms.input.read import PartReader
from transforms.records import DeadLetter, Tweet

CASES = Path(__file__).parents[4] / "shared" / "cases" / "input"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the files are not here")


def read(case: str, **mapping: Any) -> tuple[list[Tweet], list[DeadLetter]]:
    """The tweets and the dead letters of a file."""
    path, fields = CASES / case, FieldMapping(**mapping)
    file = InputFile(str(path), path.stat().st_size)
    reader = PartReader(fields, strict=True)
    items = [item for part in split_file(file, fields=fields) for item in reader.read(part)]
    return [item for item in items if isinstance(item, Tweet)], [item for item in items if isinstance(item, DeadLetter)]


@pytest.mark.parametrize(
    ("case", "ids", "ends"),
    [
        ("01-twarc2-pages/pages.jsonl", [f"140000000000000000{n}" for n in (1, 2, 3, 4)], ["today", "mondays"] * 2),
        ("03-retweet-v11/tweets.jsonl", ["1300000000000000001"], ["I am so angry right now"]),
        ("04-retweet-v2-flattened/tweets.jsonl", ["1500000000000000001"], ["I am so angry right now"]),
        ("05-note-tweet/tweets.jsonl", [f"170000000000000000{n}" for n in (1, 2)], ["to be here with you all"] * 2),
        ("07-stream-grab-deletes/00.json", None, [f"number {n}" for n in range(8)]),
        ("07-stream-grab-deletes/00.json.bz2", None, [f"number {n}" for n in range(8)]),
        ("08-sentiment140/with-header.csv", ["1467810001", "1467810003"], ["so much", "friday"]),
        ("19-mastodon-html/statuses.jsonl", None, ["happy today\nwhat a day & night\n#sun", "boosted words here"]),
        ("20-bluesky/posts.jsonl", None, ["so happy today"]),
        ("20-bluesky/jetstream.jsonl", None, ["so happy today"]),
        ("53-gnip/gnip.jsonl", ["950000000000000001", "950000000000000002"], ["and then nothing", "so happy today"]),
        ("54-snscrape/tweets.jsonl", ["1614900000000000001"], ["so happy today https://t.co/abc"]),
        ("46-nan-text/tweets.csv", ["1", "2", "3", "4"], ["NaN", "nan", "None", ""]),
    ],
)
def test_texts_are_whole_and_ids_right(case: str, ids: list[str] | None, ends: list[str]) -> None:
    tweets, dead = read(case)
    assert not dead
    assert len(tweets) == len(ends)
    assert all(tweet.text.endswith(end) for tweet, end in zip(tweets, ends, strict=True))
    assert ids in (None, [tweet.id for tweet in tweets])
    assert not any(tweet.is_cut for tweet in tweets)


def test_a_cut_text_is_told() -> None:
    ((tweet,), dead) = read("03-retweet-v11/compat-truncated.jsonl")
    assert tweet.is_cut and not dead


def test_entities_are_the_characters_that_they_stand_for() -> None:
    texts = [tweet.text for tweet in read("25-html-entities/tweets.jsonl")[0]]
    assert texts[0::2] == texts[1::2]


def test_times_with_the_names_of_zones() -> None:
    tweets, dead = read("08-sentiment140/with-header.csv", timestamp="date")
    assert [tweet.timestamp for tweet in tweets] == [1239081585000000, 1239081605000000] and not dead


def test_ids_that_lost_digits_are_dead_letters() -> None:
    tweets, dead = read("09-float-ids-csv/tweets.csv")
    assert not tweets and len(dead) == 4
    assert all("loses digits" in letter.reason and "--id_field" in letter.reason for letter in dead)
    assert len(read("09-float-ids-csv/tweets.csv", id=())[0]) == 4


def test_numbers_that_are_none_are_no_texts() -> None:
    tweets, dead = read("46-nan-text/tweets.jsonl")
    assert [tweet.text for tweet in tweets] == ["ok then"] and len(dead) == 2


@pytest.mark.parametrize(("case", "n_tweets"), [("mixed", 2), ("mostly", 22)])
def test_an_error_record_is_a_dead_letter_and_a_page_among_tweets_is_read(case: str, n_tweets: int) -> None:
    tweets, dead = read(f"47-v2-errors/{case}.jsonl")
    assert len(tweets) == n_tweets and all(b"errors" in letter.raw for letter in dead)


def test_empty_texts_and_emojis_are_rows() -> None:
    tweets, dead = read("52-empties-and-emoji/t.jsonl")
    assert [tweet.id for tweet in tweets] == [str(number) for number in range(len(tweets))] and not dead
