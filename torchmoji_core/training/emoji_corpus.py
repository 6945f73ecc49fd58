"""Texts with the emojis they held, tokenized once into memory-mapped files, so that tens of millions of rows fit.

The files may be kept: a later run on the same data, vocabulary, maxlen and filter maps them at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchmoji_core import durable
from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.names import shown
from torchmoji_core.tokenizer import TOKENIZER_VERSION, Tokenizer
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.ragged import Ragged, RaggedWriter
from torchmoji_core.training.text_filter import TextFilter
from torchmoji_core.vocabulary import Vocabulary

SPLITS = ("train", "val", "test")
COLUMNS = ["text", "emoji", "emojis", "split"]
_LEFT_OUT = "left_out.json"


class EmojiTexts(Protocol):
    """Rows with the columns of `COLUMNS`: a text, its one emoji, all that it held (a list), train, val or test."""

    name: str
    """What they are called in errors."""

    @property
    def identity(self) -> list[Any]:
        """Plain values that change when the rows do."""

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """All rows from the first, in pieces, each a list by column; an InputError where that fails."""


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


def training_texts(
    data: EmojiTexts,
    rows: int | None = None,
    text_filter: TextFilter = TextFilter(),  # noqa: B008
) -> Iterator[str]:
    """The texts of split train that are not left out, to count their words; `rows` as of `prepare`."""
    for split, batch in _read(data, ["text", "split"], rows, text_filter, Counter()):
        if split == "train":
            yield from batch["text"]


@dataclass(frozen=True)
class Prepared:
    """Texts that are ready to train on."""

    splits: dict[str, EmojiCorpus]
    """train, val and test."""
    left_out: dict[str, int]
    """How many texts the filter has left out, by reason."""
    directory: Path
    """Of their files, and for others that belong to these very rows."""


def prepare(
    data: EmojiTexts,
    vocabulary: Vocabulary,
    maxlen: int,
    directory: Path,
    rows: int | None = None,
    text_filter: TextFilter = TextFilter(),  # noqa: B008
) -> Prepared:
    """Tokenize texts with their emojis into `directory`, or map what an earlier call left there.

    Args:
        data: the texts.
        vocabulary: token to id.
        maxlen: tokens kept of each text.
        directory: for the files; it is created. They have one of their own there, which takes the place of that of
            another call with other arguments.
        rows: use only the first rows of each split, of those that are not left out.
        text_filter: what is left out, of every split.

    Raises:
        InputError: if the texts cannot be read, a split has no rows or another name, a text is none, or an
            emoji is not one of DeepMoji's 64.
    """
    identity = json.dumps(_identity(data, vocabulary, maxlen, rows, text_filter)).encode()
    place = directory / hashlib.sha256(identity).hexdigest()
    if not place.is_dir():
        _make(place, lambda temporary: _write(data, Tokenizer(vocabulary), maxlen, temporary, rows, text_filter))
    left_out = json.loads((place / _LEFT_OUT).read_bytes())
    splits = {}
    for split in SPLITS:
        folder = place / split
        corpus, emojis = Corpus.map(folder, "tokens"), Ragged.map(folder, "emojis")
        splits[split] = EmojiCorpus(corpus, emojis, Ragged.map(folder, "labels").values)
        if not len(corpus):
            but = " are left when texts are left out" if left_out else ""
            raise InputError(f"{data.name}: no rows with split {split!r}{but}")
    return Prepared(splits, left_out, place)


def _make(place: Path, write: Callable[[Path], Mapping[str, int]]) -> None:
    """Make a directory that appears whole or not at all, and delete those that it takes the place of.

    Runs that are at work keep what they have mapped: nothing is ever written into a file that has been finished.
    """
    durable.make_directories(place.parent)
    try:
        with durable.replacing(place) as temporary:
            temporary.mkdir()
            (temporary / _LEFT_OUT).write_text(json.dumps(write(temporary)))
            durable.sync(temporary.rglob("*"))
    except OSError:
        if not place.is_dir():  # else another run was first, and made the same
            raise
    for other in place.parent.iterdir():
        if other != place and re.fullmatch("[0-9a-f]{64}", other.name):
            shutil.rmtree(other, ignore_errors=True)


def _identity(
    data: EmojiTexts, vocabulary: Vocabulary, maxlen: int, rows: int | None, text_filter: TextFilter
) -> dict[str, Any]:
    return {
        "data": data.identity,
        "vocabulary": hashlib.sha256(vocabulary.to_json().encode()).hexdigest(),
        "tokenizer": TOKENIZER_VERSION,
        "maxlen": maxlen,
        "rows": rows,
        "filter": text_filter.identity,
    }


def _read(
    data: EmojiTexts, columns: list[str], rows: int | None, text_filter: TextFilter, left_out: Counter[str]
) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """Pieces of one split each, in the order of the rows; what is left out is counted by reason."""
    left = dict.fromkeys(SPLITS, rows)
    number = 0
    for batch in data.batches(columns):
        for text, split in zip(batch["text"], batch["split"], strict=True):
            number += 1
            if not isinstance(text, str):
                what = "null" if text is None else f"{shown(text)}, not a text"
                raise InputError(f"{data.name}, row {number}: a text is {what}; remove such rows")
            if split not in SPLITS:
                raise InputError(
                    f"{data.name}, row {number}: split {shown(split)} is unknown; expected {', '.join(SPLITS)}"
                )
        reasons = [text_filter.reason(text) for text in batch["text"]] if text_filter else [None] * len(batch["text"])
        left_out.update(reason for reason in reasons if reason is not None)
        for split in SPLITS:
            wanted = (row for row, name in enumerate(batch["split"]) if name == split and reasons[row] is None)
            held = list(itertools.islice(wanted, left[split]))
            if rows is not None:
                left[split] -= len(held)  # type: ignore[operator]
            yield split, {name: [column[row] for row in held] for name, column in batch.items()}


def _write(
    data: EmojiTexts, tokenizer: Tokenizer, maxlen: int, directory: Path, rows: int | None, text_filter: TextFilter
) -> Counter[str]:
    left_out: Counter[str] = Counter()
    index = {emoji: number for number, emoji in enumerate(DEEPMOJI_EMOJIS)}
    writers = {}
    for split in SPLITS:
        (directory / split).mkdir(exist_ok=True)
        writers[split] = [RaggedWriter(directory / split, name) for name in ("tokens", "emojis", "labels")]
    try:
        for split, batch in _read(data, COLUMNS, rows, text_filter, left_out):
            tokens, emojis, labels = writers[split]
            tokens.append([tokenizer.ids(text, maxlen) for text in batch["text"]])
            emojis.append([_classes(row, index, data.name) for row in batch["emojis"]])
            labels.append([_classes([emoji], index, data.name) for emoji in batch["emoji"]])
    finally:
        for writer in (writer for writers_of_split in writers.values() for writer in writers_of_split):
            writer.close()
    return left_out


def _classes(emojis: Any, index: dict[str, int], source: str) -> list[int]:
    if not isinstance(emojis, (list, str, type(None))):
        raise InputError(f"{source}: the emojis of a text are {shown(emojis)}, not a list")
    emojis = list(emojis or ())
    for emoji in emojis:
        if not isinstance(emoji, str) or emoji not in index:
            raise InputError(f"{source}: {shown(emoji)} is not one of DeepMoji's 64 emojis")
    return [index[emoji] for emoji in dict.fromkeys(emojis)]  # distinct, in the order given
