"""Token ids of many texts, packed and cut into batches of similar length without a Python loop over rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence

from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.training.ragged import Ragged


class Corpus(Ragged):
    """Texts as token ids."""

    @classmethod
    def encode(cls, texts: Iterable[str], tokenizer: Tokenizer, maxlen: int) -> Self:
        """Tokenize texts, keeping the first `maxlen` tokens of each."""
        return cls.of([tokenizer.ids(text, maxlen) for text in texts])

    def pack(self, rows: NDArray[np.integer]) -> tuple[PackedSequence, NDArray[np.integer]]:
        """Pack texts, longest first.

        Returns:
            The packed ids (int64), and the row numbers in the packed order, for labels to follow.
        """
        lengths = self.lengths_of(rows)
        order = np.argsort(-lengths, kind="stable")
        rows, lengths = rows[order], lengths[order]
        steps = np.arange(lengths[0])
        present = steps[:, None] < lengths[None, :]  # [time, row]: time-major order is the packed order
        positions = (self.offsets[rows][None, :] + steps[:, None])[present]
        data = torch.from_numpy(self.values[positions].astype(np.int64))
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
        rows = rows[self.lengths_of(rows) > 0]
        group = len(rows) or 1
        if generator is not None:
            rows = generator.permutation(rows)
            group = 64 * batch_size  # sorting within groups keeps batches random enough, and nearly without padding
        batches: list[NDArray[np.integer]] = []
        for start in range(0, len(rows), group):
            part = rows[start : start + group]
            part = part[np.argsort(self.lengths_of(part), kind="stable")]
            batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        order: Sequence[int] | NDArray[np.integer] = range(len(batches))
        if generator is not None:
            order = generator.permutation(len(batches))
        return (batches[index] for index in order)
