"""A Parquet file of texts and emojis becomes mapped token ids; what is wrong with it is one line."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_texts_and_emojis_by_split(tmp_path: Path, vocabulary: Vocabulary) -> None:
    splits = prepare(write(tmp_path / "data.parquet"), vocabulary, 3, tmp_path / "prepared")
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


def test_a_file_is_read_in_pieces(tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.parquet", ROWS * 7)
    whole = prepare(path, vocabulary, 30, tmp_path / "whole")
    monkeypatch.setattr(emoji_corpus, "_BATCH_ROWS", 4)
    pieces = prepare(path, vocabulary, 30, tmp_path / "pieces")
    for split, data in whole.items():
        assert data.corpus.values.tolist() == pieces[split].corpus.values.tolist()
        assert data.emojis.offsets.tolist() == pieces[split].emojis.offsets.tolist()
    first = prepare(path, vocabulary, 30, tmp_path / "first", rows=4)
    assert {split: len(data) for split, data in first.items()} == {"train": 4, "val": 4, "test": 4}
    assert first["train"].corpus[3].tolist() == whole["train"].corpus[3].tolist()


def test_prepared_files_are_kept_until_something_changes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path, prepared = write(tmp_path / "data.parquet"), tmp_path / "prepared"
    written = prepared / "train" / "tokens.values"

    def times() -> int:
        return written.stat().st_mtime_ns

    prepare(path, vocabulary, 3, prepared)
    os.utime(written, ns=(1, 1))
    prepare(path, vocabulary, 3, prepared)
    assert times() == 1
    assert prepare(path, vocabulary, 4, prepared)["train"].corpus.lengths.max() == 4
    os.utime(written, ns=(1, 1))
    write(tmp_path / "data.parquet", ROWS[::-1])
    prepare(path, vocabulary, 4, prepared)
    assert times() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "a text is null"),
        ({"emojis": ["🦊"]}, "'🦊' is not one of DeepMoji's 64"),
        ({"emoji": "fox"}, "'fox' is not one of DeepMoji's 64"),
    ],
)
def test_a_row_at_fault(tmp_path: Path, vocabulary: Vocabulary, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "data.parquet", [*ROWS, ROWS[0] | change])
    with pytest.raises(InputError, match=message):
        prepare(path, vocabulary, 30, tmp_path / "prepared")
    write(tmp_path / "data.parquet")  # what was begun is not taken for finished
    assert len(prepare(path, vocabulary, 30, tmp_path / "prepared")["train"]) == 3


@pytest.mark.parametrize("missing", ["text", "emoji", "emojis", "split"])
def test_a_missing_column(tmp_path: Path, vocabulary: Vocabulary, missing: str) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in ROWS]
    with pytest.raises(InputError, match=f"no column '{missing}'; expected Parquet with columns text, emoji, emojis"):
        prepare(write(tmp_path / "data.parquet", rows), vocabulary, 30, tmp_path / "prepared")


def test_a_split_without_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="no rows with split 'test'"):
        prepare(write(tmp_path / "data.parquet", ROWS[:4]), vocabulary, 30, tmp_path / "prepared")


@pytest.mark.parametrize("content", [None, b"", b"text,emoji\n", b"PAR1 and no more"])
def test_what_is_no_parquet_file(tmp_path: Path, vocabulary: Vocabulary, content: bytes | None) -> None:
    path = tmp_path / "data.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.parquet"):
        prepare(str(path), vocabulary, 30, tmp_path / "prepared")


# --- a vocabulary from the data -----------------------------------------------------------------------------------


def test_tokens_of_training_texts_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.parquet")
    words = ["i", "love", "my", "dog", "love", "it", ",", "love", "it", "the", "rain", "again"]
    assert count_tokens(path) == Counter(words)
    assert count_tokens(path, rows=1) == Counter(words[:4])
    monkeypatch.setattr(emoji_corpus, "_MOST_COUNTED", 3)
    monkeypatch.setattr(emoji_corpus, "_BATCH_ROWS", 1)
    assert count_tokens(path)["love"] <= 3  # a lower bound


def test_a_vocabulary_has_the_most_frequent_tokens() -> None:
    counts = Counter({"sun": 5, "rain": 2, "cat": 2, "once": 1})
    assert vocabulary_of(counts, 2, 50).tokens == (*SPECIAL_TOKENS, "sun", "cat", "rain")
    assert vocabulary_of(counts, 1, 12).tokens == (*SPECIAL_TOKENS, "sun", "cat")
