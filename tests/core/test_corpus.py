"""Rows of different lengths are stored, mapped, packed and cut into batches without loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.ragged import Ragged, RaggedWriter
from torchmoji_core.vocabulary import Vocabulary

rows_of_ids = st.lists(st.lists(st.integers(0, 1_000_000), max_size=9), max_size=40)


@given(st.lists(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=9), min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_pack_is_pack_sequence(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    packed, order = Corpus.of(rows).pack(np.array(chosen))
    assert sorted(order.tolist()) == sorted(chosen)
    expected = pack_sequence([torch.tensor(rows[index]) for index in order])
    assert torch.equal(packed.data, expected.data) and packed.data.dtype == torch.int64
    assert torch.equal(packed.batch_sizes, expected.batch_sizes)
    assert packed.sorted_indices is None and packed.unsorted_indices is None


@given(rows_of_ids, st.integers(1, 7), st.sampled_from([None, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_batches_hold_every_text_with_tokens_once(rows: list[list[int]], batch_size: int, seed: int | None) -> None:
    generator = None if seed is None else np.random.default_rng(seed)
    batches = list(Corpus.of(rows).batches(np.arange(len(rows)), batch_size, generator))
    with_tokens = [index for index, row in enumerate(rows) if row]
    assert sorted(index for batch in batches for index in batch.tolist()) == with_tokens
    assert len(batches) == math.ceil(len(with_tokens) / batch_size)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_batches_of_chosen_texts_only() -> None:
    corpus = Corpus.of([[1], [2, 3], [], [4], [5]])
    batches = list(corpus.batches(np.array([4, 2, 0]), 10))
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 4]]


def test_many_batches_are_nearly_without_padding_and_shuffled() -> None:
    lengths = np.random.default_rng(1).integers(1, 31, 5_000)
    corpus = Corpus.of([[1] * length for length in lengths])
    epochs = [list(corpus.batches(np.arange(5_000), 16, np.random.default_rng((1, epoch)))) for epoch in (0, 0, 1)]
    first, again, other = ([batch.tolist() for batch in epoch] for epoch in epochs)
    assert first == again != other
    assert sum(int(np.ptp(lengths[batch])) for batch in first) / len(first) < 2
    order = [lengths[batch].mean() for batch in first]
    assert order != sorted(order)


def test_texts_are_encoded_as_the_tokenizer_does(vocabulary: Vocabulary) -> None:
    tokenizer = Tokenizer(vocabulary)
    texts = ["I love my dog", "", "so sad :( unheard of", "cat " * 9]
    corpus = Corpus.encode(iter(texts), tokenizer, maxlen=5)
    assert len(corpus) == 4
    assert corpus.lengths.tolist() == [4, 0, 5, 5]
    for index, text in enumerate(texts):
        assert corpus[index].tolist() == tokenizer.ids(text, 5)
    assert len(Corpus.encode([], tokenizer, 5)) == 0


# --- rows in files ------------------------------------------------------------------------------------------------


def test_written_rows_are_mapped_whatever_the_pieces(tmp_path: Path) -> None:
    rows = [[1, 2], [], [3], [], [4, 5, 6], [7]]
    writer = RaggedWriter(tmp_path, "rows")
    for piece in (rows[:1], [], rows[1:4], rows[4:]):
        writer.append(piece)
    writer.close()
    mapped = Ragged.map(tmp_path, "rows")
    assert isinstance(mapped.values, np.memmap)
    assert [mapped[row].tolist() for row in range(len(mapped))] == rows
    assert mapped.lengths.tolist() == [2, 0, 1, 0, 3, 1]
    assert [row.tolist() for row in map(mapped.head(3).__getitem__, range(3))] == rows[:3]


def test_no_rows_are_mapped_too(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path, "rows")
    writer.append([[], []])
    writer.close()
    assert Ragged.map(tmp_path, "rows").lengths.tolist() == [0, 0]


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_cells_are_the_values_with_their_rows(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=15))
    which, values = Ragged.of(rows).cells(np.array(chosen, np.int64))
    expected = [(position, value) for position, row in enumerate(chosen) for value in rows[row]]
    assert list(zip(which.tolist(), values.tolist(), strict=True)) == expected
