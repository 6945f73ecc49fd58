"""How often words occur in a corpus, and the vocabulary that follows. No model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torchmoji_core.errors import InputError
from torchmoji_core.inference.texts import each_text
from torchmoji_core.options import NOT_NEGATIVE, check_number
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.vocabulary import LONGEST_WORD, SPECIAL_TOKENS, Vocabulary, check_counts

MOST_COUNTED = 10_000_000
"""Different tokens that are counted at a time: some two gigabytes. Beyond, the rarest are forgotten."""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each token occurs in texts; of several corpora, counts can be added.

    >>> count_words(["so sad today", "SO good"])["so"]
    2

    Tokens of more than 50 characters are none that a vocabulary takes, and are not counted. Above ten million different
    tokens the rarest are dropped, until half of them are left: memory is bounded, and counts of rare tokens are lower
    bounds then.

    Args:
        texts: any iterable of strings, read once.

    Raises:
        TypeError: for one string, a table and the like, or naming the first row that is no text.
    """
    counts: Counter[str] = Counter()
    rarest = 0
    for text in each_text(texts, "count_words"):
        counts.update(token for token in Tokenizer.tokens(text) if len(token) <= LONGEST_WORD)
        if len(counts) > MOST_COUNTED:
            while len(counts) > MOST_COUNTED // 2:  # so that it is done seldom
                rarest += 1
                counts = Counter({token: count for token, count in counts.items() if count > rarest})
    return counts


def vocabulary_of(
    counts: Mapping[str, int], min_count: int, size: int, start: Iterable[str] = SPECIAL_TOKENS
) -> Vocabulary:
    """A vocabulary of the most frequent tokens, ties in alphabetical order.

    Args:
        counts: how often tokens occur; see `count_words`.
        min_count: rarer ones are left out.
        size: the most entries, those of `start` included.
        start: tokens that come first and keep their ids: a vocabulary to extend, or DeepMoji's special tokens.

    Raises:
        InputError: if `start` has more entries than `size`, or `min_count` or `size` is no whole number.
    """
    check_number("min_count", min_count, NOT_NEGATIVE, is_whole=True)
    check_number("size", size, NOT_NEGATIVE, is_whole=True)
    check_counts(counts)
    beginning = Vocabulary(start)
    if len(beginning) > size:
        raise InputError(f"a vocabulary of {size:,} entries cannot begin with {len(beginning):,}; give a larger size")
    frequent = {token: count for token, count in counts.items() if count >= min_count}
    return beginning.extend(frequent, size - len(beginning))
