"""How often words occur in a corpus, and the vocabulary that follows. No model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torchmoji_core.errors import InputError
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

MOST_COUNTED = 10_000_000
"""Different tokens that are counted at a time: some two gigabytes. Beyond, those that came once are forgotten."""


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each token occurs in texts; of several corpora, counts can be added.

    >>> count_words(["so sad today", "SO good"])["so"]
    2

    Above ten million different tokens those met once so far are dropped, so that memory is bounded: counts of rare
    tokens are then lower bounds.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(Tokenizer.tokens(text))
        if len(counts) > MOST_COUNTED:
            counts = Counter({token: count for token, count in counts.items() if count > 1})
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
        InputError: if `start` has more entries than `size`.
    """
    beginning = Vocabulary(start)
    if len(beginning) > size:
        raise InputError(f"a vocabulary of {size:,} entries cannot begin with {len(beginning):,}; give a larger size")
    frequent = {token: count for token, count in counts.items() if count >= min_count}
    return beginning.extend(frequent, size - len(beginning))
