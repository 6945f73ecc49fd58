"""Texts with labels as a torch data set, and a loader's batches of it: packed, the labels following the sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.corpus import Corpus

Labels = Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]


class Sample(NamedTuple):
    """One text."""

    ids: Tensor
    """[tokens] of int64"""
    label: Tensor
    """[] of int64, the class; or [classes] of float32, 1 for each class that holds"""


class Batch(NamedTuple):
    """Several texts, longest first."""

    ids: PackedSequence
    """Packed token ids; results come in the packed order, that of the labels."""
    labels: Tensor
    """[rows] of int64 or [rows, classes] of float32, in the packed order"""
    inverse: Tensor
    """[rows]: `result[inverse]` is in the order of the samples given"""


class TweetDataset(Dataset[Sample]):
    """Token ids with labels. Rows are stored flat, so millions take no Python object each."""

    def __init__(self, ids: Corpus | Sequence[Sequence[int]], labels: Labels, classes: int) -> None:
        """Args:
            ids: token ids of each text.
            labels: of each text its class, counted from 0; or a row of zeros and ones, or of bool, one of each class;
                or the list of its classes, as the emojis of a tweet. A list, an array, a Series or a DataFrame, whose
                order counts and not its index.
            classes: how many there are.

        Raises:
            InputError: if the two are not of the same length, a text has no tokens, a label is outside the classes, or
                lists may be either kind, as [[0, 1]] of two classes: an array is a row of each text.
        """
        self.corpus = ids if isinstance(ids, Corpus) else Corpus.of(ids)
        self.classes = classes
        self.labels = _uniform(labels, classes)
        if len(self.corpus) != len(self.labels):
            raise InputError(f"{len(self.corpus):,} texts and {len(self.labels):,} labels; each text needs its own")
        empty = np.flatnonzero(self.corpus.lengths == 0)
        if len(empty):
            raise InputError(f"text {empty[0] + 1} has no tokens; remove such texts")

    @classmethod
    def from_texts(cls, texts: Iterable[str], labels: Labels, classes: int, tokenizer: Tokenizer, maxlen: int) -> Self:
        """Tokenize texts, keeping the first `maxlen` tokens of each."""
        return cls(Corpus.encode(texts, tokenizer, maxlen), labels, classes)

    @property
    def multi_label(self) -> bool:
        """Whether several classes, or none, can hold of a text."""
        return self.labels.ndim == 2

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[texts], tokens of each."""
        return self.corpus.lengths

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return Sample(torch.from_numpy(self.corpus[index].astype(np.int64)), self.targets[index])

    @property
    def targets(self) -> Tensor:
        """Labels of all texts as a loss takes them: [texts] of int64, or [texts, classes] of float32."""
        return torch.from_numpy(self.labels)

    def loader(self, sampler: Sampler[list[int]]) -> DataLoader[Batch]:
        """Batches of the rows that a sampler names."""
        return DataLoader(self, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def collate(samples: Sequence[Sample]) -> Batch:
    """Pack samples, longest first, and permute their labels alongside; equally long ones keep their order."""
    lengths = torch.tensor([len(sample.ids) for sample in samples])
    order = lengths.argsort(descending=True, stable=True)
    ids = pack_sequence([samples[index].ids for index in order])
    labels = torch.stack([samples[index].label for index in order])
    return Batch(ids, labels, order.argsort())


def _uniform(labels: Labels, classes: int) -> NDArray[Any]:
    """[texts] of int64, or [texts, classes] of float32."""
    if not isinstance(labels, (list, tuple)):
        labels = np.asarray(labels)  # by position: a Series would be read by its index
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
            raise InputError(f"labels [texts, classes] need {classes} columns of 0 or 1, not {labels.shape[1]}")
        return labels.astype(np.float32)
    several = any(np.ndim(label) for label in labels)
    rows: list[list[Any]] = [np.atleast_1d(label).tolist() for label in labels]
    if several and _are_zeros_and_ones(rows, classes):
        return np.array(rows, np.float32)
    for number, row in enumerate(rows, 1):
        for label in row:
            if label not in range(classes):
                raise InputError(
                    f"label {number} is {shown(label)}, outside the {classes} classes; give numbers of classes from 0"
                )
    if not several:
        return np.array([label for (label,) in rows], np.int64)
    uniform = np.zeros((len(rows), classes), np.float32)
    for number, row in enumerate(rows):
        uniform[number, np.array(row, np.int64)] = 1
    return uniform


def _are_zeros_and_ones(rows: list[list[Any]], classes: int) -> bool:
    """Whether lists are one entry of each class, rather than numbers of classes.

    Raises:
        InputError: if they may be either, or are of bool and not one of each class.
    """
    fit = all(len(row) == classes and set(row) <= {0, 1} for row in rows)
    truths = any(isinstance(label, bool) for row in rows for label in row)
    if truths and not fit:
        raise InputError(f"labels of bool need {classes} in each row, one of each class")
    # The classes of a text are different ones: [1, 0, 0] are none.
    if fit and not truths and all(len(set(row)) == len(row) for row in rows):
        raise InputError(
            f"labels like {rows[0]} of {classes} classes are zeros and ones, or numbers of classes; "
            "give zeros and ones as an array [texts, classes], or as bool"
        )
    return fit
