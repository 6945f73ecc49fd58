"""Which texts of a corpus are not trained on, by the rules of DeepMoji's generator of tweets."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emoji

from torchmoji_core.errors import InputError
from torchmoji_core.files import read_limited
from torchmoji_core.inference.texts import each_text
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.locations import plain
from torchmoji_core.names import shown
from torchmoji_core.options import check_choices, option
from torchmoji_core.token_rules import fold_chunk
from torchmoji_core.tokenizer import Tokenizer, chunks
from torchmoji_core.vocabulary import AT, SPECIAL_TOKENS

_MAX_WORDS_BYTES = 64 << 20
_FEW_WORDS, _SHARE_OF_FEW, _SHARE_OF_MANY = 5, 0.5, 0.6
"""Of fewer than five words half must be English, of others 60 %: DeepMoji's `mostly_english`."""
_URL = re.compile(r"https?://|www\.", re.IGNORECASE)
_PUNCTUATION = frozenset(string.punctuation)
_PARTS_OF_EMOJIS = {
    ord(character): " "
    for each in (*emoji.EMOJI_DATA, *DEEPMOJI_EMOJIS)
    for character in each
    if not character.isascii()
}
"""To be replaced. One of DeepMoji's 64, the white heart, is an emoji for DeepMoji alone. Their order is not checked:
the package `emoji` does, but where many are joined its time grows with the square of the length."""


def _is_word(token: str) -> bool:
    return token not in SPECIAL_TOKENS and not _PUNCTUATION.issuperset(token)


def _has_other_letters(text: str) -> bool:
    """Whether something is left that is not ASCII, beside emojis and punctuation that has an ASCII form."""
    if text.isascii():
        return False
    return not all(fold_chunk(chunk).isascii() for chunk in chunks(text.translate(_PARTS_OF_EMOJIS)))


_KINDS: dict[str, Callable[[str, Sequence[str]], bool]] = {
    # Those that Twitter marks so; "please RT" inside a text is none.
    "retweets": lambda _, tokens: tokens[:1] == ["rt"],
    # By the text: the run of w in www. is shortened before tokens are taken for URLs, so those stay words.
    "urls": lambda text, _: _URL.search(text) is not None,
    "mentions": lambda _, tokens: SPECIAL_TOKENS[AT] in tokens,
    "non_ascii": lambda text, _: _has_other_letters(text),
    "wordless": lambda _, tokens: not any(map(_is_word, tokens)),
}


@dataclass(frozen=True)
class TextFilter:
    """Which texts of a corpus are left out. The default leaves out none."""

    leave_out: tuple[str, ...] = option(
        (),
        "texts that are not used: retweets; those with urls or mentions; non_ascii: with letters beside ASCII's; "
        "wordless: of nothing but punctuation, numbers and the like",
        metavar="KINDS",
    )
    english_words: frozenset[str] = frozenset()
    """Lower-case words. If there are any, texts are left out of whose words too few are among them: of fewer than five
    less than half, else less than 60 %. Tokens of one character, of punctuation and special ones do not count; a text
    with fewer than two words is not left out."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: for an unknown kind, or words that are no collection of lower-case ones.
        """
        check_choices("leave_out", self.leave_out, _KINDS, fewest=0)
        words = self.english_words
        if isinstance(words, str) or not isinstance(words, Collection):
            raise InputError(f"english_words must be a set of words, not {shown(words)}; read_words reads a file")
        for word in words:
            if not isinstance(word, str) or word != word.lower():
                raise InputError(f"english_words must be lower-case words; {shown(word)} is none")
        # In one order, as the first of several reasons is that which is counted.
        object.__setattr__(self, "leave_out", tuple(kind for kind in _KINDS if kind in self.leave_out))
        object.__setattr__(self, "english_words", frozenset(words))

    def __bool__(self) -> bool:
        return bool(self.leave_out or self.english_words)

    def reason(self, text: str) -> str | None:
        """Why a text is left out: the first of the kinds that it is of, or non_english; None if it is not.

        >>> TextFilter(("retweets", "urls")).reason("see https://example.org")
        'urls'

        Raises:
            TypeError: if it is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"reason takes a text, not {shown(text)}")
        tokens = Tokenizer.tokens(text)
        for kind in self.leave_out:
            if _KINDS[kind](text, tokens):
                return kind
        if self.english_words and not self._is_english(tokens):
            return "non_english"
        return None

    def _is_english(self, tokens: Sequence[str]) -> bool:
        words = [token for token in tokens if len(token) > 1 and _is_word(token)]
        share = _SHARE_OF_FEW if len(words) < _FEW_WORDS else _SHARE_OF_MANY
        return len(words) < 2 or sum(word in self.english_words for word in words) >= share * len(words)

    def kept(self, texts: Iterable[str], left_out: Counter[str]) -> Iterator[str]:
        """The texts that are not left out; the others are counted by their reason.

        Raises:
            TypeError: for what is no iterable of strings.
        """
        for text in each_text(texts, "kept"):
            if (reason := self.reason(text)) is None:
                yield text
            else:
                left_out[reason] += 1

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that change when the filter does."""
        words = "\n".join(sorted(self.english_words)).encode("utf-8", "surrogatepass")
        return {
            "leave_out": list(self.leave_out),
            "english_words": hashlib.sha256(words).hexdigest() if self.english_words else None,
        }


def read_words(path: str | Path) -> frozenset[str]:
    """Read a list of words, one a line; they are made lower-case.

    Raises:
        InputError: if the file cannot be read, is no UTF-8, or has no words.
    """
    content = read_limited(f"words {path}", plain(str(path)), _MAX_WORDS_BYTES)
    try:
        lines = content.decode("utf-8-sig").lower().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"words {path}: not UTF-8 at byte {error.start}; give words in a text file, one a line"
        ) from None
    words = frozenset(filter(None, map(str.strip, lines)))
    if not words:
        raise InputError(f"words {path}: there are none; give words in a text file, one a line")
    return words
