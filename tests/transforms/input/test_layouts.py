"""Layouts: a synthetic record of each in its real shape, recognized, and read right."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from torchmoji_core.errors import InputError
from transforms.input import layouts
from transforms.input.fields import FieldMapping
from transforms.input.formats import read_records
from transforms.input.html_text import has_html, html_to_text
from transforms.input.inputs import list_files
from transforms.input.layouts import LAYOUTS, PLAIN, named, recognize
from transforms.input.parts import split_file, to_tweets
from transforms.input.posts import PostReader
from transforms.input.raw_records import Record
from transforms.records import DeadLetter, Tweet

ROOT = Path(__file__).parents[3]
WHEN = "2024-03-21T08:58:32Z"
SECONDS = 1711011512
TWITTER = "Thu Mar 21 08:58:32 +0000 2024"
LONG = "nobody told us that the last train would leave before the concert had even begun, so we walked home"

SAMPLES: list[tuple[str, Any, list[tuple[str | None, str, bool]]]] = [
    ("twitter-v1", {
        "created_at": TWITTER, "id": 1, "id_str": "11", "full_text": "tea &amp; rain &lt;3", "truncated": False,
        "user": {"id_str": "5", "screen_name": "someone"}, "lang": "en", "entities": {},
    }, [("11", "tea & rain <3", True)]),
    ("twitter-v1", {
        "created_at": TWITTER, "id_str": "12", "text": "nobody told us\u2026", "truncated": True,
        "extended_tweet": {"full_text": LONG}, "user": {"screen_name": "someone"},
    }, [("12", LONG, True)]),
    ("twitter-v1", {
        "created_at": TWITTER, "id_str": "13", "text": "RT @other: nobody\u2026", "truncated": False,
        "retweeted_status": {"id_str": "9", "text": "nobody told\u2026", "truncated": True,
                             "extended_tweet": {"full_text": LONG}},
    }, [("13", LONG, True)]),
    ("twitter-v1", {
        "created_at": TWITTER, "id_str": "14", "full_text": "so true", "is_quote_status": True,
        "quoted_status": {"id_str": "9", "full_text": LONG},
    }, [("14", "so true", True)]),
    ("twitter-v1", {
        "statuses": [{"created_at": TWITTER, "id_str": "15", "full_text": "tea &amp; rain"}],
        "search_metadata": {"count": 1},
    }, [("15", "tea & rain", True)]),
    ("twitter-v2", {
        "data": {"id": "21", "text": "tea &amp; rain", "created_at": WHEN, "edit_history_tweet_ids": ["21"]},
        "includes": {"users": []},
    }, [("21", "tea & rain", True)]),
    ("twitter-v2", {
        "data": [
            {"id": "22", "text": "RT @other: nobody\u2026", "created_at": WHEN, "author_id": "5",
             "referenced_tweets": [{"type": "retweeted", "id": "9"}]},
            {"id": "23", "text": "nobody told us", "created_at": WHEN, "note_tweet": {"text": LONG}},
            {"id": "24", "text": "indeed", "created_at": WHEN, "referenced_tweets": [{"type": "quoted", "id": "9"}]},
        ],
        "includes": {"tweets": [{"id": "9", "text": LONG}]}, "meta": {"result_count": 3},
    }, [("22", LONG, True), ("23", LONG, True), ("24", "indeed", True)]),
    ("twitter-v2", {
        "id": "25", "text": "RT @other: nobody\u2026", "created_at": WHEN, "author_id": "5", "public_metrics": {},
        "referenced_tweets": [{"type": "retweeted", "id": "9", "text": "nobody", "note_tweet": {"text": LONG}}],
        "author": {"username": "someone"}, "__twarc": {"version": "2"},
    }, [("25", LONG, True)]),
    ("twitter-archive", {
        "tweet": {"id": "31", "id_str": "31", "full_text": "home &gt; work", "created_at": TWITTER, "retweeted": False},
    }, [("31", "home > work", True)]),
    ("twitter-archive-notes", {
        "noteTweet": {"noteTweetId": "41", "createdAt": "2024-03-21T08:58:32.000Z", "core": {"text": LONG, "urls": []}},
    }, [("41", LONG, True)]),
    ("twitter-archive-likes", {
        "like": {"tweetId": "51", "fullText": "what a goal", "expandedUrl": "https://twitter.com/i/web/status/51"},
    }, [("51", "what a goal", False)]),
    ("gnip", {
        "id": "tag:search.twitter.com,2005:61", "objectType": "activity", "verb": "post", "postedTime": WHEN,
        "body": "nobody told us\u2026", "long_object": {"body": LONG}, "actor": {"preferredUsername": "someone"},
    }, [("61", LONG, True)]),
    ("gnip", {
        "id": "tag:search.twitter.com,2005:62", "verb": "share", "postedTime": WHEN, "body": "RT @other: nobody\u2026",
        "object": {"id": "tag:search.twitter.com,2005:9", "body": "nobody\u2026", "long_object": {"body": LONG}},
    }, [("62", LONG, True)]),
    ("snscrape", {
        "_type": "snscrape.modules.twitter.Tweet", "url": "https://twitter.com/u/status/71", "date": WHEN, "id": 71,
        "rawContent": "a day &amp; a night", "renderedContent": "a day & a night", "user": {"username": "someone"},
    }, [("71", "a day & a night", True)]),
    ("twint", {
        "id": 81, "conversation_id": "81", "created_at": "2024-03-21 08:58:32 UTC", "username": "someone",
        "tweet": "what a day", "language": "en", "likes_count": 3,
    }, [("81", "what a day", True)]),
    ("sentiment140", {
        "target": "4", "ids": "91", "date": "Thu Mar 21 01:58:32 PDT 2024", "flag": "NO_QUERY", "user": "someone",
        "text": "I &lt;3 fridays",
    }, [("91", "I <3 fridays", True)]),
    ("bluesky-jetstream", {
        "did": "did:plc:abc", "time_us": SECONDS * 1_000_000, "kind": "commit",
        "commit": {"operation": "create", "collection": "app.bsky.feed.post", "rkey": "3k1",
                   "record": {"$type": "app.bsky.feed.post", "text": "1 < 2 &amp;", "createdAt": WHEN}},
    }, [("at://did:plc:abc/app.bsky.feed.post/3k1", "1 < 2 &amp;", True)]),
    ("bluesky", {
        "uri": "at://did:plc:abc/app.bsky.feed.post/3k2", "cid": "bafy", "author": {"handle": "a.example"},
        "record": {"text": "so happy", "createdAt": WHEN, "langs": ["en"]}, "likeCount": 2,
    }, [("at://did:plc:abc/app.bsky.feed.post/3k2", "so happy", True)]),
    ("bluesky", {
        "feed": [
            {"post": {"uri": "at://did:plc:a/app.bsky.feed.post/1", "record": {"text": "one", "createdAt": WHEN}}},
            {"post": {"uri": "at://did:plc:a/app.bsky.feed.post/2", "record": {"text": "two", "createdAt": WHEN}},
             "reason": {"$type": "app.bsky.feed.defs#reasonRepost"}},
        ], "cursor": "x",
    }, [("at://did:plc:a/app.bsky.feed.post/1", "one", True), ("at://did:plc:a/app.bsky.feed.post/2", "two", True)]),
    ("bluesky-record", {"$type": "app.bsky.feed.post", "text": "alone", "createdAt": WHEN, "langs": ["en"]},
     [(None, "alone", True)]),
    ("mastodon", {
        "id": "101", "created_at": "2024-03-21T08:58:32.000Z", "spoiler_text": "", "visibility": "public",
        "content": "<p>first line<br>second &amp; last, <a href='https://m.example/@x' class='mention'>@<span>x</span>"
                   "</a></p><p><a href=\"https://a.example/b\"><span class=\"invisible\">https://</span>a.example/b</a></p>",
        "account": {"acct": "someone@m.example"}, "reblog": None, "language": "en",
    }, [("101", "first line\nsecond & last, @x\nhttps://a.example/b", True)]),
    ("mastodon", {
        "id": "102", "created_at": WHEN, "content": "", "reblog": {"id": "9", "content": "<p>repeated</p>"},
    }, [("102", "repeated", True)]),
    ("activitypub", {
        "id": "outbox.json", "type": "OrderedCollection",
        "orderedItems": [
            {"id": "https://m.example/1/activity", "type": "Create", "published": WHEN, "actor": "https://m.example/x",
             "object": {"id": "https://m.example/1", "type": "Note", "published": WHEN, "content": "<p>hello</p>"}},
            {"id": "https://m.example/2/activity", "type": "Announce", "object": "https://n.example/9"},
            {"id": "https://m.example/3", "type": "Question", "published": WHEN, "content": "<p>tea?</p>"},
            {"id": "https://m.example/4/activity", "type": "Create", "published": WHEN,
             "object": {"id": "https://m.example/4", "type": "Article", "published": WHEN, "content": "long"}},
        ],
    }, [("https://m.example/1", "hello", True), ("https://m.example/3", "tea?", True),
        ("https://m.example/4", "long", True)]),
    ("activitypub", {"id": "https://m.example/5", "type": "Article", "published": WHEN, "content": "<p>long</p>"},
     [("https://m.example/5", "long", True)]),
    ("activitypub", {"id": "https://m.example/6", "type": "Page", "published": WHEN, "content": "<p>page</p>"},
     [("https://m.example/6", "page", True)]),
    ("reddit", {
        "id": "b1", "body": None, "title": "cats &amp; dogs", "selftext": "why not", "created_utc": SECONDS,
        "subreddit": "pics", "link_id": None,
    }, [("b1", "cats & dogs\n\nwhy not", True)]),
    ("reddit", {
        "id": "b2", "body": "[deleted]", "title": "of the post", "selftext": "", "created_utc": SECONDS,
        "subreddit": "pics",
    }, [("b2", "", True)]),
    ("reddit-comments", {
        "id": "c1", "author": "someone", "body": "&gt; quoted\n\nyes", "created_utc": SECONDS, "link_id": "t3_x",
        "parent_id": "t3_x", "subreddit": "pics", "score": 4,
    }, [("c1", "> quoted\n\nyes", True)]),
    ("reddit-comments", {
        "id": "c2", "author": "[deleted]", "body": "[removed]", "created_utc": str(SECONDS), "link_id": "t3_x",
    }, [("c2", "", True)]),
    ("reddit-submissions", {
        "id": "s1", "title": "cats &amp; dogs", "selftext": "why not", "created_utc": SECONDS, "subreddit": "pics",
    }, [("s1", "cats & dogs\n\nwhy not", True)]),
    ("reddit-submissions", {"id": "s2", "title": "a title", "selftext": "[deleted]", "created_utc": SECONDS},
     [("s2", "a title", True)]),
    ("reddit-api", {
        "kind": "Listing", "data": {"after": None, "children": [
            {"kind": "t1", "data": {"id": "r1", "body": "a &lt; b", "created_utc": float(SECONDS), "replies": {
                "kind": "Listing", "data": {"children": [
                    {"kind": "t1", "data": {"id": "r3", "body": "no", "created_utc": SECONDS, "replies": ""}}]}}}},
            {"kind": "t3", "data": {"id": "r2", "title": "t", "selftext": "", "created_utc": float(SECONDS)}},
            {"kind": "more", "data": {"count": 3, "children": ["x"]}},
        ]},
    }, [("r1", "a < b", True), ("r3", "no", True), ("r2", "t", True)]),
    ("youtube", {
        "kind": "youtube#commentThreadListResponse", "items": [{
            "kind": "youtube#commentThread", "id": "y1",
            "snippet": {"videoId": "v", "topLevelComment": {"kind": "youtube#comment", "id": "y1", "snippet": {
                "textDisplay": "a &amp; b<br>c", "textOriginal": "a & b\nc", "publishedAt": WHEN}}},
            "replies": {"comments": [
                {"id": "y1.z", "snippet": {"textDisplay": "so<br>true", "publishedAt": WHEN}},
            ]},
        }],
    }, [("y1", "a & b\nc", True), ("y1.z", "so\ntrue", True)]),
    ("youtube-comment-downloader", {
        "cid": "d1", "text": "first!", "time": "2 years ago", "author": "@x", "votes": "3", "time_parsed": 1711011512.0,
    }, [("d1", "first!", True)]),
    ("yt-dlp", {
        "id": "video", "title": "a video", "webpage_url": "https://y.example/v", "comments": [
            {"id": "e1", "text": "nice", "author": "@x", "author_id": "UC1", "parent": "root", "timestamp": SECONDS},
        ],
    }, [("e1", "nice", True)]),
    ("telegram", {
        "name": "a chat", "type": "personal_chat", "id": 1, "messages": [
            {"id": 1, "type": "service", "date": "2024-03-21T08:58:32", "date_unixtime": str(SECONDS), "text": ""},
            {"id": 2, "type": "message", "date": "2024-03-21T08:58:32", "date_unixtime": str(SECONDS), "from": "Ann",
             "from_id": "user1", "text": ["look: ", {"type": "link", "text": "a.example"}, " !"]},
        ],
    }, [("2", "look: a.example !", True)]),
    ("discord", {
        "guild": {"id": "1"}, "channel": {"id": "2"}, "messages": [
            {"id": "201", "type": "Default", "timestamp": "2024-03-21T10:58:32.000+02:00", "content": "hey all",
             "author": {"id": "5", "name": "ann", "isBot": False}},
            {"id": "202", "type": "GuildMemberJoin", "timestamp": WHEN, "content": "Joined the server.",
             "author": {"id": "6", "name": "bob", "isBot": False}},
        ],
    }, [("201", "hey all", True)]),
    ("hacker-news", {
        "by": "someone", "id": 211, "parent": 9, "text": "I agree.<p>It&#x27;s true", "time": SECONDS,
        "type": "comment",
    }, [("211", "I agree.\nIt's true", True)]),
    ("4chan", {
        "posts": [
            {"no": 221, "resto": 0, "time": SECONDS, "sub": "tea", "com": "is <b>good</b>", "name": "Anonymous"},
            {"no": 222, "resto": 221, "time": SECONDS, "filename": "x", "ext": ".png"},
        ],
    }, [("221", "tea\n\nis good", True)]),
    ("yelp", {"review_id": "v1", "user_id": "u", "business_id": "b", "stars": 5.0, "text": "great pie",
              "date": "2024-03-21 08:58:32"}, [("v1", "great pie", True)]),
    ("amazon-reviews", {"asin": "B0", "reviewerID": "A1", "reviewText": "broke at once", "summary": "bad",
                        "unixReviewTime": SECONDS, "overall": 1.0}, [(None, "broke at once", True)]),
    ("plain", {"id": "x-1", "text": "as &amp; it is", "label": "3"}, [("x-1", "as &amp; it is", False)]),
]  # fmt: skip


def read(record: object, **mapping: Any) -> tuple[list[Tweet | DeadLetter | None], PostReader]:
    reader = PostReader(FieldMapping(**mapping), recognize([record]))
    return [*reader.read(Record(7, record, b""), "file", "file")], reader


@pytest.mark.parametrize(("name", "record", "expected"), SAMPLES, ids=[f"{n}-{s[0]}" for n, s in enumerate(SAMPLES)])
def test_each_layout_is_recognized_and_read(
    name: str, record: dict[str, Any], expected: list[tuple[str | None, str, bool]]
) -> None:
    found, reader = read(record, timestamp="auto")
    assert reader.layout.name == name
    tweets = [tweet for tweet in found if isinstance(tweet, Tweet)]
    assert [tweet.text for tweet in tweets] == [text for _, text, _ in expected]
    for tweet, (tweet_id, _, has_time) in zip(tweets, expected, strict=True):
        assert tweet.id == tweet_id if tweet_id else len(tweet.id) == 32
        at = int(datetime.fromisoformat(WHEN).timestamp() * 1e6)
        assert tweet.timestamp == (at if has_time else None)
        assert not tweet.is_cut
    assert not [item for item in found if isinstance(item, DeadLetter)]
    assert reader.counts["read"] == len(found) == len(tweets) + reader.counts["notices"]
    forced, _ = read(record, timestamp="auto", layout=name)
    assert forced == found


def test_every_layout_has_a_sample_and_there_are_many() -> None:
    assert {name for name, _, _ in SAMPLES} == {layout.name for layout in (*LAYOUTS, PLAIN)}
    assert len(LAYOUTS) >= 20


def test_the_table_of_the_readme_is_that_of_the_code() -> None:
    listed = "".join(f"| `{layout.name}` | {layout.about} |\n" for layout in (*LAYOUTS, PLAIN))
    assert listed in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("missing", [None, ""], ids=["Parquet", "CSV"])
def test_comments_and_submissions_of_reddit_may_be_in_one_table(missing: str | None) -> None:
    names = "id", "body", "link_id", "title", "selftext", "created_utc"
    rows = [
        ("c1", "no &lt; yes", "t3_s1", missing, missing, SECONDS),
        ("s1", missing, missing, "cats", "or dogs", SECONDS),
        ("s2", missing, missing, "a picture", "[deleted]", SECONDS),
        ("c2", "[removed]", "t3_s1", missing, missing, SECONDS),
    ]
    records = [dict(zip(names, row, strict=True)) for row in rows]
    reader = PostReader(FieldMapping(), recognize(records))
    found = [item for record in records for item in reader.read(Record(0, record, b""), "f", "f")]
    texts = {item.id: item.text for item in found if isinstance(item, Tweet)}
    assert texts == {"c1": "no < yes", "s1": "cats\n\nor dogs", "s2": "a picture", "c2": ""}


# --- recognition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "notice",
    [
        {"delete": {"status": {"id": 1, "id_str": "1", "user_id": 2}, "timestamp_ms": "1"}},
        {"limit": {"track": 5, "timestamp_ms": "1"}},
        {"scrub_geo": {"user_id": 1, "up_to_status_id": 2}},
        {"status_withheld": {"id": 1, "withheld_in_countries": ["DE"]}},
        {"warning": {"code": "FALLING_BEHIND", "message": "behind"}},
        {"friends": [1, 2]},
    ],
)
def test_notices_of_a_stream_are_no_dead_letters(notice: dict[str, Any]) -> None:
    tweet = {"id_str": "1", "text": "hello", "created_at": TWITTER}
    for first in ([tweet, notice], [notice, notice, tweet], [notice]):
        reader = PostReader(FieldMapping(), recognize(first))
        assert [*reader.read(Record(0, notice, b""), "f", "f")] == [None]
        assert reader.counts == {"read": 1, "notices": 1}


def test_a_page_among_notices_of_another_layout_is_read() -> None:
    page = {"data": [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}], "meta": {"result_count": 2}}
    notice = {"delete": {"status": {"id": 1}}}
    tweet = {"id_str": "3", "text": "c", "created_at": TWITTER}
    for records in ([notice, notice, page], [page, notice], [tweet, notice, page]):
        reader = PostReader(FieldMapping(), recognize(records))
        found = [item for record in records for item in reader.read(Record(0, record, b""), "f", "f")]
        texts = sorted(item.text for item in found if isinstance(item, Tweet))
        assert texts == ["a", "b", "c"][: 2 + (tweet in records)]
        assert reader.counts["read"] == len(found) == len(texts) + reader.counts["notices"]
        assert reader.counts["notices"] == records.count(notice)


def test_what_is_called_like_a_notice_may_be_a_post() -> None:
    record = {"id_str": "1", "text": "hello", "delete": {"status": None}, "friends": [1]}
    (tweet,), _ = read(record)
    assert isinstance(tweet, Tweet)


def test_a_record_of_another_layout_is_read_by_its_own() -> None:
    reader = PostReader(FieldMapping(), recognize([{"id_str": "1", "text": "hello", "created_at": TWITTER}]))
    others = [sample for sample in SAMPLES if sample[0] in ("bluesky", "mastodon", "reddit-submissions")]
    for _, record, expected in others:
        if any(name in record for name in ("feed", "text")):
            continue
        (tweet,) = reader.read(Record(0, record, b""), "f", "f")
        assert isinstance(tweet, Tweet)
        assert (tweet.id, tweet.text) == expected[0][:2]


def test_a_layout_that_is_given_is_the_only_one() -> None:
    found, _ = read({"id": "1", "content": "<p>a</p>", "reblog": None}, layout="twitter-v1")
    assert (
        isinstance(found[0], DeadLetter) and "no text: none of the fields extended_tweet.full_text" in found[0].reason
    )
    with pytest.raises(InputError, match="--layout 'twiter' is unknown; choose from twitter-v1, twitter-v2"):
        FieldMapping(layout="twiter")


@pytest.mark.parametrize(
    "name", ["tweet", "Tweet", "content", "body", "comment", "review", "Review Text", "full_text", "tweet_text",
             "reviewText", "Message", "TEXT"],
)  # fmt: skip
def test_plain_columns(name: str) -> None:
    layout = recognize([{"target": 1, name: "so glad", "score": "5"}])
    assert layout is not None and layout.name in ("plain", f"plain:{name}")
    again = layouts.named(layout.name)
    assert again == layout
    (tweet,), _ = read({"target": 1, name: "so glad", "score": "5"})
    assert isinstance(tweet, Tweet) and tweet.text == "so glad"


def test_several_columns_that_may_be_the_text_are_refused_and_named() -> None:
    record = {"Comment": "a", "message": "b", "body": {"not": "a string"}}
    with pytest.raises(InputError, match="the text may be in Comment or message; give --text_field, one of: Comment,"):
        recognize([record])
    (tweet,) = PostReader(FieldMapping(text=("message",)), PLAIN).read(Record(0, record, b""), "f", "f")
    assert isinstance(tweet, Tweet) and tweet.text == "b"


def test_a_text_of_the_usual_name_is_the_text_whatever_else_is_there() -> None:
    (tweet,), reader = read({"text": "a", "comment": "b", "Text": "c"})
    assert isinstance(tweet, Tweet) and tweet.text == "a" and reader.layout is PLAIN


@pytest.mark.parametrize("records", [[], [{}], [{"a": 1}], [{"words": "x"}], ["text"], [None]])
def test_what_has_no_layout(records: list[Any]) -> None:
    assert recognize(records) is None


# --- pages ---------------------------------------------------------------------------------------------------------


def test_members_of_a_page_have_positions_of_their_own_that_can_be_found_again() -> None:
    page = {"data": [{"text": "a", "edit_history_tweet_ids": []}, {"text": "b", "edit_history_tweet_ids": []}]}
    first, _ = read(page)
    second, reader = read(page)
    assert first == second
    assert len({tweet.id for tweet in first if isinstance(tweet, Tweet)}) == 2 == reader.counts["without_id"]


def test_fields_that_are_asked_for_are_those_of_the_post_and_then_those_of_its_page() -> None:
    page = {"data": [{"id": "1", "text": "a", "lang": "en", "edit_history_tweet_ids": []}], "meta": {"source": "s"}}
    mapping: dict[str, Any] = {"text": ("data.text",), "id": ("data.id",), "timestamp": None}
    (tweet,), _ = read(page, **mapping)
    assert isinstance(tweet, Tweet) and (tweet.id, tweet.text) == ("1", "a")
    reader = PostReader(FieldMapping(partition_by=("lang",)), recognize([page]))
    (tweet,) = reader.read(Record(0, page, b""), "f", "f")
    assert isinstance(tweet, Tweet) and tweet.partition == "lang=en"


@pytest.mark.parametrize("page", [{"data": [], "meta": {"result_count": 0}}, {"meta": {"result_count": 0}}])
def test_a_page_of_nothing_is_a_notice(page: dict[str, Any]) -> None:
    reader = PostReader(FieldMapping(), layouts.named("twitter-v2"))
    assert [*reader.read(Record(0, page, b""), "f", "f")] == [None]
    assert reader.counts == {"read": 1, "notices": 1}


def test_all_posts_of_a_thread_are_read() -> None:
    def post(number: int, *replies: dict[str, Any]) -> dict[str, Any]:
        record = {"text": f"so {number}", "createdAt": WHEN}
        return {"post": {"uri": f"at://{number}", "record": record}, "replies": list(replies)}

    for thread in (post(1, post(2, post(3)), post(4)), {"thread": post(1, post(2, post(3)), post(4))}):
        found, reader = read(thread)
        assert [tweet.text for tweet in found if isinstance(tweet, Tweet)] == ["so 1", "so 2", "so 3", "so 4"]
        assert reader.counts["read"] == 4 == len(found)


def test_what_is_no_post_in_a_page_is_a_dead_letter_by_itself() -> None:
    page = {"data": [5, {"id": "1", "text": "a", "edit_history_tweet_ids": []}, {"id": 1.5, "text": "b"}]}
    reader = PostReader(FieldMapping(), layouts.named("twitter-v2"))
    first, second, third = reader.read(Record(3, page, b""), "f", "f")
    assert isinstance(first, DeadLetter) and (first.position, first.raw) == ("3.0", b"5")
    assert isinstance(second, Tweet) and isinstance(third, DeadLetter) and third.position == "3.2"
    assert reader.counts == {"read": 3}


def test_deep_lists_of_lists_end() -> None:
    for layout in LAYOUTS:
        for path in layout.posts:
            value: Any = {"id": "1", "text": "a"}
            for _ in range(500):
                for name in reversed(path.split(".")):
                    value = {name: value if "." in path else [value]}
            reader = PostReader(FieldMapping(layout=layout.name))
            assert len(reader.read(Record(0, value, b""), "f", "f")) == 1 == reader.counts["read"]


# --- cut texts -----------------------------------------------------------------------------------------------------


CUT: list[tuple[dict[str, Any], bool]] = [
    ({"id_str": "1", "text": "nobody told\u2026 https://t.co/x", "truncated": True}, True),
    ({"id_str": "1", "text": "nobody told", "truncated": "True"}, True),
    ({"id_str": "1", "text": "nobody told", "truncated": "1"}, True),
    ({"id_str": "1", "text": "nobody told", "truncated": "False"}, False),
    ({"id_str": "1", "text": "nobody told", "truncated": "0"}, False),
    ({"id_str": "1", "text": "nobody", "truncated": True, "extended_tweet": {"full_text": LONG}}, False),
    ({"id_str": "1", "text": "RT @x: nobody\u2026", "retweeted_status": {"id_str": "2", "text": "nobody",
                                                                  "truncated": True}}, True),
    ({"id_str": "1", "text": "RT @x: nobody\u2026", "retweeted_status": {"id_str": "2"}}, True),
    ({"id": "1", "text": "RT @x: nobody\u2026", "referenced_tweets": [{"type": "retweeted", "id": "2"}]}, True),
    ({"tweet_id": 1, "content": "RT @x: nobody\u2026"}, True),
    ({"tweet_id": 1, "content": "well\u2026"}, False),
    ({"text": "nobody", "truncated": True, "n_tokens": 60}, False),
]  # fmt: skip


@pytest.mark.parametrize(("record", "is_cut"), CUT)
def test_texts_that_the_platform_has_cut_are_told(record: dict[str, Any], is_cut: bool) -> None:
    (tweet,), reader = read(record)
    assert isinstance(tweet, Tweet)
    assert tweet.is_cut == is_cut == reader.counts["cut_by_platform"]


@pytest.mark.parametrize("record", [record for _, record, _ in SAMPLES] + [record for record, _ in CUT])
@pytest.mark.parametrize("timestamp", ["auto", None])
def test_of_a_table_no_column_is_left_out_that_a_post_needs(record: dict[str, Any], timestamp: str | None) -> None:
    found, reader = read(record, timestamp=timestamp)
    needed = {name: value for name, value in record.items() if name in reader.columns}
    position = Record(7, needed, b"")
    again = PostReader(reader.mapping, reader.layout).read(position, "file", "file")
    assert [*again] == found


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_of_posts_is_read_as_its_lines_are(suffix: str, tmp_path: Path) -> None:
    posts = [{**record, "truncated": str(record.get("truncated"))} for record, _ in CUT if "id_str" in record]
    names = dict.fromkeys(name for post in posts for name in post)
    table = pa.table({name: [post.get(name) for post in posts] for name in names})
    path, lines = tmp_path / f"posts.{suffix}", tmp_path / "posts.jsonl"
    pq.write_table(table, path) if suffix == "parquet" else feather.write_feather(table, path)
    lines.write_text("".join(json.dumps(post) + "\n" for post in posts))
    assert _tweets(path) == _tweets(lines)
    assert sum(is_cut for _, _, is_cut in _tweets(path)) == sum(is_cut for record, is_cut in CUT if "id_str" in record)


REPETITIONS: list[dict[str, Any]] = [
    {"id_str": "1", "full_text": "RT @x: nobody\u2026", "retweeted_status": {"id_str": "2", "full_text": LONG}},
    {"id": "1", "content": "", "visibility": "public", "reblog": {"id": "2", "content": f"<p>{LONG}</p>"}},
    {"id": 1, "rawContent": "RT @x: no\u2026", "renderedContent": "", "retweetedTweet": {"id": 2, "rawContent": LONG}},
    {"id": "1", "body": "RT @x: no\u2026", "verb": "share", "object": {"id": "2", "body": LONG}},
]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("repetition", REPETITIONS)
def test_what_a_flattened_post_repeats_is_found(repetition: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    own = {name: None if isinstance(value, dict) else value for name, value in repetition.items()}
    text = next(name for name in ("full_text", "content", "rawContent", "body") if name in own)
    table = pd.json_normalize([repetition, {**own, text: "my own", **({"verb": "post"} if "verb" in own else {})}])
    path = tmp_path / f"posts.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    assert _tweets(path) == [("1", LONG, False), ("1", "my own", False)]


def _tweets(path: Path) -> list[tuple[str, str, bool]]:
    (file,) = list_files(str(path)).files
    found: list[tuple[str, str, bool]] = []
    for part in split_file(file):
        reader = PostReader(FieldMapping(), named(part.layout or "plain"))
        with path.open("rb") as opened:
            records = read_records(opened, part.form, part.start, part.end, reader.columns)
            for tweet in to_tweets(records, str(path), reader):
                assert isinstance(tweet, Tweet)
                found.append((tweet.id, tweet.text, tweet.is_cut))
    return found


# --- HTML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a</p><p>b</p>", "a\nb"),
        ("a<br>b<br/>c<BR />d", "a\nb\nc\nd"),
        ("<ul><li>a</li><li>b</li></ul>", "a\nb"),
        ("1 < 2 and <3 > 2", "1 < 2 and <3 > 2"),
        ("&lt;b&gt; &amp;amp; &#39;&#x27; &nbsp;", "<b> &amp; '' \xa0"),
        ("<a title=\"a > b\" href='x'>c</a>", "c"),
        ("a<!-- not seen -->b", "ab"),
        ("no end <a href=", "no end <a href="),
        ("", ""),
    ],
)
def test_html_to_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


@pytest.mark.parametrize("piece", ["<", "<a ", "<a '", '<a "', "</", "<!--", "<p>", "<a b='x' ", "&", "&#", '<a b="<'])
def test_hostile_html_takes_no_longer_than_other_html(piece: str) -> None:
    """The processor's time, not the clock's; what is quadratic takes minutes."""
    html = piece * (1_000_000 // len(piece))
    began = time.process_time()
    html_to_text(html)
    has_html(html)
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a <b>c</b>", True), ("x<br/>y", True), ("fish &amp; chips", True), ("it&#39;s", True), ("&lt;3", True),
        ("a <3 b", False), ("fish & chips", False), ("AT&T;", False), ("<user> said", False), ("1<2>1", False),
    ],
)  # fmt: skip
def test_html_in_texts_is_noticed(text: str, found: bool) -> None:
    assert has_html(text) == found
    (tweet,), reader = read({"text": text, "label": 1})
    assert isinstance(tweet, Tweet) and tweet.text == text
    assert reader.counts["with_html"] == found


@pytest.mark.parametrize(
    ("html", "text"), [("keep", "<p>a &amp; b</p>"), ("entities", "<p>a & b</p>"), ("tags", "a & b"), ("auto", "a & b")]
)
def test_what_is_done_with_html_can_be_said(html: str, text: str) -> None:
    (tweet,), _ = read({"id": "1", "content": "<p>a &amp; b</p>", "visibility": "public"}, html=html)
    assert isinstance(tweet, Tweet) and tweet.text == text


# --- ids and times -------------------------------------------------------------------------------------------------


def test_a_time_that_cannot_be_read_costs_the_time_unless_it_decides_the_directory() -> None:
    record = {"id": "1", "text": "a", "at": "yesterday"}
    (tweet,), reader = read(record, timestamp="at")
    assert isinstance(tweet, Tweet) and tweet.timestamp is None
    assert reader.counts["times_unread"] == 1
    for partition in ("date", "hour"):
        (letter,), _ = read(record, timestamp="at", partition_by=(partition,))
        assert isinstance(letter, DeadLetter) and "field 'at' is no time: 'yesterday'" in letter.reason
    (tweet,), _ = read(record, timestamp="at", partition_by=("id",))
    assert isinstance(tweet, Tweet)


def test_no_id_on_purpose() -> None:
    (tweet,), reader = read({"id": "1.2E+18", "text": "a"}, id=())
    assert isinstance(tweet, Tweet) and len(tweet.id) == 32 and reader.counts["without_id"] == 1
