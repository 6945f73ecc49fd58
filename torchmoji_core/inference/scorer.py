"""Texts or token ids in any order in, `Scores` in the same order out: tokenizing, sorting, batching, restoring.

Parallel by batches, one thread each, and not inside a batch: the threads of a single operation wait for each other
hundreds of times in a batch, which costs much and, on a machine that has other things to do, almost everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchmoji_core.batching import BatchLimits, plan_batches
from torchmoji_core.inference import available_cores
from torchmoji_core.inference.engine import Engine, EngineOutput
from torchmoji_core.inference.scores import Scores
from torchmoji_core.vocabulary import UNKNOWN

if TYPE_CHECKING:
    from torchmoji_core.bundle import Bundle


_FEWEST_ROWS = 16
"""Rows for which it is not worth while to start another thread."""


class Scorer:
    """A model ready to score; loading it takes a moment, so keep one. Threads may share it."""

    def __init__(self, bundle: Bundle, precision: str = "auto", threads: int | None = None) -> None:
        """Args:
            bundle: the model.
            precision: one of `torchmoji_core.inference.PRECISIONS`.
            threads: batches that are scored at the same time; None for one a core.

        Raises:
            InputError: for another precision.
        """
        self.classes = bundle.classes
        self.maxlen = bundle.maxlen
        self.tokenizer = bundle.tokenizer
        self.fingerprint = bundle.fingerprint
        self._engine = Engine(bundle.state, precision, bundle.multi_label)
        self._threads = available_cores() if threads is None else threads
        self._pool = ThreadPoolExecutor(self._threads, "score", initializer=torch.set_num_threads, initargs=(1,))

    @property
    def precision(self) -> str:
        """The precision in use."""
        return self._engine.precision

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self._engine.dimensions.channels

    def score(self, texts: Sequence[str]) -> Scores:
        """Score texts; a text without tokens gives a row of NaN.

        Raises:
            TypeError: if `texts` is one string, or holds something else than strings.
        """
        if isinstance(texts, str):
            raise TypeError("score takes a list of texts; for one text give [text]")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"score takes texts, not {type(text).__name__}; give '' for a missing text")
        return self.score_ids([self.tokenizer.ids(text, self.maxlen + 1) for text in texts])

    def score_ids(self, rows: Sequence[Sequence[int]]) -> Scores:
        """Score rows of token ids; what is behind the first `maxlen` of a row is not read.

        Raises:
            IndexError: if an id is outside the vocabulary.
        """
        read = [row[: self.maxlen] for row in rows]
        lengths = [len(row) for row in read]
        probabilities = np.full((len(rows), len(self.classes)), np.nan, np.float32)
        embedding = np.full((len(rows), self.dimension), np.nan, np.float32)
        attention = np.zeros((len(rows), max(lengths, default=0)), np.float32)
        share = math.ceil(len(rows) / self._threads)
        limits = BatchLimits(max_rows=min(max(share, _FEWEST_ROWS), BatchLimits.max_rows))

        def run(batch: list[int]) -> EngineOutput:
            return self._engine.run([read[index] for index in batch])

        batches = list(plan_batches(lengths, limits))
        for batch, output in zip(batches, self._pool.map(run, batches), strict=True):
            probabilities[batch] = output.probabilities.numpy()
            embedding[batch] = output.embedding.numpy()
            attention[batch, : output.attention.shape[1]] = output.attention.numpy()
        return Scores(
            classes=self.classes,
            probabilities=probabilities,
            embedding=embedding,
            attention=attention,
            n_tokens=np.array(lengths, np.int32),
            n_unknown=np.array([list(row).count(UNKNOWN) for row in read], np.int32),
            truncated=np.array([len(row) > self.maxlen for row in rows], bool),
        )
