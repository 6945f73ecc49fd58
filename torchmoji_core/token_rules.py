"""DeepMoji's token rules inside one white-space chunk: Unicode folding, splitting, run shortening, special tokens.

The vocabulary was built with exactly these rules, quirks included; any change makes known words unknown.
What differs from a plain reading of the rules is only cost: everything here is linear in the chunk's length
(n log n for runs of combining marks), because tweets are hostile text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from itertools import groupby
from unicodedata import combining, normalize

from text_unidecode import unidecode

# --- splitting -----------------------------------------------------------------------------------------------------

# The rules ignore case although texts are lower-cased: folding brings capitals back (™ is TM), and Python's
# case-insensitive [a-z], which the vocabulary was built with, matches the dotless i and three more. All that is
# written out, because a pattern without the flag skips at once what cannot match, and is a third faster.
_LETTER = "a-zA-Z\u0130\u0131\u017f\u212a"
_WORD = f"[{_LETTER}]+"
_TAG = f"[{_LETTER}0-9_]+"
_S = "[sS\u017f]"
_LOCAL_PART = f"[{_LETTER}0-9_.+-]+"
_DOMAIN = rf"@[{_LETTER}0-9-]+\.[{_LETTER}0-9.-]+\b"
_URL = rf"(?:[hH][tT][tT][pP]{_S}?://|[wW][wW][wW]\.)[{_LETTER}0-9$-_@.&+!*(),]+"
_REPEATABLE = ".!,?'\":)(-_=/*&;%~$+<>[]{}^|\\`§´ˇ°€"  # commonest first

_AFTER_EMAIL = "|".join(
    (
        f"{_WORD}[-_]{_WORD}",  # red-haired, CUSTOM_BREAK
        f"#{_TAG}",
        f"@{_TAG}",
        r"(?:<+/?3+)+",  # hearts, whole and broken
        r"-_-|\^_\^|[oO]\.[oO]|\(:|\):|\);|\(;",
        # eyes, nose, one mouth repeated
        r"(?:>?:|[=;])[-,^'\"]?(?:[dD]+|[pP]+|[vV]+|\)+|[oO]+|\(+|3+|/+|\|+|\\+)",
        f"{_WORD}'{_WORD}",
        rf"[mM][rR]\.|[mM]{_S}\.|[mM][rR]{_S}\.|[dD][rR]\.|[pP][rR][oO][fF]\.",
        rf"\b(?<!\.)(?:[{_LETTER}]\.){{2,}}",
        "[0-9]+",
        _WORD,
        "|".join(re.escape(symbol) + "+" for symbol in _REPEATABLE),
        f"#+(?=#{_TAG})|@+(?=@{_TAG})|#+|@+",  # the last # or @ belongs to the tag behind it
        r"\S",
    )
)
_TOKEN = re.compile(f"{_URL}|{_AFTER_EMAIL}")
_TOKEN_OR_EMAIL = re.compile(rf"{_URL}|\b{_LOCAL_PART}{_DOMAIN}|{_AFTER_EMAIL}")
_LOCAL_PART_RUN = re.compile(_LOCAL_PART)
_DOMAIN_HERE = re.compile(_DOMAIN)

_LONG_CHUNK = 256


def split_chunk(chunk: str) -> Iterable[str]:
    """Split a chunk (no line breaks; lower case but for special tokens) into raw tokens.

    >>> list(split_chunk("don't...:-)"))
    ["don't", '...', ':-)']
    """
    if len(chunk) > _LONG_CHUNK:
        return _split_long(chunk)
    return (_TOKEN_OR_EMAIL if "@" in chunk else _TOKEN).findall(chunk)


def _split_long(chunk: str) -> Iterator[str]:
    """The same split, one token at a time, trying the e-mail rule only where it will succeed.

    Tried everywhere, it would read on to the end of each run of letters and dots from every word in that run,
    which is quadratic. A start inside a run can only succeed if the run's end is followed by a domain.
    """
    runs = (run.span() for run in _LOCAL_PART_RUN.finditer(chunk) if _DOMAIN_HERE.match(chunk, run.end()))
    start, end = next(runs, (len(chunk), len(chunk)))
    position = 0
    while position < len(chunk):
        while end <= position:
            start, end = next(runs, (len(chunk), len(chunk) + 1))
        rule = _TOKEN_OR_EMAIL if start <= position else _TOKEN
        match = rule.match(chunk, position)
        if match is None:  # white space that Unicode folding put into the chunk
            position += 1
        else:
            yield match.group()
            position = match.end()


# --- Unicode folding -----------------------------------------------------------------------------------------------

_FOLDED_PUNCTUATION = frozenset("!\"#$'()+,-.:;<=>?@`~")


@lru_cache(maxsize=65_536)
def _fold_character(character: str) -> str:
    """ASCII punctuation for a character that transliterates to nothing else; other characters as they are."""
    ascii_form = unidecode(character).lower()
    return ascii_form if ascii_form and _FOLDED_PUNCTUATION.issuperset(ascii_form) else character


def fold_chunk(chunk: str) -> str:
    """NFKC, then typographic punctuation to ASCII; an ASCII chunk is returned as it is.

    >>> fold_chunk("“wow…”")
    '"wow..."'
    """
    if chunk.isascii():
        return chunk
    if len(chunk) > _LONG_CHUNK:
        chunk = _order_marks(chunk)
    return "".join(map(_fold_character, normalize("NFKC", chunk)))


def _order_marks(chunk: str) -> str:
    """Decompose and bring runs of combining marks into canonical order.

    NFKC does the same, but with an insertion sort: 100 kB of alternating accents would take it ten seconds.
    """
    decomposed = "".join(normalize("NFKD", character) for character in chunk)
    return "".join(
        "".join(sorted(run, key=combining) if is_mark else run)
        for is_mark, run in groupby(decomposed, key=lambda character: combining(character) != 0)
    )


# --- tokens --------------------------------------------------------------------------------------------------------

_LONG_RUN = re.compile(r"(.)\1\1+")
# Plain letters only, unlike in the split: a mention or URL with a dotless i directly behind its mark stays a word.
_MENTION_INSIDE = re.compile(r"@[a-zA-Z0-9_]+")
_URL_INSIDE = re.compile(r"(?:https?://|www\.)[a-zA-Z0-9$-_@.&+!*(),]+")


def shorten(token: str) -> str:
    """Cut runs of three or more equal characters to two, in ASCII tokens.

    The rule is a textual replacement of each such run, one after another from left to right, so a short run
    also bites into longer runs of the same character further on ('aaabaaaaa' -> 'aabaaaa').

    >>> shorten("sooooo")
    'soo'
    """
    if not token.isascii() or not _LONG_RUN.search(token):
        return token
    characters = _LONG_RUN.findall(token)
    if len(set(characters)) == len(characters):  # no run can bite into another
        return _LONG_RUN.sub(r"\1\1", token)
    replaced: dict[str, list[int]] = {}
    for run in _LONG_RUN.finditer(token):
        replaced.setdefault(run[1], []).append(len(run[0]))
    lengths = {character: _shortened_lengths(runs) for character, runs in replaced.items()}
    return _LONG_RUN.sub(lambda run: run[1] * lengths[run[1]][len(run[0])], token)


def _shortened_lengths(lengths: list[int]) -> dict[int, int]:
    """What becomes of each run length of one character when the replacements of `lengths` are made in order.

    Replacing a run of length r turns a run of length m >= r into 2 * (m // r) + m % r. Lengths are kept in a heap,
    largest first, so that a replacement only meets the lengths it changes, and equal lengths are changed once.
    """
    originals = {length: [length] for length in lengths}  # by present length
    heap = sorted(-length for length in originals)
    for replaced in lengths:
        changed = []
        while heap and -heap[0] >= replaced:
            length = -heappop(heap)
            changed.append((2 * (length // replaced) + length % replaced, originals.pop(length)))
        for shorter, members in changed:
            if shorter not in originals:
                originals[shorter] = []
                heappush(heap, -shorter)
            originals[shorter] += members
    return {original: length for length, members in originals.items() for original in members}


def chunk_tokens(chunk: str) -> Iterable[str]:
    """Tokens of one white-space chunk of a lower-cased text, ready for look-up; of a long chunk, one at a time.

    >>> list(chunk_tokens("@ann,sooo"))
    ['CUSTOM_AT', ',', 'soo']
    """
    if chunk.isascii() and chunk.isalpha():  # most chunks are plain words, and no other rule applies to those
        return (shorten(chunk),)
    folded = fold_chunk(chunk)
    tokens = split_chunk(folded)
    if _LONG_RUN.search(folded):
        tokens = map(shorten, tokens)
    return map(_replace_special, tokens)


def _replace_special(token: str) -> str:
    if token.isdecimal():  # what int() accepts, other scripts' digits included
        return "CUSTOM_NUMBER"
    if "@" in token and _MENTION_INSIDE.search(token):
        return "CUSTOM_AT"
    if ("://" in token or "www." in token) and _URL_INSIDE.search(token):
        return "CUSTOM_URL"
    return token
