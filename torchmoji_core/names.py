"""What may be the name of a class or a bundle, and how a value that may be anything is shown in a message."""

from __future__ import annotations

import reprlib
import unicodedata

from torchmoji_core.errors import InputError

LONGEST_NAME = 256
_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}
"""Categories of Unicode that end a line, command a terminal, or stand for nothing: controls, surrogates, separators."""
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They make what is behind them look like something else."""

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 100
_shortened.maxlevel = 3


def shown(value: object) -> str:
    """A value as it is put into a message: in one line, and short, whatever its size and depth."""
    return _shortened.repr(value)  # Python's own repr escapes what cannot be seen


def check_name(what: str, name: object) -> None:
    """Accept one line of visible text that can be written in UTF-8; emojis of several characters are such.

    Args:
        what: whose name it is, for the error.
        name: becomes a value of columns, and is printed.

    Raises:
        InputError: if it is empty, longer than 256 characters, or has characters that are none to be seen.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not is_one_line(name):
        raise InputError(
            f"{what} must be one line of text, of at most {LONGEST_NAME} characters and no control characters, "
            f"not {shown(name)}"
        )


def is_one_line(text: str) -> bool:
    """Whether a text can be printed and stored as it is."""
    if text.isascii():
        return text.isprintable()
    return not any(character in _DIRECTIONS or unicodedata.category(character) in _NO_TEXT for character in text)
