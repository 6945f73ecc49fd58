"""Texts with the emojis they held, tokenized once into memory-mapped files, so that tens of millions of rows fit.

The files may be kept: a later run on the same data, vocabulary and maxlen maps them at once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.tokenizer import TOKENIZER_VERSION, Tokenizer
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.ragged import Ragged, RaggedWriter
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

SPLITS = ("train", "val", "test")
COLUMNS = ["text", "emoji", "emojis", "split"]
_BATCH_ROWS = 65_536
_MOST_COUNTED = 10_000_000


@dataclass(frozen=True)
class EmojiCorpus:
    """Texts with their emojis."""

    corpus: Corpus
    emojis: Ragged
    """The classes of each text: one training pair each."""
    labels: NDArray[np.int32]
    """[texts], the one class that scores are measured against."""
    teachers: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Probabilities of models to learn from, by fingerprint, [texts, classes] each."""

    def __len__(self) -> int:
        return len(self.corpus)

    def head(self, rows: int) -> EmojiCorpus:
        """The first `rows` texts."""
        teachers = {fingerprint: taught[:rows] for fingerprint, taught in self.teachers.items()}
        return EmojiCorpus(self.corpus.head(rows), self.emojis.head(rows), self.labels[:rows], teachers)

    def targets(self, rows: NDArray[np.integer], class_weights: Tensor, teacher_weight: float = 0.0) -> Tensor:
        """The weight of each class of each text, [rows, classes].

        Args:
            rows: which texts.
            class_weights: [classes], the weight of an emoji that the text held; others have none.
            teacher_weight: share of a text's weight that is spread as the teachers' mean probabilities instead.
        """
        targets = torch.zeros(len(rows), len(class_weights))
        which, classes = map(torch.from_numpy, self.emojis.cells(rows))
        targets[which, classes.long()] = class_weights[classes.long()]
        if not self.teachers or not teacher_weight:
            return targets
        mean = np.mean([taught[rows] for taught in self.teachers.values()], axis=0, dtype=np.float32)
        return (1 - teacher_weight) * targets + teacher_weight * targets.sum(1, keepdim=True) * torch.from_numpy(mean)

    def capped(self, cap: int, generator: np.random.Generator) -> EmojiCorpus:
        """The same texts with at most `cap` random training pairs of each class; some texts are left with none."""
        pairs = len(self.emojis.values)
        order = generator.permutation(pairs)
        order = order[np.argsort(self.emojis.values[order], kind="stable")]  # by class, in random order within
        by_class = self.emojis.values[order]
        rank = np.arange(pairs) - np.searchsorted(by_class, by_class)
        kept = np.zeros(pairs, bool)
        kept[order[rank < cap]] = True
        offsets = np.concatenate(([0], np.cumsum(kept)))[self.emojis.offsets]
        return replace(self, emojis=Ragged(self.emojis.values[kept], offsets))


def count_tokens(path: str, rows: int | None = None) -> Counter[str]:
    """How often each token occurs in the training texts.

    Above ten million distinct tokens those met once so far are dropped, so that memory is bounded: counts of rare
    tokens are then lower bounds.
    """
    counts: Counter[str] = Counter()
    tokens = Tokenizer(Vocabulary(SPECIAL_TOKENS)).tokens
    for split, batch in _read(path, ["text", "split"], rows):
        if split == "train":
            for text in batch["text"]:
                counts.update(tokens(text))
            if len(counts) > _MOST_COUNTED:
                counts = Counter({token: count for token, count in counts.items() if count > 1})
    return counts


def vocabulary_of(counts: Counter[str], min_count: int, size: int) -> Vocabulary:
    """DeepMoji's special tokens, then the most frequent others, ties in alphabetical order.

    Args:
        counts: tokens of the training texts.
        min_count: rarer tokens are left out.
        size: the most entries, special ones included.
    """
    frequent = Counter({token: count for token, count in counts.items() if count >= min_count})
    return Vocabulary(SPECIAL_TOKENS).extend(frequent, size - len(SPECIAL_TOKENS))


