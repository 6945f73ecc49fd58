"""Texts with their emojis become mapped token ids; what is wrong with them is one line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.emoji_corpus import prepare, training_texts
from torchmoji_core.training.ragged import RaggedWriter
from torchmoji_core.training.text_filter import TextFilter
from torchmoji_core.training.words import count_words, vocabulary_of
from torchmoji_core.vocabulary import Vocabulary

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
    splits = prepare(Rows(), vocabulary, 3, tmp_path / "prepared").splits
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
    whole = prepare(Rows(ROWS * 7), vocabulary, 30, tmp_path / "whole").splits
    pieces = prepare(Rows(ROWS * 7, size=4), vocabulary, 30, tmp_path / "pieces").splits
    for split, data in whole.items():
        assert data.corpus.values.tolist() == pieces[split].corpus.values.tolist()
        assert data.emojis.offsets.tolist() == pieces[split].emojis.offsets.tolist()
    first = prepare(Rows(ROWS * 7, size=4), vocabulary, 30, tmp_path / "first", rows=4).splits
    assert {split: len(data) for split, data in first.items()} == {"train": 4, "val": 4, "test": 4}
    assert first["train"].corpus[3].tolist() == whole["train"].corpus[3].tolist()


def test_prepared_files_are_kept_until_something_changes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    prepared = tmp_path / "prepared"

    def times() -> int:
        (written,) = prepared.glob("*/train/tokens.values")  # one set of files takes the place of the other
        before = written.stat().st_mtime_ns
        os.utime(written, ns=(1, 1))
        return before

    first = prepare(Rows(), vocabulary, 3, prepared)
    assert times() > 1
    prepare(Rows(), vocabulary, 3, prepared)
    assert times() == 1
    assert prepare(Rows(), vocabulary, 4, prepared).splits["train"].corpus.lengths.max() == 4
    assert times() > 1
    prepare(Rows(ROWS[::-1], version=2), vocabulary, 4, prepared)
    assert times() > 1
    # A run that is at work keeps the texts that it has mapped.
    assert first.splits["train"].corpus[0].tolist() == Tokenizer(vocabulary).ids(ROWS[0]["text"], 3)


def test_other_texts_have_another_place_for_what_belongs_to_them(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """A teacher's probabilities of some rows are not taken for those of others."""
    prepared = prepare(Rows(), vocabulary, 30, tmp_path)
    (prepared.directory / "teacher-1.npy").write_bytes(b"of these rows")
    assert (prepare(Rows(), vocabulary, 30, tmp_path).directory / "teacher-1.npy").exists()
    other = prepare(Rows(), vocabulary, 30, tmp_path, text_filter=TextFilter(("mentions",)))
    assert not list(tmp_path.glob("**/teacher-1.npy")) and other.directory.is_dir()


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    (tmp_path / "tokens.values").symlink_to("/dev/full")
    writer = RaggedWriter(tmp_path, "tokens")
    with pytest.raises(OSError, match="No space left on device"):
        writer.append([[1] * 10_000])


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
    assert len(prepare(Rows(), vocabulary, 30, tmp_path / "prepared").splits["train"]) == 3


def test_a_split_without_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="no rows with split 'test'"):
        prepare(Rows(ROWS[:4]), vocabulary, 30, tmp_path / "prepared")


# --- what is left out ---------------------------------------------------------------------------------------------


def test_texts_are_left_out_of_every_split_and_of_the_words_that_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, *({**row, "text": f"RT @ann {row['text']}"} for row in ROWS)]
    assert list(training_texts(Rows())) == [row["text"] for row in ROWS if row["split"] == "train"]
    assert list(training_texts(Rows(), rows=1)) == [ROWS[0]["text"]]
    no_retweets = TextFilter(("retweets",))
    assert list(training_texts(Rows(rows), text_filter=no_retweets)) == list(training_texts(Rows()))
    vocabulary = vocabulary_of(count_words(training_texts(Rows())), 1, 50)
    for _ in range(2):  # the second time what was kept is mapped
        prepared = prepare(Rows(rows), vocabulary, 30, tmp_path / "prepared", text_filter=no_retweets)
        assert {split: len(part) for split, part in prepared.splits.items()} == {"train": 3, "val": 1, "test": 1}
        assert prepared.left_out == {"retweets": 5}
    # Another filter makes other files, and what is left out does not count as one of the first rows.
    assert len(prepare(Rows(rows), vocabulary, 30, tmp_path / "prepared").splits["train"]) == 6
    first = prepare(Rows(rows[::-1]), vocabulary, 30, tmp_path / "first", rows=1, text_filter=no_retweets)
    assert len(first.splits["train"]) == 1


def test_a_split_of_which_nothing_is_left_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    rows = [{**row, "text": "RT this"} if row["split"] == "val" else row for row in ROWS]
    with pytest.raises(InputError, match="no rows with split 'val' are left when texts are left out"):
        prepare(Rows(rows), vocabulary, 30, tmp_path / "prepared", text_filter=TextFilter(("retweets",)))
