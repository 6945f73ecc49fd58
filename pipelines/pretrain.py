"""python -m pipelines.pretrain: make a bundle from texts and the emojis they held."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import OneLineParser, add_dataclass_options, run_command
from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.training.options import PretrainingOptions

if TYPE_CHECKING:
    from torchmoji_core.tokenizer import Tokenizer
    from torchmoji_core.training.pretraining import LabelledCorpus


SCORED_TEXTS = 50_000
"""Texts of each split that the model is scored on at the end; of train, more would cost minutes and tell nothing."""


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.pretrain",
        description="Train a model to predict emojis, as DeepMoji was made, and write it as a bundle.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--data", required=True, help="Parquet with columns text, emoji, emojis (list), split (train/val/test)"
    )
    result.add_argument(
        "--vocabulary", required=True, help="vocabulary.json: token to id, DeepMoji's special tokens first"
    )
    result.add_argument("--output", required=True, type=Path, help="bundle to write: a new directory, or a new .zip")
    result.add_argument("--name", default="emoji64", help="name of the bundle (default: %(default)s)")
    result.add_argument("--card", type=Path, help="Markdown to put before the figures in the model card")
    result.add_argument("--checkpoint", type=Path, help="file to save progress in and to resume from")
    result.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    result.add_argument("--rows", type=int, help="use only the first ROWS rows, for a trial")
    result.add_argument("--embedding", type=int, default=80, help="embedding channels (default: %(default)s)")
    result.add_argument("--hidden", type=int, default=160, help="LSTM channels per direction (default: %(default)s)")
    result.add_argument("--maxlen", type=int, default=30, help="tokens read of each text (default: %(default)s)")
    add_dataclass_options(result, PretrainingOptions)
    return result


def read_split(path: str, split: str, tokenizer: Tokenizer, maxlen: int, rows: int | None = None) -> LabelledCorpus:
    """Read one split of the training data.

    Raises:
        InputError: if a column is missing, or an emoji is not one of the 64.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from torchmoji_core.training.corpus import Corpus, multi_hot
    from torchmoji_core.training.pretraining import LabelledCorpus

    try:
        table = pq.read_table(path, columns=["text", "emoji", "emojis", "split"], filters=[("split", "=", split)])
    except Exception as error:  # pyarrow raises many kinds; each says what is wrong
        raise InputError(f"{path}: {error}; expected Parquet with columns text, emoji, emojis, split") from None
    if rows is not None:
        table = table.slice(0, rows)
    if not len(table):
        raise InputError(f"{path}: no rows with split {split!r}")
    index = {emoji: number for number, emoji in enumerate(DEEPMOJI_EMOJIS)}
    try:
        labels = [index[emoji] for emoji in table["emoji"].to_pylist()]
        targets = [[index[emoji] for emoji in emojis] for emojis in table["emojis"].to_pylist()]
    except KeyError as error:
        raise InputError(f"{path}: {error} is not one of DeepMoji's 64 emojis") from None
    corpus = Corpus.encode(table["text"].to_pylist(), tokenizer, maxlen)
    return LabelledCorpus(corpus, multi_hot(targets, len(index)), np.array(labels, np.int64))


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    import torch

    from torchmoji_core.bundle import Bundle
    from torchmoji_core.model import Dimensions
    from torchmoji_core.tokenizer import Tokenizer
    from torchmoji_core.training.pretraining import Pretraining, evaluate
    from torchmoji_core.vocabulary import Vocabulary

    names = [field.name for field in dataclasses.fields(PretrainingOptions)]
    training_options = PretrainingOptions(**{name: getattr(options, name) for name in names})
    if options.output.exists():
        raise InputError(f"--output {options.output} exists already; give a new name")
    try:
        card = options.card.read_text() if options.card else f"# {options.name}\n"
    except OSError as error:
        raise InputError(f"--card {options.card}: cannot be read ({error.strerror})") from None
    if options.threads:
        torch.set_num_threads(options.threads)
    vocabulary = Vocabulary.load(options.vocabulary)
    tokenizer = Tokenizer(vocabulary)
    splits = {
        name: read_split(options.data, name, tokenizer, options.maxlen, options.rows)
        for name in ("train", "val", "test")
    }
    dimensions = Dimensions(len(vocabulary), options.embedding, options.hidden, len(DEEPMOJI_EMOJIS))
    training = Pretraining(dimensions, splits["train"], training_options, options.checkpoint)
    model = training.run(lambda figures: print(json.dumps(figures), flush=True), splits["val"])
    scores = {name: evaluate(model, data.head(SCORED_TEXTS)) for name, data in splits.items()}
    print(json.dumps(scores))
    provenance: dict[str, Any] = {
        "made_by": "python -m pipelines.pretrain",
        "data": Path(options.data).name,
        "texts": {name: len(data.corpus) for name, data in splits.items()},
        "options": dataclasses.asdict(training_options),
        "scores": {name: {key: round(value, 4) for key, value in figures.items()} for name, figures in scores.items()},
    }
    bundle = Bundle(
        name=options.name,
        classes=DEEPMOJI_EMOJIS,
        vocabulary=vocabulary,
        state={name: tensor.half() for name, tensor in model.state_dict().items()},
        maxlen=options.maxlen,
        provenance=provenance,
        card=card + "\n" + _figures(provenance),
    )
    bundle.save(options.output)
    print(f"wrote {options.output}, fingerprint {bundle.fingerprint}")
    return 0


def _figures(provenance: dict[str, Any]) -> str:
    lines = ["| split | texts | top-1 | top-5 | macro F1 | calibration error |", "|---|---|---|---|---|---|"]
    for name, scores in provenance["scores"].items():
        figures = " | ".join(f"{value:.3f}" for value in scores.values())
        lines.append(f"| {name} | {provenance['texts'][name]:,} | {figures} |")
    return "\n".join(lines) + f"\n\nOver the first {SCORED_TEXTS:,} texts of a split that has more.\n"


if __name__ == "__main__":
    sys.exit(run_command(main))
