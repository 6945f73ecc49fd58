"""Credentials in texts that leave the program: logs, errors and reports get what `redact` leaves of them.

It goes by what credentials look like, and rather hides too much: after `token=`, whatever follows is one. Every
repetition is bounded or passes over what it has matched, so that the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_QUOTED = r"""(?:[bfru]?\\{0,3}"(?:\\.|""|[^"\\\n])*"? | [bfru]?\\{0,3}'(?:\\?'"'"'|\\.|''|[^'\\\n])*'?)"""
"""Perhaps cut off, quoted once more, or with quotes inside as SQL, CSV and shells have them."""
_NEXT = r"(?:[a-z_][\w-]{0,63}=)"
_MARK, _LETTER = r"""[&"',;)\]}]""", r"""[^\s&"',;)\]}]"""
_VALUE = rf"(?:{_QUOTED} | (?:{_MARK}+ (?!{_NEXT}))? {_LETTER}+ (?:{_MARK}+ (?!{_NEXT}) {_LETTER}+)*)"
"""What follows a name: a quoted string, or a word up to the punctuation at its end or before the next name."""
_EQUALS = r"(?::?={1,2}>? | %(?:25){0,2}3d)"
_COLON = r"(?:: | %(?:25){0,2}3a)"
_END_OF_NAME = r"""(?:\\{0,3}["'] | %(?:25)?2[27])"""
_IS = rf"{_END_OF_NAME}? \s{{0,3}} (?:{_EQUALS} | {_COLON}) \s{{0,3}}"
"""Between a name and its value; the name may be quoted, and all of it percent-encoded."""
_IS_SURELY = rf"(?:\s{{0,3}}{_EQUALS} | {_END_OF_NAME} \s{{0,3}} (?:{_EQUALS} | {_COLON})) \s{{0,3}}"
"""The same without a colon behind a plain word, which prose has too."""

_WORD_BEGINS = r"(?:(?<![a-z]) | (?-i:(?<=[a-z])(?=[A-Z])))"
"""So that short names are not found in `bypass`, `compass` or `orig`."""
_SECRET_NAMES = rf"""
    (?: (?:secret|access|account|private|api|auth|signing|encryption|master|storage|shared|consumer|host|subscription
        |service) [_-]? key
      | secret [_-]? access [_-]? key | client [_-]? secret | shared [_-]? access [_-]? signature
      | (?:session|security|access|refresh|id|auth|api|bearer|sas|csrf|bot) [_-]? token | x-[a-z-]{{1,40}}-token
      | pass[_-]?(?:word|phrase|code) | passwd | {_WORD_BEGINS} (?:pwd|pass|pw|jwt) ) (?:[_-]?\d{{1,3}})?"""
"""Names that can mean nothing else where a value is given."""
_SECRET_WORDS = rf"(?:token | signature | credentials? | secret | {_WORD_BEGINS} (?:sig|sas))"
"""Words of prose too, so that a colon alone does not make what follows a secret."""
_SAID = r"""(?:is|was|are|must|may|can|cannot|needs?|has|and|or|to|in|of|for|with|without|not|expects?|requires?|takes?|
    should|will|wants?|unknown|missing|if|as|from|given|by|at|on|does|that|instead|here|there|option)(?![^\s,.;])"""
"""How a sentence goes on after the name of an option."""

_RULES = tuple(
    (re.compile(pattern, re.VERBOSE | re.IGNORECASE), replacement)
    for pattern, replacement in [
        # A key of several lines, which may be cut off.
        (
            r"""-----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?----- [^-]* (?:-(?!----)[^-]*)*
                (?:-----END\ [A-Z ]{0,60}-----)?""",
            HIDDEN,
        ),
        # scheme://user:secret@host, with any character in the secret. A port is no secret, and neither is an @ in the
        # path behind it.
        (
            r"""(://) [^\s/:@?\#\[]{0,256} :
                (?!\d{1,5}(?:[/?\#>),;\]}] | \\{0,3}["'](?:[\s,;:)\]}>]|$))) \S{0,1024} @""",
            rf"\1{HIDDEN}@",
        ),
        # http://token@host. In other schemes a lone user is part of the address: abfs://container@account/path.
        (r"(\b(?:https?|git|ftp)://) [^\s/:@?\#]{1,1024} @", rf"\1{HIDDEN}@"),
        # Both percent-encoded, as an address within another.
        (r"(%(?:25)?3a(?:%(?:25)?2f){2}) [^\s/@&?\#]{1,1024} (%(?:25)?40)", rf"\1{HIDDEN}\2"),
        # Authorization: Bearer ..., and as an item of a dictionary or a list of pairs; quoted, or to the line's end.
        (
            r"""(\b(?:authorization|(?:set-)?cookie) (?:\\{0,3}["']\s{0,3}[:=,] | \s{0,3}[:=])\s{0,3} b?)
                """
            rf"(?:{_QUOTED} | [^\n\"')\]}}]+)",
            rf"\1{HIDDEN}",
        ),
        (r"\b(Bearer|Basic)\s{1,3}[\w.~+/=-]{16,}", rf"\1 {HIDDEN}"),
        # Ids of AWS keys: docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
        (r"\b(AKIA|ASIA)[A-Z0-9]{12,}", rf"\1{HIDDEN}"),
        # JSON Web Tokens, and what GitHub, GitLab, Slack, Hugging Face and Google make.
        (r"\beyJ[\w-]{8,}\.[\w-]*(?:\.[\w-]*)*", HIDDEN),
        (
            r"""\b(gh[a-z]_ | github_pat_ | glpat- | xox[a-z]- | hf_ | AIza | ya29\.) (?-i:[\w-]{20,})""",
            rf"\1{HIDDEN}",
        ),
        # Server=...;Password=two words;... Of the last, the rule below takes what has no blanks.
        (r"(;\s{0,3} (?:password|passwd|pwd)\s{0,3}=) [^;\n]{1,1024} (?=;)", rf"\1{HIDDEN}"),
        (rf"({_SECRET_NAMES} {_IS}) (?!expected\s) {_VALUE}", rf"\1{HIDDEN}"),
        (rf"({_SECRET_WORDS} {_IS_SURELY}) {_VALUE}", rf"\1{HIDDEN}"),
        (rf"([?&](?:key|code|auth)=) {_VALUE}", rf"\1{HIDDEN}"),
        # token: value, where the value is no word.
        (
            rf"""({_SECRET_WORDS} \s{{0,3}} {_COLON} \s{{0,3}}) (?=[a-z_.~+/=-]{{0,64}}\d) [\w.~+/=-]{{16,}}""",
            rf"\1{HIDDEN}",
        ),
        # Elements of XML, a line of .netrc, and what curl is given.
        (rf"(<[\w:.-]{{0,64}} (?:{_SECRET_NAMES} | {_SECRET_WORDS})>) [^<]{{1,4096}}", rf"\1{HIDDEN}"),
        (rf"(\blogin\s{{1,9}}\S{{1,256}}\s{{1,9}}password\s{{1,9}}) {_VALUE}", rf"\1{HIDDEN}"),
        (r"""((?<![\w-])(?:-u|--(?:proxy-)?user)[\s=]{1,3}["']?[^\s:"']{1,256}:) [^\s"']+""", rf"\1{HIDDEN}"),
        # --password value, and as items of a list.
        (
            rf"""(?<![\w-])(-{{1,2}} (?:[a-z0-9]{{1,32}}[_-]){{0,6}} (?:{_SECRET_NAMES} | token | secret | credentials?)
                (?:\s{{1,3}} (?!{_SAID}) | ["']\s{{0,3}},\s{{0,3}})) (?!--?[a-z]) {_VALUE}""",
            rf"\1{HIDDEN}",
        ),
    ]
)
_NAME = re.compile(rf"(?:{_SECRET_NAMES} | {_SECRET_WORDS} | authorization) \Z", re.VERBOSE | re.IGNORECASE)


def redact(text: str) -> str:
    """The text with every credential in it replaced by `HIDDEN`; what is around it stays."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """The same for all strings in a value of lists, mappings and scalars; paths and the like become strings."""
    if isinstance(value, dict):
        return {redact(str(name)): _redact_item(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _redact_item(name: str, value: Any) -> Any:
    """The value of a mapping, which its name may make a secret."""
    return HIDDEN if isinstance(value, str) and value and _NAME.search(name) else redact_all(value)
