"""HTML as the text that a reader sees, in time linear in its length whatever it holds.

The standard library's parser takes quadratic time, in versions of Python that are in use, for tags that never end.
"""

from __future__ import annotations

import re
from html import unescape

_TAG = re.compile(r"""<(?:/?([a-zA-Z][a-zA-Z0-9-]*)(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+>|!--[^<>]*+>)""")
"""No tag holds another `<`, so that no search goes on behind the next one."""
_BREAKS = frozenset(("br", "p", "/p", "div", "/div", "li", "/li", "ul", "/ul", "ol", "/ol", "blockquote", "/blockquote",
                     "pre", "/pre", "h1", "/h1", "h2", "/h2", "h3", "/h3", "h4", "/h4", "hr"))  # fmt: skip
_SEEN = re.compile(
    r"</?(?:a|b|i|p|u|s|br|em|div|img|span|strong|blockquote|ul|ol|li|pre|code)(?:\s[^<>]*+)?/?>"
    r"|&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]{1,7}|#x[0-9a-f]{1,6});",
    re.IGNORECASE,
)


def html_to_text(html: str) -> str:
    """Without tags, of which those of paragraphs, lines and lists are breaks, and with entities decoded.

    >>> html_to_text("<p>what a day &amp; <b>night</b></p><p>bye</p>")
    'what a day & night\\nbye'
    """
    text = _TAG.sub(_instead, html)
    if "\n" in text:
        text = "\n".join(filter(None, (line.strip(" \t\r") for line in text.split("\n"))))
    return unescape(text)


def _instead(tag: re.Match[str]) -> str:
    name = (tag[1] or "").lower()
    return "\n" if (f"/{name}" if tag[0].startswith("</") else name) in _BREAKS else ""


def has_html(text: str) -> bool:
    """Whether tags or entities are among the words of a text."""
    return ("<" in text or "&" in text) and _SEEN.search(text) is not None
