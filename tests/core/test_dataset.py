"""Texts with labels reach the model packed, the labels beside them; an epoch is a fresh, seeded draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_packed_sequence

from torchmoji_core.errors import InputError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.dataset import TweetDataset, collate
from torchmoji_core.training.sampler import BalancedBatchSampler
from torchmoji_core.vocabulary import Vocabulary

texts_of_ids = st.lists(st.lists(st.integers(1, 19), min_size=1, max_size=8), min_size=1, max_size=25)


# --- data set and loader ------------------------------------------------------------------------------------------


@given(texts_of_ids)
@settings(max_examples=60, deadline=None)
def test_labels_follow_the_sort_and_the_inverse_undoes_it(rows: list[list[int]]) -> None:
    data = TweetDataset(rows, list(range(len(rows))), len(rows))  # each text's label is its own number
    batch = collate([data[index] for index in range(len(rows))])
    padded, lengths = pad_packed_sequence(batch.ids, batch_first=True)
    assert lengths.tolist() == sorted(map(len, rows), reverse=True)
    assert [padded[row, : lengths[row]].tolist() for row in range(len(rows))] == [rows[n] for n in batch.labels]
    assert batch.labels[batch.inverse].tolist() == list(range(len(rows)))


@given(texts_of_ids)
@settings(max_examples=20, deadline=None)
def test_a_loaded_batch_is_scored_as_its_texts_are_alone(rows: list[list[int]]) -> None:
    torch.manual_seed(1)
    model = TorchMoji(Dimensions(20, 4, 3, 5)).eval()
    data = TweetDataset(rows, [0] * len(rows), 1)
    (batch,) = data.loader([list(range(len(rows)))])  # type: ignore[arg-type]
    with torch.inference_mode():
        together = model(batch.ids).logits[batch.inverse]
        for index in range(len(rows)):
            torch.testing.assert_close(model(collate([data[index]]).ids).logits[0], together[index])


SEVERAL = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 1], torch.tensor([2, 0, 1])),
        ([[0, 2], [], [1]], torch.tensor(SEVERAL, dtype=torch.float32)),  # emojis of a tweet, as a list
        (np.array(SEVERAL, bool), torch.tensor(SEVERAL, dtype=torch.float32)),
        (SEVERAL, torch.tensor(SEVERAL, dtype=torch.float32)),
        ((np.array(SEVERAL) == 1).tolist(), torch.tensor(SEVERAL, dtype=torch.float32)),
        (torch.tensor(SEVERAL), torch.tensor(SEVERAL, dtype=torch.float32)),
        (pd.DataFrame(SEVERAL, index=[2, 0, 1], columns=["x", "y", "z"]), torch.tensor(SEVERAL, dtype=torch.float32)),
        ([np.array(row, bool) for row in SEVERAL], torch.tensor(SEVERAL, dtype=torch.float32)),
        (pd.Series([[0, 2], [], [1]], index=[2, 0, 1]), torch.tensor(SEVERAL, dtype=torch.float32)),
        (pd.Series([2, 0, 1], index=[2, 0, 1]), torch.tensor([2, 0, 1])),
        ([False, True, False], torch.tensor([0, 1, 0])),
        ([2.0, 0.0, 1.0], torch.tensor([2, 0, 1])),
    ],
    ids=[
        "int", "list", "multi-label", "lists of zeros and ones", "lists of bool", "tensor", "DataFrame",
        "arrays of bool", "Series of lists", "Series", "bool", "whole floats",
    ],
)  # fmt: skip
def test_kinds_of_labels(labels: Any, expected: torch.Tensor) -> None:
    data = TweetDataset([[1], [2, 3], [4]], labels, 3)
    assert data.multi_label == (expected.ndim == 2)
    assert torch.equal(data.targets, expected) and data.targets.dtype == expected.dtype
    assert torch.equal(data[-1].label, expected[2])
    assert collate([data[1], data[0]]).labels.shape == expected[:2].shape


def test_texts_are_tokenized(vocabulary: Vocabulary) -> None:
    tokenizer = Tokenizer(vocabulary)
    data = TweetDataset.from_texts(["I love my dog", "rain"], [0, 1], 2, tokenizer, maxlen=3)
    assert data[0].ids.tolist() == tokenizer.ids("I love my dog", 3) and data[0].ids.dtype == torch.int64
    assert data.lengths.tolist() == [3, 1]
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([[1]], [0, 1], "1 texts and 2 labels"),
        ([[1], []], [0, 1], "text 2 has no tokens"),
        ([[1], [2]], [0, 3], "label 2 is 3, outside the 3 classes"),
        ([[1], [2]], [0, -1], "label 2 is -1"),
        ([[1], [2]], [0, 0.5], "label 2 is 0.5"),
        ([[1], [2]], [[0], [1, 9]], "label 2 is 9"),
        ([[1]], np.array([[1, 0]]), "need 3 columns"),
        ([[1]], [[True, False]], "labels of bool need 3 in each row"),
        ([[1], [2]], ["joy", "fear"], "label 1 is 'joy', outside the 3 classes; give numbers of classes"),
        ([[1], [2]], [["joy"], []], "label 1 is 'joy'"),
        ([[1], [2]], [0, None], "label 2 is None"),
        ([[1], [2]], [0, float("nan")], "label 2 is nan"),
        ([[1]], np.array([[1, 0, 7]]), "of 0 or 1"),
    ],
)
def test_labels_at_fault(ids: list[list[int]], labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TweetDataset(ids, labels, 3)


@pytest.mark.parametrize(("labels", "classes"), [([[0, 1], [1, 0]], 2), ([[0], [0]], 1)])
def test_lists_that_may_be_numbers_of_classes_or_zeros_and_ones_are_refused(
    labels: list[list[int]], classes: int
) -> None:
    ids = [[1], [2]]
    with pytest.raises(InputError, match="give zeros and ones as an array"):
        TweetDataset(ids, labels, classes)
    assert TweetDataset(ids, np.array(labels), classes).labels.tolist() == labels
    assert TweetDataset(ids, np.array(labels, bool).tolist(), classes).labels.tolist() == labels


def test_lists_with_a_number_twice_are_zeros_and_ones() -> None:
    assert TweetDataset([[1], [2]], [[0, 1], [1, 1]], 2).labels.tolist() == [[0, 1], [1, 1]]


# --- sampler ------------------------------------------------------------------------------------------------------

LABELS = np.array([0] * 90 + [1] * 9 + [2])


@given(st.integers(1, 400), st.integers(1, 50), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_its_size_whatever_that_of_the_data(
    epoch_size: int, batch_size: int, balanced: bool, by_length: bool
) -> None:
    lengths = np.arange(100) if by_length else None
    sampler = BalancedBatchSampler(LABELS, batch_size, epoch_size, balanced=balanced, lengths=lengths)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sum(map(len, batches)) == epoch_size
    assert max(map(len, batches)) <= batch_size
    assert {row for batch in batches for row in batch} <= set(range(100))


def test_a_balanced_draw_has_all_classes_equally_often() -> None:
    for epoch, batches in enumerate(epochs(balanced=True, epoch_size=200)):
        counts = np.bincount(LABELS[batches])
        assert sorted(counts) == [66, 67, 67], epoch


def test_a_natural_draw_has_them_as_the_data_does() -> None:
    counts = np.bincount(LABELS[np.concatenate(epochs(balanced=False, epoch_size=2_000))], minlength=3) / 10_000
    assert counts == pytest.approx([0.9, 0.09, 0.01], abs=0.015)


def epochs(count: int = 5, **settings: Any) -> list[np.ndarray]:
    sampler = BalancedBatchSampler(LABELS, 16, **settings)
    return [np.concatenate(list(sampler)) for _ in range(count)]


@pytest.mark.parametrize("balanced", [True, False])
def test_each_epoch_is_a_fresh_draw_that_the_seed_decides(balanced: bool) -> None:
    first, again = (epochs(balanced=balanced, epoch_size=64, seed=3) for _ in range(2))
    assert np.array_equal(first, again)
    assert len({tuple(epoch) for epoch in first}) == 5
    assert not np.array_equal(first[0], epochs(1, balanced=balanced, epoch_size=64, seed=4)[0])


def test_an_epoch_can_be_chosen() -> None:
    sampler = BalancedBatchSampler(LABELS, 16, 64)
    drawn = [list(sampler) for _ in range(3)]
    sampler.set_epoch(1)
    assert list(sampler) == drawn[1]
    assert list(sampler) == drawn[2]


def test_batches_of_similar_length_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 500)
    sampler = BalancedBatchSampler(np.zeros(500), 10, 400, balanced=False, lengths=lengths)
    batches = list(sampler)
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 6
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS, 0, 10), "positive batch_size"),
        ((LABELS, 10, 0), "positive epoch_size"),
        ((np.zeros(0), 10, 10), "positive rows"),
        ((np.zeros((4, 2)), 10, 10), "cannot be drawn balanced"),
    ],
)
def test_a_draw_that_cannot_be(arguments: tuple[Any, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BalancedBatchSampler(*arguments)
