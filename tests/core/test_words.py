"""Words of a corpus are counted as the tokenizer reads them; the most frequent ones are a vocabulary."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training import words
from torchmoji_core.training.words import count_words, vocabulary_of
from torchmoji_core.vocabulary import LONGEST_WORD, SPECIAL_TOKENS


def test_words_are_counted_as_the_model_reads_them() -> None:
    texts = ["I love MY dog", "love it, looooove it", "@ann 17<br>http://example.org"]
    expected = ["i", "love", "my", "dog", "love", "it", ",", "loove", "it"]
    expected += ["CUSTOM_AT", "CUSTOM_NUMBER", "CUSTOM_BREAK", "CUSTOM_URL"]
    assert count_words(iter(texts)) == Counter(expected)
    assert count_words([]) == Counter()


def test_counts_of_two_corpora_add_up() -> None:
    assert count_words(["a b"]) + count_words(["b c"]) == count_words(["a b", "b c"])


def test_memory_is_bounded_by_forgetting_the_rarest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_COUNTED", 4)
    counts = count_words(["love love love", "rain", "sun", "cat", "dog"])
    assert counts["love"] == 3
    assert len(counts) <= 4
    # Of words that are all frequent, too.
    counts = count_words(["love " * 9, *(["rain", "sun", "cat", "dog", "tea", "hail", "sleet"] * 3)])
    assert counts["love"] == 9 and len(counts) <= 4


def test_what_is_too_long_for_a_word_is_not_counted() -> None:
    longest = "ab" * (LONGEST_WORD // 2)
    assert count_words([longest, "ab" * 10_000, f"{longest}c"]) == {longest: 1}


@pytest.mark.parametrize("texts", ["so sad", b"so sad", {"so": 1}, pd.DataFrame({"text": ["so"]}), None, ["so", None]])
def test_what_is_no_list_of_texts_is_refused(texts: Any) -> None:
    with pytest.raises(TypeError, match="count_words"):
        count_words(texts)
    assert count_words({"so sad"}) == {"so": 1, "sad": 1}


def test_a_vocabulary_has_the_most_frequent_tokens() -> None:
    counts = {"sun": 5, "rain": 2, "cat": 2, "once": 1, "CUSTOM_AT": 9}
    assert vocabulary_of(counts, 2, 50).tokens == (*SPECIAL_TOKENS, "sun", "cat", "rain")
    assert vocabulary_of(counts, 1, 12).tokens == (*SPECIAL_TOKENS, "sun", "cat")


def test_a_vocabulary_is_extended_behind_its_own_ids() -> None:
    start = vocabulary_of({"rain": 1, "tea": 1}, 1, 50)
    wider = vocabulary_of({"sun": 5, "rain": 9, "cat": 2}, 1, 14, start)
    assert wider.tokens == (*start.tokens, "sun", "cat")
    with pytest.raises(InputError, match="11 entries cannot begin with 12"):
        vocabulary_of({}, 1, 11, start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"sun": 1}, "2", 50), "min_count must be a whole number"),
        (({"sun": 1}, 1, 50.5), "size must be a whole number"),
        ((["sun"], 1, 50), "counts must be a number of each token, as count_words gives them"),
        (({7: 1}, 1, 50), "counts must be a number of each token; 7 has 1"),
        (({"sun": "many"}, 1, 50), "'sun' has 'many'"),
    ],
)
def test_wrong_arguments_of_a_vocabulary_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vocabulary_of(*arguments)