def prepare(
    path: str, vocabulary: Vocabulary, maxlen: int, directory: Path, rows: int | None = None
) -> dict[str, EmojiCorpus]:
    """Tokenize a Parquet file of texts and emojis into `directory`, or map what an earlier call left there.

    Args:
        path: Parquet with columns text, emoji, emojis (list), split (train, val or test).
        vocabulary: token to id.
        maxlen: tokens kept of each text.
        directory: for the files; it is created.
        rows: use only the first rows of each split.

    Returns:
        The splits by name.

    Raises:
        InputError: if the file cannot be read, a column is missing, a split has no rows, or an emoji is not one of
            DeepMoji's 64.
    """
    identity = _identity(path, vocabulary, maxlen, rows)
    marker = directory / "prepared.json"
    if not marker.exists() or json.loads(marker.read_bytes()) != identity:
        marker.unlink(missing_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        _write(path, Tokenizer(vocabulary), maxlen, directory, rows)
        marker.write_text(json.dumps(identity))
    prepared = {}
    for split in SPLITS:
        folder = directory / split
        corpus, emojis = Corpus.map(folder, "tokens"), Ragged.map(folder, "emojis")
        prepared[split] = EmojiCorpus(corpus, emojis, Ragged.map(folder, "labels").values)
        if not len(corpus):
            raise InputError(f"{path}: no rows with split {split!r}")
    return prepared


def _identity(path: str, vocabulary: Vocabulary, maxlen: int, rows: int | None) -> dict[str, Any]:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return {
        "data": [str(Path(path).absolute()), status.st_size, status.st_mtime_ns],
        "vocabulary": hashlib.sha256(vocabulary.to_json().encode()).hexdigest(),
        "tokenizer": TOKENIZER_VERSION,
        "maxlen": maxlen,
        "rows": rows,
    }


def _read(path: str, columns: list[str], rows: int | None) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Pieces of one split each, in the order of the file."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    left = dict.fromkeys(SPLITS, rows)
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise InputError(f"{path}: no column {missing[0]!r}; expected Parquet with columns {', '.join(COLUMNS)}")
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            for split in SPLITS:
                part = batch.filter(pc.equal(batch["split"], split)).slice(0, left[split])
                if rows is not None:
                    left[split] -= len(part)  # type: ignore[operator]
                yield split, part.to_pydict()
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds; each says what is wrong
        raise InputError(f"{path}: {error}; expected Parquet with columns {', '.join(COLUMNS)}") from None


def _write(path: str, tokenizer: Tokenizer, maxlen: int, directory: Path, rows: int | None) -> None:
    index = {emoji: number for number, emoji in enumerate(DEEPMOJI_EMOJIS)}
    writers = {}
    for split in SPLITS:
        (directory / split).mkdir(exist_ok=True)
        writers[split] = [RaggedWriter(directory / split, name) for name in ("tokens", "emojis", "labels")]
    try:
        for split, batch in _read(path, COLUMNS, rows):
            tokens, emojis, labels = writers[split]
            if None in batch["text"]:
                raise InputError(f"{path}: a text is null; remove such rows")
            tokens.append([tokenizer.ids(text, maxlen) for text in batch["text"]])
            emojis.append([_classes(row, index, path) for row in batch["emojis"]])
            labels.append([_classes([emoji], index, path) for emoji in batch["emoji"]])
    finally:
        for writer in (writer for writers_of_split in writers.values() for writer in writers_of_split):
            writer.close()


def _classes(emojis: Sequence[str] | None, index: dict[str, int], path: str) -> list[int]:
    try:
        return [index[emoji] for emoji in dict.fromkeys(emojis or ())]  # distinct, in the order given
    except KeyError as error:
        raise InputError(f"{path}: {error} is not one of DeepMoji's 64 emojis") from None
