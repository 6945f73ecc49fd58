"""Texts with their emojis become mapped token ids; what is wrong with them is one line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training import emoji_corpus
from torchmoji_core.training.emoji_corpus import count_tokens, prepare, vocabulary_of
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

ROWS: list[dict[str, Any]] = [
    {"text": "I love my dog", "emoji": "❤", "emojis": ["❤", "😍"], "split": "train"},
    {"text": "so sad today", "emoji": "😢", "emojis": ["😢"], "split": "val"},
    {"text": "love it, love it", "emoji": "😍", "emojis": ["😍", "❤", "😍"], "split": "train"},
    {"text": "the rain again", "emoji": "😒", "emojis": [], "split": "train"},
    {"text": "good night", "emoji": "😴", "emojis": ["😴"], "split": "test"},
]


@dataclass
class Rows:
    """Texts with emojis, in memory, in pieces."""

    rows: Sequence[dict[str, Any]] = tuple(ROWS)
    size: int = 100
    version: int = 1
    name: str = "rows"

    @property
    def identity(self) -> list[Any]:
        return [self.name, self.version]

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.rows), self.size):
            yield {name: [row[name] for row in self.rows[start : start + self.size]] for name in columns}


def test_texts_and_emojis_by_split(tmp_path: Path, vocabulary: Vocabulary) -> None:
    splits = prepare(Rows(), vocabulary, 3, tmp_path / "prepared")
    tokenizer = Tokenizer(vocabulary)
    for split, data in splits.items():
        rows = [row for row in ROWS if row["split"] == split]
        assert len(data) == len(rows)
        for index, row in enumerate(rows):
            assert data.corpus[index].tolist() == tokenizer.ids(row["text"], 3)
            assert {DEEPMOJI_EMOJIS[number] for number in data.emojis[index]} == set(row["emojis"])
            assert DEEPMOJI_EMOJIS[data.labels[index]] == row["emoji"]
    assert splits["train"].emojis.lengths.tolist() == [2, 2, 0]  # distinct ones
    assert isinstance(splits["train"].corpus.values, np.memmap)


def test_pieces_make_a_whole(tmp_path: Path, vocabulary: Vocabulary) -> None:
    whole = prepare(Rows(ROWS * 7), vocabulary, 30, tmp_path / "whole")
    pieces = prepare(Rows(ROWS * 7, size=4), vocabulary, 30, tmp_path / "pieces")
    for split, data in whole.items():
        assert data.corpus.values.tolist() == pieces[split].corpus.values.tolist()
        assert data.emojis.offsets.tolist() == pieces[split].emojis.offsets.tolist()
    first = prepare(Rows(ROWS * 7, size=4), vocabulary, 30, tmp_path / "first", rows=4)
    assert {split: len(data) for split, data in first.items()} == {"train": 4, "val": 4, "test": 4}
    assert first["train"].corpus[3].tolist() == whole["train"].corpus[3].tolist()


def test_prepared_files_are_kept_until_something_changes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    prepared = tmp_path / "prepared"
    written = prepared / "train" / "tokens.values"

    def times() -> int:
        return written.stat().st_mtime_ns

    prepare(Rows(), vocabulary, 3, prepared)
    os.utime(written, ns=(1, 1))
    prepare(Rows(), vocabulary, 3, prepared)
    assert times() == 1
    assert prepare(Rows(), vocabulary, 4, prepared)["train"].corpus.lengths.max() == 4
    os.utime(written, ns=(1, 1))
    prepare(Rows(ROWS[::-1], version=2), vocabulary, 4, prepared)
    assert times() > 1
    os.utime(written, ns=(1, 1))
    (prepared / "prepared.json").write_text("{")  # cut off
    prepare(Rows(ROWS[::-1], version=2), vocabulary, 4, prepared)
    assert times() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "row 6: a text is null"),
        ({"split": "validation"}, "row 6: split 'validation' is unknown; expected train, val, test"),
        ({"split": None}, "row 6: split None is unknown"),
        ({"text": 5}, "a text is 5, not a text"),
        ({"emojis": 5}, "the emojis of a text are 5, not a list"),
        ({"emojis": [["😂"]]}, "not one of DeepMoji's 64"),
        ({"emoji": ["😂"]}, "not one of DeepMoji's 64"),
        ({"emojis": ["🦊"]}, "'🦊' is not one of DeepMoji's 64"),
        ({"emoji": "fox"}, "'fox' is not one of DeepMoji's 64"),
    ],
)
def test_a_row_at_fault(tmp_path: Path, vocabulary: Vocabulary, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(Rows([*ROWS, ROWS[0] | change]), vocabulary, 30, tmp_path / "prepared")
    # What was begun is not taken for finished.
    assert len(prepare(Rows(), vocabulary, 30, tmp_path / "prepared")["train"]) == 3


def test_a_split_without_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="no rows with split 'test'"):
        prepare(Rows(ROWS[:4]), vocabulary, 30, tmp_path / "prepared")


# --- a vocabulary from the data -----------------------------------------------------------------------------------


def test_tokens_of_training_texts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["i", "love", "my", "dog", "love", "it", ",", "love", "it", "the", "rain", "again"]
    assert count_tokens(Rows()) == Counter(words)
    assert count_tokens(Rows(), rows=1) == Counter(words[:4])
    monkeypatch.setattr(emoji_corpus, "MOST_COUNTED", 3)
    assert count_tokens(Rows(size=1))["love"] <= 3  # a lower bound


def test_a_vocabulary_has_the_most_frequent_tokens() -> None:
    counts = Counter({"sun": 5, "rain": 2, "cat": 2, "once": 1})
    assert vocabulary_of(counts, 2, 50).tokens == (*SPECIAL_TOKENS, "sun", "cat", "rain")
    assert vocabulary_of(counts, 1, 12).tokens == (*SPECIAL_TOKENS, "sun", "cat")
