"""A corpus in memory as flat token ids: text i is ids[offsets[i]:offsets[i + 1]]. No Python object per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchmoji_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Token ids of many texts, ragged."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """[texts + 1]"""

    @classmethod
    def encode(cls, texts: Iterable[str], tokenizer: Tokenizer, maxlen: int) -> Corpus:
        """Tokenize texts, keeping the first `maxlen` tokens of each."""
        chunks: list[NDArray[np.int32]] = []
        lengths: list[int] = [0]
        pending: list[int] = []
        for text in texts:
            ids = tokenizer.ids(text, maxlen)
            lengths.append(len(ids))
            pending += ids
            if len(pending) >= 1_000_000:
                chunks.append(np.array(pending, np.int32))
                pending = []
        chunks.append(np.array(pending, np.int32))
        return cls(np.concatenate(chunks), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def pack(self, rows: NDArray[np.integer]) -> tuple[PackedSequence, NDArray[np.integer]]:
        """Pack texts, longest first, without a Python loop over rows.

        Returns:
            The packed ids (int64), and the row numbers in the packed order, for labels to follow.
        """
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        order = np.argsort(-lengths, kind="stable")
        rows, lengths = rows[order], lengths[order]
        steps = np.arange(lengths[0])
        present = steps[:, None] < lengths[None, :]  # [time, row]: time-major order is the packed order
        positions = (self.offsets[rows][None, :] + steps[:, None])[present]
        data = torch.from_numpy(self.ids[positions].astype(np.int64))
        return PackedSequence(data, torch.from_numpy(present.sum(axis=1))), rows

    def batches(
        self, rows: NDArray[np.integer], batch_size: int, generator: np.random.Generator | None = None
    ) -> Iterator[NDArray[np.integer]]:
        """Cut rows into batches of texts of similar length; texts without tokens are left out.

        Args:
            rows: which texts.
            batch_size: texts in a batch.
            generator: shuffles rows and batches; without one the order is by length.
        """
        rows = rows[self.lengths[rows] > 0]
        group = len(rows) or 1
        if generator is not None:
            rows = generator.permutation(rows)
            group = 64 * batch_size  # sorting within groups keeps batches random enough, and nearly without padding
        batches: list[NDArray[np.integer]] = []
        for start in range(0, len(rows), group):
            part = rows[start : start + group]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        order: Sequence[int] | NDArray[np.integer] = range(len(batches))
        if generator is not None:
            order = generator.permutation(len(batches))
        return (batches[index] for index in order)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Class indices of each row -> float32 [rows, classes] of zeros and ones."""
    targets = torch.zeros(len(labels), classes)
    lengths = [len(row) for row in labels]
    rows = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor(lengths, dtype=torch.int64))
    targets[rows, torch.tensor([index for row in labels for index in row], dtype=torch.int64)] = 1
    return targets
