"""Words of a corpus are counted as the tokenizer reads them; the most frequent ones are a vocabulary."""

from __future__ import annotations

from collections import Counter

import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training import words
from torchmoji_core.training.words import count_words, vocabulary_of
from torchmoji_core.vocabulary import SPECIAL_TOKENS


def test_words_are_counted_as_the_model_reads_them() -> None:
    texts = ["I love MY dog", "love it, looooove it", "@ann 17<br>http://example.org"]
    expected = ["i", "love", "my", "dog", "love", "it", ",", "loove", "it"]
    expected += ["CUSTOM_AT", "CUSTOM_NUMBER", "CUSTOM_BREAK", "CUSTOM_URL"]
    assert count_words(iter(texts)) == Counter(expected)
    assert count_words([]) == Counter()


def test_counts_of_two_corpora_add_up() -> None:
    assert count_words(["a b"]) + count_words(["b c"]) == count_words(["a b", "b c"])


def test_memory_is_bounded_by_forgetting_what_came_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_COUNTED", 3)
    counts = count_words(["love love", "rain", "sun", "cat", "dog"])
    assert counts["love"] == 2
    assert len(counts) <= 4


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
