"""Texts or token ids in any order in, `Scores` in the same order out: tokenizing, sorting, batching, restoring.

Parallel by batches, one thread each, and not inside a batch: the threads of a single operation wait for each other
hundreds of times in a batch. On a machine that has other things to do, the sample took 12 s that way and 4 s this way.

Rows of the same tokens are run once, and recent results are kept (`cache`). That changes no value, since a row's
result does not depend on its neighbours.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NoReturn, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from torchmoji_core.batching import BatchLimits, plan_batches
from torchmoji_core.errors import RunError
from torchmoji_core.inference import available_cores
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB, ScoreCache
from torchmoji_core.inference.engine import Engine
from torchmoji_core.inference.scores import EMBEDDING_STEP, EMBEDDING_TYPES, Scores
from torchmoji_core.inference.texts import Texts, as_texts
from torchmoji_core.options import check_choice
from torchmoji_core.processes import renew_after_fork, single_threaded
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.vocabulary import UNKNOWN

_FEWEST_ROWS = 16
"""Rows for which it is not worth while to start another thread."""
_STATES = 128 * 512
"""Channels that the hidden states of a direction have in all rows of what the engine runs at once: so many, since calls
take their time whatever they compute; no more, since a step's gates (1 MB) are to stay in a core's cache."""
_FEATURES = 2048 * 2304
"""And the features of its tokens: 19 MB."""


class Model(Protocol):
    """What a scorer needs of a model; a `Bundle` is one."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def maxlen(self) -> int: ...
    @property
    def multi_label(self) -> bool: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def state(self) -> Mapping[str, torch.Tensor]: ...


