"""Credentials in texts that leave the program: logs, errors and reports get what `redact` leaves of them.

It goes by what credentials look like, and rather hides too much: after `token=`, whatever follows is one. Every
repetition is bounded, so that the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_VALUE = r"""(?:\\?"(?:\\.|[^"\\\n])*"?|\\?'(?:\\.|[^'\\\n])*'?|[^\s&"',;)\]}]+)"""
"""What follows a name: a quoted string, perhaps cut off or quoted once more, or a word."""

_SECRET_NAMES = r"""
    (?: secret [_-]? access [_-]? key | (?:secret|access|account|private|api) [_-]? key | client [_-]? secret
      | (?:session|security|access|refresh|id|auth|api|bearer) [_-]? token | password | passwd | passphrase )"""
"""Names that can mean nothing else."""

_RULES = tuple(
    (re.compile(pattern, re.VERBOSE | re.IGNORECASE), replacement)
    for pattern, replacement in [
        # scheme://user:secret@host. A port is no secret, and neither is an @ in the path behind it.
        (r"""(://) [^\s/:@?\#\['"<>]{0,256} : (?!\d{1,5}[/?\#]) [^\s'"<>]{0,1024} @""", rf"\1{HIDDEN}@"),
        # http://token@host. In other schemes a lone user is part of the address: abfs://container@account/path.
        (r"(\b(?:https?|git|ftp)://) [^\s/:@?\#'\"<>]{1,1024} @", rf"\1{HIDDEN}@"),
        # Authorization: Bearer ..., and as an item of a dictionary or a list of pairs; quoted, or to the line's end.
        (
            r"""(\bauthorization (?:\\?["']\s{0,3}[:=,] | \s{0,3}[:=])\s{0,3} b?)
                (?:\\?"(?:\\.|[^"\\\n])*"? | \\?'(?:\\.|[^'\\\n])*'? | [^\n"')\]}]+)""",
            rf"\1{HIDDEN}",
        ),
        (r"\b(Bearer|Basic)\s{1,3}[\w.~+/=-]{16,}", rf"\1 {HIDDEN}"),
        # Ids of AWS keys: docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
        (r"\b(AKIA|ASIA)[A-Z0-9]{12,}", rf"\1{HIDDEN}"),
        (rf"""({_SECRET_NAMES} \\?["']? \s{{0,3}} [:=] \s{{0,3}}) {_VALUE}""", rf"\1{HIDDEN}"),
        # These are words of prose too, so a colon alone does not make what follows a secret.
        (
            rf"""((?:token|signature|credential|secret) (?:\s{{0,3}}= | \\?["']\s{{0,3}}[:=])\s{{0,3}}) {_VALUE}""",
            rf"\1{HIDDEN}",
        ),
        (rf"([?&](?:sig|key|code|auth)=) {_VALUE}", rf"\1{HIDDEN}"),
    ]
)


def redact(text: str) -> str:
    """The text with every credential in it replaced by `HIDDEN`; what is around it stays."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """The same for all strings in a value of lists, mappings and scalars; paths and the like become strings."""
    if isinstance(value, dict):
        return {redact(str(name)): redact_all(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))
