"""The token <-> id table of a model: load, save, extend, coverage. No tokenization here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path

from torchmoji_core.durable import write_if_absent
from torchmoji_core.errors import InputError, raise_shortage
from torchmoji_core.files import read_limited
from torchmoji_core.limits import model_limit
from torchmoji_core.locations import local_path, plain
from torchmoji_core.names import shown
from torchmoji_core.options import NOT_NEGATIVE, check_number

SPECIAL_TOKENS = (
    "CUSTOM_MASK",
    "CUSTOM_UNKNOWN",
    "CUSTOM_AT",
    "CUSTOM_URL",
    "CUSTOM_NUMBER",
    "CUSTOM_BREAK",
    "CUSTOM_BLANK_6",
    "CUSTOM_BLANK_7",
    "CUSTOM_BLANK_8",
    "CUSTOM_BLANK_9",
)
"""The first ten entries of every DeepMoji vocabulary; a vocabulary without them fits no DeepMoji model."""

MASK, UNKNOWN, AT, URL, NUMBER, BREAK = range(6)


LONGEST_WORD = 50
"""Characters of a token that is added to a vocabulary. Longer ones are no words; DeepMoji's have 30 at most."""
_BYTES_OF_AN_ENTRY = 64
"""On average, at most: a token in JSON's ASCII, and its id. DeepMoji's has 21. What is longer than a character is ASCII
if the tokenizer has made it, so that words of `LONGEST_WORD` characters fit, too."""


def max_vocabulary_bytes(entries: int) -> int:
    """The most bytes that the file of a vocabulary of so many tokens may have."""
    return (64 << 10) + _BYTES_OF_AN_ENTRY * entries


def check_counts(counts: object) -> None:
    """Accept numbers by token.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(counts, Mapping):
        raise InputError(f"counts must be a number of each token, as count_words gives them, not {shown(counts)}")
    for token, count in counts.items():
        if not isinstance(token, str) or not isinstance(count, Real):
            raise InputError(f"counts must be a number of each token; {shown(token)} has {shown(count)}")


class Vocabulary(Mapping[str, int]):
    """An immutable mapping from token to id; ids run from 0 without gaps, so ``tokens[id]`` inverts it."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Take tokens in id order.

        Raises:
            InputError: if a token appears twice or is no text, or the first ten are not DeepMoji's special tokens.
        """
        self.tokens = tuple(tokens)
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str):
                raise InputError(f"vocabulary: token {index} is {shown(token)}, not a text")
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            seen: set[str] = set()
            twice = next(token for token in self.tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
            raise InputError(f"vocabulary: token {shown(twice)} appears more than once; give each token one id")
        if self.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise InputError(
                "vocabulary: ids 0 to 9 must be DeepMoji's special tokens "
                f"({SPECIAL_TOKENS[0]}, {SPECIAL_TOKENS[1]}, ...); this is not a DeepMoji vocabulary"
            )

    def __getitem__(self, token: str) -> int:
        return self._ids[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_json(cls, content: str | bytes, source: str = "vocabulary") -> Vocabulary:
        """Read the published format: a JSON object from token to id.

        Raises:
            InputError: if the content is not such an object, its ids are not 0 to n-1, or its tokens are no words, but
                so long that no bundle could hold them.
        """
        try:
            mapping = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}: not JSON ({error}); expected an object from token to id") from None
        if not isinstance(mapping, dict) or not all(type(index) is int for index in mapping.values()):
            raise InputError(f"{source}: expected a JSON object from token to integer id")
        ordered = sorted(mapping.items(), key=lambda item: item[1])
        if [index for _, index in ordered] != list(range(len(ordered))):
            raise InputError(f"{source}: ids must run from 0 to {len(ordered) - 1} without gaps or repeats")
        try:
            vocabulary = cls(token for token, _ in ordered)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        size, most = len(content), max_vocabulary_bytes(len(vocabulary))
        if size > most:
            longest = max(vocabulary.tokens, key=len)
            raise InputError(
                f"{source}: {size:,} bytes for {len(vocabulary):,} tokens, above the {most:,} that words take; the "
                f"longest has {len(longest):,} characters: {shown(longest)}"
            )
        return vocabulary

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary file; see `from_json`."""
        limit = max_vocabulary_bytes(model_limit("vocabulary"))
        return cls.from_json(read_limited(f"vocabulary {path}", plain(str(path)), limit), str(path))

    def to_json(self) -> str:
        """The published format: one compact JSON object from token to id, in id order."""
        return json.dumps(self._ids, ensure_ascii=True, separators=(", ", ": "))

    def save(self, path: str | Path) -> None:
        """Write the published format; the file appears whole or not at all.

        Raises:
            InputError: if something is there already, or it cannot be written.
            OSError: if the disk is full.
        """
        target = local_path(path)
        try:
            written = write_if_absent(target, self.to_json().encode())
        except OSError as error:
            raise_shortage(error)
            raise InputError(f"{target}: cannot be written ({error.strerror})") from None
        if not written:
            raise InputError(f"{target} exists already; give a new name")

    def extend(self, counts: Mapping[str, int], limit: int) -> Vocabulary:
        """A new vocabulary with the `limit` most frequent unknown tokens of `counts` appended.

        Ties are broken alphabetically, so that the result depends on the counts alone. Tokens of more than 50
        characters are left out.

        Raises:
            InputError: if `limit` is negative or no whole number, or `counts` are none.
        """
        check_number("limit", limit, NOT_NEGATIVE, is_whole=True)
        check_counts(counts)
        unknown = [
            (-count, token) for token, count in counts.items() if token not in self._ids and len(token) <= LONGEST_WORD
        ]
        return Vocabulary(self.tokens + tuple(token for _, token in sorted(unknown)[:limit]))

    def coverage(self, ids: Iterable[int]) -> float:
        """Share of token ids that are not unknown; NaN when there are none."""
        total = unknown = 0
        for index in ids:
            total += 1
            unknown += index == UNKNOWN
        return 1 - unknown / total if total else float("nan")