class Scorer:
    """A model ready to score; loading it takes a moment, so keep one.

    Threads may share it, and so may processes that are forked: each has threads and a cache of its own.
    """

    def __init__(
        self,
        bundle: Model,
        precision: str = "auto",
        threads: int | None = None,
        cache_mb: int = DEFAULT_CACHE_MB,
        embedding_type: str | None = None,
    ) -> None:
        """Args:
            bundle: the model.
            precision: one of `torchmoji_core.inference.PRECISIONS`.
            threads: batches that are scored at the same time; None for one a core.
            cache_mb: bound of the cache of recent results, a temporary file, in 10**6 bytes; 0 for none.
            embedding_type: one of `EMBEDDING_TYPES`, to which embeddings are rounded; None for float32 as computed.

        Raises:
            InputError: for another precision or type.
        """
        self._name = bundle.name
        self.classes = bundle.classes
        self.maxlen = bundle.maxlen
        self.tokenizer = bundle.tokenizer
        self.fingerprint = bundle.fingerprint
        self._engine = Engine(bundle.state, precision, bundle.multi_label)
        sizes = self._engine.dimensions
        self._limits = BatchLimits(max(1, _STATES // sizes.hidden), max(1, _FEATURES // sizes.channels))
        self._threads = available_cores() if threads is None else threads
        self.renew()
        renew_after_fork(self)
        if embedding_type is not None:
            check_choice("embedding_type", embedding_type, EMBEDDING_TYPES)
        self._embedding_type = embedding_type
        # Multiples of the step are kept as whole numbers, so that the cache holds as many results as with half floats.
        kept_as = {None: np.float32, "float32": np.int16, "float16": np.float16}[embedding_type]
        self._record = np.dtype(
            [
                ("probabilities", np.float32, (len(self.classes),)),
                ("embedding", kept_as, (self.dimension,)),
                ("attention", np.float32, (self.maxlen,)),  # a bare 1 would be no width to older NumPy
            ]
        )
        self._cache = ScoreCache(cache_mb, self._record) if cache_mb else None

    def renew(self) -> None:
        """Begin with new threads: a forked process does not have its parent's."""
        self._pool = ThreadPoolExecutor(self._threads, "score", initializer=torch.set_num_threads, initargs=(1,))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a scorer is of one process; pickle or copy its bundle, and call bundle.scorer() where it is used"
        )

    @property
    def precision(self) -> str:
        """The precision in use."""
        return self._engine.precision

    @property
    def arithmetic(self) -> str:
        """The precision and the library that computes its products."""
        return str(self._engine.arithmetic)

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self._engine.dimensions.channels

    def score(self, texts: Texts, missing: str = "error") -> Scores:
        """Score texts; a text without tokens gives a row of NaN.

        Args:
            texts: any iterable of strings, read once, in its order.
            missing: whether a missing text (None, NaN) is an "error", or scored as an "empty" text.

        Raises:
            TypeError: if `texts` is one string, bytes, a mapping, a set or a table, or a row of it is no text.
            InputError: for another `missing`.
            RunError: if the model makes something else than finite numbers of a text with tokens.
        """
        return self.score_ids([self.tokenizer.encode(text, self.maxlen + 1) for text in as_texts(texts, missing)])

    def score_ids(self, rows: Sequence[Sequence[int]], reuse: bool = True) -> Scores:
        """Score rows of token ids; what is behind the first `maxlen` of a row is not read.

        Args:
            rows: of any length.
            reuse: whether results of the same tokens may be those of before.

        Raises:
            IndexError: if an id is outside the vocabulary.
            TypeError, OverflowError: if an id is no number of 64 bits.
            RunError: if the model makes something else than finite numbers of a row with tokens.
        """
        maxlen = self.maxlen
        # Checked here, since torch's errors about its input cannot be told from those about the machine.
        read = [row if _is_read(row, maxlen) else array("q", row[:maxlen]) for row in rows]
        lengths = [len(row) for row in read]
        records = np.empty(len(rows), self._record)
        present = [index for index, length in enumerate(lengths) if length]
        reused = np.zeros(len(rows), bool)
        if self._cache is None or not reuse:
            self._run(read, present, records)
        else:
            reused[self._run_once(read, present, records, self._cache)] = True
        embedding = records["embedding"]
        if self._embedding_type == "float32":
            embedding = embedding * np.float32(EMBEDDING_STEP)
        if len(present) < len(rows):
            empty = [index for index, length in enumerate(lengths) if not length]
            embedding[empty] = records["probabilities"][empty] = np.nan
            records["attention"][empty] = 0
        row_of_token = np.arange(len(rows)).repeat(lengths)
        unknown = row_of_token[np.frombuffer(b"".join(read), np.int64) == UNKNOWN]
        return Scores(
            classes=self.classes,
            # Copies of what is small, which as views would keep all records in memory; these are embeddings mostly.
            probabilities=records["probabilities"].copy(),
            embedding=embedding,
            attention=records["attention"][:, : max(lengths, default=0)].copy(),
            n_tokens=np.array(lengths, np.int32),
            n_unknown=np.bincount(unknown, minlength=len(rows)).astype(np.int32),
            truncated=np.array([len(row) > maxlen for row in rows], bool),
            reused=reused,
        )

    def _run_once(
        self, rows: Sequence[array[int]], chosen: list[int], records: NDArray[Any], cache: ScoreCache
    ) -> list[int]:
        """As `_run`, but rows that are equal, or are in the cache, are not run again; returns which those were."""
        first: dict[bytes, int] = {}
        repeats: list[int] = []
        originals: list[int] = []
        for index in chosen:
            original = first.setdefault(rows[index].tobytes(), index)
            if original != index:
                repeats.append(index)
                originals.append(original)
        found, cached = cache.find(first)
        known = [first.pop(key) for key in found]
        records[known] = cached
        new = list(first.values())
        self._run(rows, new, records)
        cache.keep(list(first), records if len(new) == len(records) else records[new])
        records[repeats] = records[originals]
        return known + repeats

    def _run(self, rows: Sequence[array[int]], chosen: list[int], records: NDArray[Any]) -> None:
        """Run the chosen rows in batches, each filling its records."""
        if not chosen:
            return
        lengths = [len(rows[index]) for index in chosen]
        limits = _shared_out(lengths, self._threads, self._limits)

        def run(batch: list[int]) -> None:
            indices = [chosen[place] for place in batch]
            output = self._engine.run([rows[index] for index in indices])
            # No number that is not finite stays hidden from the probabilities: all that is before them goes into them.
            if not output.probabilities.sum().isfinite():
                raise RunError(
                    f"the model {self._name} gives scores that are no finite numbers; its weights are broken or far "
                    "too large: train or convert it again"
                )
            records["probabilities"][indices] = output.probabilities.numpy()
            records["embedding"][indices] = rounded(output.embedding, self._embedding_type).numpy()
            width = output.attention.shape[1]
            records["attention"][indices, :width] = output.attention.numpy()
            records["attention"][indices, width:] = 0

        batches = list(plan_batches(lengths, limits))
        if len(batches) == 1:
            with single_threaded():  # handing it over would take longer than a small one takes
                run(batches[0])
        else:
            for _ in self._pool.map(run, batches):
                pass


def _is_read(row: Sequence[int], maxlen: int) -> TypeGuard[array[int]]:
    """Whether a row is as it is run: an array of no more than the model reads."""
    return isinstance(row, array) and row.typecode == "q" and len(row) <= maxlen


def rounded(embedding: torch.Tensor, embedding_type: str | None) -> torch.Tensor:
    """Embeddings in two bytes a component: half floats, or for "float32" how many of `EMBEDDING_STEP`, half to even.

    torch rounds as numpy does, many times as fast, and without the interpreter's lock. None leaves them as they are.
    """
    if embedding_type == "float32":
        return (embedding / EMBEDDING_STEP).round_().to(torch.int16)
    return embedding if embedding_type is None else embedding.half()


def _shared_out(lengths: Sequence[int], threads: int, limits: BatchLimits) -> BatchLimits:
    """Limits that make as many batches of about the same work for each thread, so that none waits for the others."""
    tokens = sum(lengths)
    batches = max(tokens / limits.max_tokens, len(lengths) / limits.max_rows)
    batches = math.ceil(batches / threads) * threads
    batches = max(1, min(batches, len(lengths) // _FEWEST_ROWS))
    return replace(limits, max_tokens=min(limits.max_tokens, math.ceil(tokens / batches) + max(lengths)))
