"""Text -> tokens -> ids by DeepMoji's rules, exactly and in linear time.

This file holds what happens to a text as a whole and the caches that make it fast; the rules inside one
white-space chunk are in `token_rules`. Tokens never contain white space and no rule looks across it, so a
cache from chunk to ids gives the same ids as no cache.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, islice

from torchmoji_core.errors import InputError
from torchmoji_core.token_rules import chunk_tokens
from torchmoji_core.vocabulary import MASK, UNKNOWN, Vocabulary

TOKENIZER_VERSION = "deepmoji-1"
"""Recorded in bundles and outputs; changes whenever any text could get other ids."""

DEFAULT_CACHE_CHUNKS = 200_000
_LONGEST_CACHED_CHUNK = 40
_LONG_TEXT = 1000
"""Characters above which a text is not read further than the limit, however much that is."""

# Real line breaks, their escaped forms (one or two backslashes) and HTML's, wherever they stand.
_LINE_BREAK = re.compile(r"\\{1,2}[nr]|[\n\r]|<br>")
_BREAK = " CUSTOM_BREAK "
_VARIATION_SELECTOR = re.compile("[\ufe00-\ufe0f]")


def chunks(text: str) -> list[str]:
    """Lower-case a text, make its line breaks tokens, drop variation selectors, split on white space.

    >>> chunks("So GOOD<br>yes")
    ['so', 'good', 'CUSTOM_BREAK', 'yes']
    """
    text = text.strip().lower()
    if "\\" in text or "\n" in text or "\r" in text or "<br>" in text:
        text = _LINE_BREAK.sub(_BREAK, text)
    if not text.isascii():
        text = _VARIATION_SELECTOR.sub("", text)
    return text.split()


class Tokenizer:
    """DeepMoji's tokenizer for one vocabulary. Any `str` is accepted. Safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary, cache_chunks: int = DEFAULT_CACHE_CHUNKS) -> None:
        """Args:
        vocabulary: token to id.
        cache_chunks: how many distinct white-space chunks to remember (0 for none); about 150 bytes each.
        """
        self.vocabulary = vocabulary
        self._cache_chunks = cache_chunks
        self._chunks = _ChunkCache(vocabulary, cache_chunks)
        self._ids_of_chunk = self._chunks.__getitem__

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Vocabulary, int]]:
        return Tokenizer, (self.vocabulary, self._cache_chunks)  # a copy has an empty cache

    @staticmethod
    def tokens(text: str, limit: int | None = None) -> list[str]:
        """The tokens of a text, after run shortening and with special tokens put in; at most `limit`.

        No vocabulary decides them, so no tokenizer need be made.

        Raises:
            ValueError: if the limit is negative.

        >>> Tokenizer.tokens("@ann sooooo good!!! 100%")
        ['CUSTOM_AT', 'soo', 'good', '!!', 'CUSTOM_NUMBER', '%']
        """
        _check(limit)
        return list(islice(chain.from_iterable(map(_tokens_of_chunk, chunks(text))), limit))

    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """The token ids of a text, 1 for unknown tokens; all of them, or the first `limit`.

        Raises:
            ValueError: if the limit is negative.
        """
        return self.encode(text, limit).tolist()

    def encode(self, text: str, limit: int | None = None) -> array[int]:
        """As `ids`, as numbers of 64 bits side by side, of type "q"."""
        if len(text) > _LONG_TEXT:
            return array("q", map(self._chunks.id_of, self.tokens(text, limit)))
        ids = array("q", b"".join(map(self._ids_of_chunk, chunks(text))))
        if limit is None or len(ids) <= limit:
            return ids
        _check(limit)
        return ids[:limit]

    def words(self, ids: Iterable[int]) -> list[str]:
        """The tokens of ids, the way back from `ids`; a padding 0 is left out, an unknown token is CUSTOM_UNKNOWN.

        Raises:
            InputError: for an id that the vocabulary does not have.

        >>> Tokenizer(vocabulary).words([13, 1, 0, 0])
        ['good', 'CUSTOM_UNKNOWN']
        """
        tokens = self.vocabulary.tokens
        words = []
        for index in map(int, ids):
            if not 0 <= index < len(tokens):
                raise InputError(f"token id {index} is outside the vocabulary (0 to {len(tokens) - 1})")
            if index != MASK:
                words.append(tokens[index])
        return words


def _check(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be at least 0, not {limit}")


def _tokens_of_chunk(chunk: str) -> Iterable[str]:
    return _remembered_tokens(chunk) if len(chunk) <= _LONGEST_CACHED_CHUNK else chunk_tokens(chunk)


@lru_cache(maxsize=65_536)
def _remembered_tokens(chunk: str) -> tuple[str, ...]:
    return tuple(chunk_tokens(chunk))


class _ChunkCache(dict[str, bytes]):
    """Chunk -> ids, filled on demand. When full it is emptied: as fast as an LRU here, without its bookkeeping.

    Ids are bytes, as arrays of "q" have them: to join these touches a third of the memory that lists of numbers do.
    """

    def __init__(self, vocabulary: Vocabulary, capacity: int) -> None:
        super().__init__()
        self._get = {token: index for index, token in enumerate(vocabulary.tokens)}.get
        self._capacity = capacity

    def id_of(self, token: str) -> int:
        return self._get(token, UNKNOWN)

    def __missing__(self, chunk: str) -> bytes:
        get = self._get
        ids = array("q", [get(token, UNKNOWN) for token in chunk_tokens(chunk)])
        encoded = ids.tobytes()
        # NFKC can make 18 characters of one.
        if self._capacity and len(chunk) <= _LONGEST_CACHED_CHUNK and len(ids) <= _LONGEST_CACHED_CHUNK:
            if len(self) >= self._capacity:
                self.clear()
            self[chunk] = encoded
        return encoded
