"""TokenizeTweets gives every tweet its ids, as the bundle's own tokenizer does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from tests.transforms.conftest import WORDS, Run, make_texts
from torchmoji_core.bundle import Bundle
from torchmoji_core.vocabulary import UNKNOWN
from transforms.records import TokenizedTweet, Tweet
from transforms.scoring.tokenize import TokenizeTweets, tokenize


@pytest.mark.parametrize(
    ("words", "length", "truncated"),
    [(0, 0, False), (1, 1, False), (29, 29, False), (30, 30, False), (31, 30, True), (400, 30, True)],
)
def test_at_most_maxlen_ids(words: int, length: int, truncated: bool, bundle: Bundle) -> None:
    tweet = Tweet("1", " ".join((WORDS[:40] * 10)[:words]))
    tokenized = tokenize(tweet, bundle.tokenizer, 30)
    assert tokenized.tweet is tweet
    assert list(tokenized.ids) == bundle.tokenizer.ids(tweet.text)[:length]
    assert (tokenized.length, tokenized.truncated) == (length, truncated)


@pytest.mark.parametrize(
    ("text", "unknown", "length"),
    [
        ("i love rain", 0, 3),
        ("i love xyzzy", 1, 3),
        ("xyzzy plugh", 2, 2),
        ("@someone love", 0, 2),
        ("", 0, 0),
        ("   \t ", 0, 0),
        ("\ufe0f", 0, 0),
        (" ".join(["xyzzy"] * 100), 30, 30),
    ],
)
def test_unknown_tokens_are_counted_among_those_read(text: str, unknown: int, length: int, bundle: Bundle) -> None:
    tokenized = tokenize(Tweet("1", text), bundle.tokenizer, 30)
    assert (tokenized.ids.count(UNKNOWN), tokenized.length) == (unknown, length)


def test_every_tweet_comes_out(run: Run, bundle: Bundle, model: str) -> None:
    texts = [*make_texts(200), "", "   "]
    tweets = [Tweet(str(index), text, index, ("kept", None)) for index, text in enumerate(texts)]

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"tokenized": pipeline | beam.Create(tweets) | TokenizeTweets(model)}

    ran = run(build)
    assert all(type(tokenized) is TokenizedTweet for tokenized in ran["tokenized"])
    found = sorted(ran["tokenized"], key=lambda tokenized: int(tokenized.tweet.id))
    assert found == [tokenize(tweet, bundle.tokenizer, bundle.maxlen) for tweet in tweets]
    assert {tokenized.truncated for tokenized in found} == {True, False}


def test_a_missing_bundle_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no-such-bundle"):
        run(
            lambda pipeline: {
                "x": pipeline | beam.Create([Tweet("1", "a")]) | TokenizeTweets(str(tmp_path / "no-such-bundle"))
            }
        )
