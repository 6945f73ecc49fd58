"""DeepMoji's tokenization, rule after rule and character after character: no caches, no shortcuts, no care for speed.

Differs from `torchmoji_core.token_rules` on purpose. Each rule is a pattern of its own, tried in order at each
position; nothing is case-insensitive, the letters that count as ASCII ones are written out; runs are shortened by
replacing text; breaks and variation selectors are replaced one kind after another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from itertools import groupby

from text_unidecode import unidecode

# What Python's case-insensitive [a-z] has always matched: both cases, and the four letters that fold to i, s and k.
_LETTER = "a-zA-Z\u0130\u0131\u017f\u212a"
_WORD = f"[{_LETTER}]+"
_TAG = f"[{_LETTER}0-9_]+"
_MR, _MS, _MRS, _DR, _PROF = "[mM][rR]", "[mM][sS\u017f]", "[mM][rR][sS\u017f]", "[dD][rR]", "[pP][rR][oO][fF]"
_BOUNDARY = r"\b"
_URL_TAIL = rf"[{_LETTER}0-9$-_@.&+!*(),]+"
_REPEATED = ".,!?'\":;()[]{}<>-_=+/*&%~$^|\\`" + "§´ˇ°€"

_RULES = [
    ("url", rf"[hH][tT][tT][pP]://{_URL_TAIL}"),
    ("secure url", rf"[hH][tT][tT][pP][sS\u017f]://{_URL_TAIL}"),
    ("www", rf"[wW][wW][wW]\.{_URL_TAIL}"),
    (
        "e-mail",
        rf"{_BOUNDARY}[{_LETTER}0-9_.+-]+@[{_LETTER}0-9-]+\.[{_LETTER}0-9.-]+{_BOUNDARY}",
    ),
    ("two parts", f"{_WORD}[-_]{_WORD}"),
    ("hashtag", f"#{_TAG}"),
    ("mention", f"@{_TAG}"),
    ("hearts", "(?:<+3+|<+/3+)+"),
    ("flat face", "-_-"),
    ("dead face", "[xX]_[xX]"),
    ("happy eyes", r"\^_\^"),
    ("wide eyes", "[oO][._][oO]"),
    ("mirrored face", r"\(:|\):|\);|\(;"),
    ("face", r"(?:>:|:|=|;)(?:-|,|\^|'|\"|)(?:[dD]+|[pP]+|[vV]+|\)+|[oO]+|\(+|3+|/+|\|+|\\+)"),
    ("contraction", f"{_WORD}'{_WORD}"),
    ("title", rf"(?:{_MR}|{_MS}|{_MRS}|{_DR}|{_PROF})\."),
    ("abbreviation", rf"{_BOUNDARY}(?<!\.)[{_LETTER}]\.(?:[{_LETTER}]\.)+"),
    ("digits", "[0-9]+"),
    ("letters", _WORD),
    ("run", f"([{re.escape(_REPEATED)}])\\1*"),
    ("symbols in front of a hashtag", f"#+(?=#{_TAG})"),
    ("symbols in front of a mention", f"@+(?=@{_TAG})"),
    ("hashes", "#+"),
    ("ats", "@+"),
    ("anything", r"\S"),
]
RULES = [(name, re.compile(pattern)) for name, pattern in _RULES]

_BREAKS = ("\\\\n", "\\\\r", "\\n", "\\r", "\n", "\r", "<br>")  # the longest escapes first
_PUNCTUATION = "!\"#$'()+,-.:;<=>?@`~"


def oracle_tokens(text: str) -> list[str]:
    """All tokens of a text."""
    text = text.strip().lower()
    for mark in _BREAKS:
        text = text.replace(mark, " CUSTOM_BREAK ")
    for number in range(0xFE00, 0xFE10):
        text = text.replace(chr(number), "")
    return [special(oracle_shorten(raw)) for word in text.split() for raw in split(fold(word))]


def oracle_ids(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of all tokens of a text, 1 for those that are not in the vocabulary."""
    return [vocabulary.get(token, 1) for token in oracle_tokens(text)]


def fold(word: str) -> str:
    """NFKC, then ASCII for what transliterates to punctuation; a word of ASCII is left as it is."""
    if all(ord(character) < 128 for character in word):
        return word
    folded = ""
    for character in unicodedata.normalize("NFKC", word):
        ascii_form = unidecode(character).lower()
        is_punctuation = ascii_form != "" and all(symbol in _PUNCTUATION for symbol in ascii_form)
        folded += ascii_form if is_punctuation else character
    return folded


def split(word: str) -> list[str]:
    """At each position the first rule that matches gives the token; white space is passed over."""
    tokens = []
    position = 0
    while position < len(word):
        for _, pattern in RULES:
            match = pattern.match(word, position)
            if match:
                tokens.append(match.group())
                position = match.end()
                break
        else:
            position += 1
    return tokens


def oracle_shorten(token: str) -> str:
    """Replace each run of three or more, wherever its text now stands, by two; one run after another."""
    if any(ord(character) >= 128 for character in token):
        return token
    runs = ["".join(group) for _, group in groupby(token)]
    for run in runs:
        if len(run) >= 3:
            token = token.replace(run, run[:2])
    return token


def special(token: str) -> str:
    """The token of its kind for numbers, mentions and URLs; other tokens as they are."""
    if all(unicodedata.decimal(character, None) is not None for character in token):
        return "CUSTOM_NUMBER"
    if re.search("@[a-zA-Z0-9_]", token):
        return "CUSTOM_AT"
    if re.search("http://[a-zA-Z0-9$-_@.&+!*(),]|https://[a-zA-Z0-9$-_@.&+!*(),]|www[.][a-zA-Z0-9$-_@.&+!*(),]", token):
        return "CUSTOM_URL"
    return token
