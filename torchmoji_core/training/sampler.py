"""Which rows make up an epoch, and its batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from torchmoji_core.errors import InputError

_GROUP_BATCHES = 16


class BalancedBatchSampler(Sampler[list[int]]):
    """Epochs of a fixed number of rows, as DeepMoji's code has them, whatever the size of the data; each a fresh draw.

    The draw of an epoch depends on the seed and the epoch's number alone. Iterating goes on to the next epoch;
    `set_epoch` chooses one, to repeat it or to resume there.
    """

    def __init__(
        self,
        labels: NDArray[Any],
        batch_size: int,
        epoch_size: int,
        *,
        balanced: bool = True,
        lengths: NDArray[np.integer] | None = None,
        seed: int = 1,
    ) -> None:
        """Args:
            labels: [rows], the class of each.
            batch_size: rows of a batch; the last of an epoch may have fewer.
            epoch_size: rows of an epoch, drawn with replacement.
            balanced: draw equally often from each class that occurs (within one row); otherwise from all rows alike.
            lengths: [rows], tokens of each: batches are then made of rows of similar length.
            seed: of all draws.

        Raises:
            InputError: if there are no rows or sizes are not positive, or for a balanced draw of rows that can have
                several classes.
        """
        for name, value in (("batch_size", batch_size), ("epoch_size", epoch_size), ("rows", len(labels))):
            if value < 1:
                raise InputError(f"a sampler needs a positive {name}, not {value}")
        if balanced and labels.ndim != 1:
            raise InputError("rows that can have several classes cannot be drawn balanced; draw them naturally")
        self.batch_size, self.epoch_size, self.seed = batch_size, epoch_size, seed
        self._rows = len(labels)
        self._by_class = [np.flatnonzero(labels == value) for value in np.unique(labels)] if balanced else None
        self._lengths = lengths
        self._epoch = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.epoch_size / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that is drawn next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self._epoch))
        self._epoch += 1
        rows = self._draw(generator)
        group = _GROUP_BATCHES * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(rows), group):
            part = rows[start : start + group]
            if self._lengths is not None:
                part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[at : at + self.batch_size].tolist() for at in range(0, len(part), self.batch_size)]
        order = generator.permutation(len(batches)) if self._lengths is not None else np.arange(len(batches))
        return (batches[index] for index in order)

    def _draw(self, generator: np.random.Generator) -> NDArray[np.integer]:
        if self._by_class is None:
            return generator.integers(self._rows, size=self.epoch_size)
        classes = len(self._by_class)
        # Which classes get the rows left over by the division changes from epoch to epoch.
        order = generator.permutation(classes)
        counts = [(self.epoch_size + classes - 1 - rank) // classes for rank in range(classes)]
        drawn = [generator.choice(self._by_class[index], n) for index, n in zip(order, counts, strict=True)]
        return generator.permutation(np.concatenate(drawn))
