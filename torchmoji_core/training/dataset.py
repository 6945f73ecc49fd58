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
            labels: of each text its class (int); or the list of its classes, as the emojis of a tweet; or a row of an
                array [texts, classes] of bool.
            classes: how many there are.

        Raises:
            InputError: if the two are not of the same length, a text has no tokens, or a label is outside the classes.
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
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        if labels.shape[1] != classes or not np.isin(labels, (0, 1)).all():
            raise InputError(f"labels [texts, classes] need {classes} columns of 0 or 1, not {labels.shape[1]}")
        return labels.astype(np.float32)
    rows: list[Any] = [[label] if np.ndim(label) == 0 else label for label in labels]
    lists = any(np.ndim(label) for label in labels)
    for number, row in enumerate(rows, 1):
        for label in row:
            if int(label) != label or not 0 <= label < classes:
                raise InputError(f"label {number} is {label!r}, outside the {classes} classes")
    if not lists:
        return np.array(labels, np.int64)
    uniform = np.zeros((len(rows), classes), np.float32)
    for number, row in enumerate(rows):
        uniform[number, np.array(row, np.int64)] = 1
    return uniform
