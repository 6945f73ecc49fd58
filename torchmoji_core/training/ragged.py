"""Rows of different lengths as two flat arrays, in memory or mapped from files. No Python object per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """Row i is values[offsets[i]:offsets[i + 1]]."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """[rows + 1]"""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """From lists."""
        flat = np.array([value for row in rows for value in row], np.int32)
        return cls(flat, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    @classmethod
    def map(cls, directory: Path, name: str) -> Self:
        """Map what a `RaggedWriter` wrote: pages are read when they are needed, and need not fit into memory."""
        return cls(_map(directory / f"{name}.values", np.int32), _map(directory / f"{name}.offsets", np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """The lengths of some rows, without a look at the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def head(self, rows: int) -> Self:
        """The first rows."""
        offsets = self.offsets[: rows + 1]
        return type(self)(self.values[: offsets[-1]], offsets)

    def cells(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All values of some rows, and for each the position of its row in `rows`."""
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        which = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return which, self.values[starts[which] + within]


class RaggedWriter:
    """Appends rows to the two files that `Ragged.map` maps."""

    def __init__(self, directory: Path, name: str) -> None:
        self._values = (directory / f"{name}.values").open("wb")
        self._offsets = (directory / f"{name}.offsets").open("wb")
        self._end = 0
        self._offsets.write(np.zeros(1, np.int64).tobytes())

    def append(self, rows: Sequence[Sequence[int]]) -> None:
        """Add rows at the end.

        Raises:
            OSError: if they cannot be written; numpy's own `tofile` does not say why.
        """
        part = Ragged.of(rows)
        self._values.write(part.values.tobytes())
        self._offsets.write((part.offsets[1:] + self._end).tobytes())
        self._end += int(part.offsets[-1])

    def close(self) -> None:
        self._values.close()
        self._offsets.close()


def _map(path: Path, dtype: type[Any]) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")
