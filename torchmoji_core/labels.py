"""The class list of a model: DeepMoji's 64 emojis, or the classes of a fine-tuned task."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# fmt: off
DEEPMOJI_EMOJIS = (
    "😂", "😒", "😩", "😭", "😍", "😔", "👌", "😊", "❤", "😏", "😁", "🎶", "😳", "💯", "😴", "😌",
    "☺", "🙌", "💕", "😑", "😅", "🙏", "😕", "😘", "♥", "😐", "💁", "😞", "🙈", "😫", "✌", "😎",
    "😡", "👍", "😢", "😪", "😋", "😤", "✋", "😷", "👏", "👀", "🔫", "😣", "😈", "😓", "💔", "♡",
    "🎧", "🙊", "😉", "💀", "😖", "😄", "😜", "😠", "🙅", "💪", "👊", "💜", "💖", "💙", "😬", "✨",
)
# fmt: on
"""Output i of a DeepMoji model is entry i. One code point each, without variation selectors. The order is that of the
emoji list the published model was trained with; the port's `emoji_codes.json` is wrong at 36, 44 and 47."""


@lru_cache(maxsize=4096)
def alias(label: str) -> str:
    """A name in plain ASCII for a class: an emoji's short code, a symbol's Unicode name, or the label itself.

    >>> alias("😂"), alias("♡"), alias("anger")
    ('face_with_tears_of_joy', 'white_heart_suit', 'anger')
    """
    import emoji

    short_code: str = emoji.demojize(label, delimiters=("", ""))
    if short_code == label and len(label) == 1 and not label.isascii():
        return unicodedata.name(label, label).lower().replace(" ", "_")
    return short_code


@lru_cache(maxsize=4096)
def short_name(label: str) -> str:
    """As `alias`, but with the shorter names that chats use, as column names have them.

    >>> short_name("😂"), short_name("♡")
    ('joy', 'white_heart_suit')
    """
    import emoji

    short_code: str = emoji.demojize(label, delimiters=("", ""), language="alias")
    return alias(label) if short_code == label else short_code


def are_emojis(labels: Sequence[str]) -> bool:
    """Whether a class list is one of emojis (or symbols used as such) rather than of words."""
    return all(len(label) <= 2 and not label.isalnum() and not label.isascii() for label in labels)
