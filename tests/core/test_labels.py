"""The class list of DeepMoji, and names for classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchmoji_core.labels import DEEPMOJI_EMOJIS, alias, are_emojis


def test_there_are_64_distinct_emojis_of_one_code_point() -> None:
    assert len(set(DEEPMOJI_EMOJIS)) == len(DEEPMOJI_EMOJIS) == 64
    assert all(len(emoji) == 1 for emoji in DEEPMOJI_EMOJIS)


def test_the_order_is_that_of_the_published_list(shared: Path) -> None:
    published = json.loads((shared / "data" / "deepmoji_emojis.json").read_text())
    assert [emoji.replace("\ufe0f", "") for emoji in published] == list(DEEPMOJI_EMOJIS)


@pytest.mark.parametrize(
    ("index", "emoji"), [(0, "😂"), (36, "😋"), (44, "😈"), (47, "♡"), (63, "✨")], ids=lambda value: str(value)
)
def test_the_entries_that_the_port_has_wrong(index: int, emoji: str) -> None:
    assert DEEPMOJI_EMOJIS[index] == emoji


def test_aliases_are_distinct_plain_names() -> None:
    names = [alias(emoji) for emoji in DEEPMOJI_EMOJIS]
    assert len(set(names)) == 64
    assert all(name.isascii() and name and " " not in name for name in names)


@pytest.mark.parametrize(
    ("label", "name"),
    [("😂", "face_with_tears_of_joy"), ("♡", "white_heart_suit"), ("anger", "anger"), ("", ""), ("ñandú", "ñandú")],
)
def test_alias(label: str, name: str) -> None:
    assert alias(label) == name


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (DEEPMOJI_EMOJIS, True),
        (["😂", "❤\ufe0f"], True),
        (["anger", "joy"], False),
        (["😂", "joy"], False),
        (["é", "ü"], False),
        (["0", "1"], False),
        ([":)", ":("], False),
    ],
    ids=["deepmoji", "with a selector", "words", "mixed", "letters", "digits", "emoticons"],
)
def test_are_emojis(labels: list[str], expected: bool) -> None:
    assert are_emojis(labels) is expected
