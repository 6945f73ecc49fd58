"""Texts of a corpus are left out by the kinds and by the rule for English of DeepMoji's generator of tweets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training.text_filter import TextFilter, read_words

KINDS = ("retweets", "urls", "mentions", "non_ascii", "wordless")

TEXTS = {
    "RT @ann: what a day": ("retweets", "mentions"),
    "rt what a day": ("retweets",),
    "please RT this": (),
    "rting is fun": (),
    "look http://example.org": ("urls",),
    "look WWW.EXAMPLE.ORG/x": ("urls",),
    "a www of words, see https later": (),
    "thanks @ann": ("mentions",),
    "mail me: ann@example.org": ("mentions",),
    "un café": ("non_ascii",),
    "Это дождь": ("non_ascii",),
    "“so good” – really…": (),  # punctuation that has an ASCII form
    "so good 😍👩‍👩‍👧🇫🇷👍🏽 ♡☺️": (),  # joined, of flags, with a tone of skin, and one that is DeepMoji's alone
    "!!! ... 17 @ann": ("mentions", "wordless"),
    "": ("wordless",),
    "fine": (),
}


@pytest.mark.parametrize("text", TEXTS)
def test_kinds_of_texts(text: str) -> None:
    assert tuple(kind for kind in KINDS if TextFilter((kind,)).reason(text)) == TEXTS[text]
    assert TextFilter(KINDS).reason(text) == (TEXTS[text] or (None,))[0]
    assert TextFilter().reason(text) is None


@pytest.mark.parametrize("piece", ["👩‍", "🇫🇷", "é", "http://", "@", "!", "ab"])
def test_time_grows_with_the_length_of_a_text_alone(piece: str) -> None:
    TextFilter(KINDS, ENGLISH).reason(piece * 100_000)  # of joined emojis, in the square of it, minutes


ENGLISH = frozenset({"the", "day", "is", "so", "good", "and", "long"})


@pytest.mark.parametrize(
    ("text", "is_english"),
    [
        ("the day", True),
        ("der tag", False),
        ("der day", True),  # half of two
        ("der tag day", False),  # a third of three
        ("bonjour", True),  # a single word tells nothing
        ("bonjour !!! 17 x @ann http://example.org", True),  # nor do these
        ("the day is der tag", True),  # 60 % of five
        ("the day is der tag war", False),  # half of six
        ("THE DAY IS SOOO good", True),  # "soo" is in no list, but it is one of five
    ],
)
def test_english_is_told_by_a_share_of_its_words(text: str, is_english: bool) -> None:
    assert TextFilter(english_words=ENGLISH).reason(text) == (None if is_english else "non_english")


def test_what_is_left_out_is_counted() -> None:
    left_out: Counter[str] = Counter()
    assert list(TextFilter(KINDS).kept(list(TEXTS), left_out)) == [text for text, kinds in TEXTS.items() if not kinds]
    assert left_out.total() == sum(map(bool, TEXTS.values()))


def test_a_filter_says_whether_it_leaves_out_anything_and_which_it_is() -> None:
    filters = [TextFilter(), TextFilter(("urls",)), TextFilter(english_words=ENGLISH)]
    assert [bool(each) for each in filters] == [False, True, True]
    assert len({str(each.identity) for each in filters}) == 3
    assert TextFilter(("urls", "retweets")).identity == TextFilter(("retweets", "urls")).identity


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="leave_out 'links' is unknown; choose from retweets, urls, mentions"):
        TextFilter(("links",))


def test_the_order_of_the_kinds_does_not_count() -> None:
    text = "RT @ann: http://example.org"
    for kinds in (("urls", "retweets", "mentions"), ("mentions", "retweets", "urls", "urls")):
        assert TextFilter(kinds).reason(text) == "retweets"
        assert TextFilter(kinds) == TextFilter(("retweets", "urls", "mentions"))


@pytest.mark.parametrize("words", ["the day", ["The"], [7], None])
def test_words_that_are_no_set_of_lower_case_words_are_refused(words: Any) -> None:
    with pytest.raises(InputError, match="english_words must be"):
        TextFilter(english_words=words)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="reason takes a text, not None"):
        TextFilter(("urls",)).reason(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kept takes a list of texts"):
        list(TextFilter(("urls",)).kept("one text", Counter()))


def test_words_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffThe\r\n day \n\ncafé\n".encode())
    assert read_words(path) == {"the", "day", "café"}
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        read_words(path)
    path.write_bytes(b"\n \n")
    with pytest.raises(InputError, match="there are none"):
        read_words(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_words(tmp_path / "missing")
