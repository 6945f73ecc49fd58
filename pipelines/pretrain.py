"""python -m pipelines.pretrain: make a bundle from texts and the emojis they held."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.exits import end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.parsing import OneLineParser, add_options, take_options
from pipelines.cli.text_filter_options import add_text_filter, describe_left_out, take_text_filter
from torchmoji_core.bundle_files import check_output
from torchmoji_core.errors import InputError
from torchmoji_core.files import read_limited
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.limits import check_limit, check_threads
from torchmoji_core.locations import local_path
from torchmoji_core.names import check_name
from torchmoji_core.training.options import PretrainingOptions

if TYPE_CHECKING:
    from torchmoji_core.bundle import Bundle
    from torchmoji_core.vocabulary import Vocabulary

_MAX_CARD_BYTES = 512 << 10
SCORED_TEXTS = 50_000
"""Texts of each split that the model is scored on at the end; of train, more would cost minutes and tell nothing."""
FREQUENT = 1_000
"""Texts of a class, over all splits, from which on it counts in the macro F1 of frequent classes."""


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
        "--vocabulary",
        help="vocabulary.json: token to id, DeepMoji's special tokens first (default: made from the training texts)",
    )
    result.add_argument(
        "--vocabulary_size", type=int, default=50_000, help="most entries of one that is made (default: %(default)s)"
    )
    result.add_argument("--output", required=True, type=local_path, help="bundle to write: new directory or .zip")
    result.add_argument("--name", default="emoji64", help="name of the bundle (default: %(default)s)")
    result.add_argument("--card", type=local_path, help="Markdown of the model card, whose figures are filled in")
    result.add_argument(
        "--prepared",
        type=local_path,
        help="directory to keep tokenized texts in, for further runs (default: none kept)",
    )
    result.add_argument(
        "--teacher", action="append", default=[], help="bundle whose probabilities are learnt too; may be repeated"
    )
    result.add_argument(
        "--start",
        help="bundle to go on from; it decides vocabulary, --embedding and --hidden (default: random weights)",
    )
    result.add_argument("--checkpoint", type=local_path, help="file to save progress in and to resume from")
    result.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    result.add_argument("--rows", type=int, help="use only the first ROWS rows, for a trial")
    result.add_argument("--embedding", type=int, default=80, help="embedding channels (default: %(default)s)")
    result.add_argument("--hidden", type=int, default=160, help="LSTM channels per direction (default: %(default)s)")
    result.add_argument("--maxlen", type=int, default=30, help="tokens read of each text (default: %(default)s)")
    add_text_filter(result)
    add_options(result, PretrainingOptions)
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    import numpy as np
    import torch

    from torchmoji_core.bundle import Bundle, load_bundle
    from torchmoji_core.memory import keep_freed_memory
    from torchmoji_core.model import Dimensions
    from torchmoji_core.training.cards import emoji_model_card
    from torchmoji_core.training.emoji_corpus import prepare, training_texts
    from torchmoji_core.training.pretraining import Pretraining, calibrate, evaluate, teach
    from torchmoji_core.training.words import count_words, vocabulary_of
    from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary
    from transforms.input.training_data import EmojiFile

    training_options = take_options(PretrainingOptions, options)
    text_filter = take_text_filter(options)
    check_output(options.output)
    check_name("--name", options.name)
    for limited in ("maxlen", "embedding", "hidden"):
        check_limit(f"--{limited}", limited, getattr(options, limited))
    check_limit("--vocabulary_size", "vocabulary", options.vocabulary_size)
    if options.vocabulary_size < len(SPECIAL_TOKENS):
        raise InputError(f"--vocabulary_size must be at least {len(SPECIAL_TOKENS)}, not {options.vocabulary_size}")
    if options.rows is not None and options.rows < 1:
        raise InputError(f"--rows must be at least 1, not {options.rows}")
    prose = _read_card(options.card) if options.card else ""
    check_threads("--threads", options.threads)
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = EmojiFile(options.data)
    start = load_bundle(options.start) if options.start else None
    teachers = [load_bundle(source) for source in options.teacher]
    models = [*([start] if start else []), *teachers]
    if options.vocabulary:
        vocabulary = Vocabulary.load(options.vocabulary)
    elif models:
        vocabulary = models[0].vocabulary
    else:
        counts = count_words(training_texts(data, options.rows, text_filter))
        vocabulary = vocabulary_of(counts, training_options.min_count, options.vocabulary_size)
    for model in models:
        _check_reads_the_same(model, vocabulary, options.maxlen)
    with tempfile.TemporaryDirectory(prefix="torchmoji-") as scratch:
        directory = options.prepared or Path(scratch)
        prepared = prepare(data, vocabulary, options.maxlen, directory, options.rows, text_filter)
        splits = prepared.splits
        sizes = (len(vocabulary), options.embedding, options.hidden, len(DEEPMOJI_EMOJIS))
        dimensions = start.dimensions if start else Dimensions(*sizes)
        taught_by = {teacher.fingerprint: teacher.model() for teacher in teachers}
        train = teach(splits["train"], taught_by, prepared.directory)
        training = Pretraining(dimensions, train, training_options, options.checkpoint, start.state if start else None)
        said = f"{len(training.rows):,} texts, {len(vocabulary):,} tokens, {training.total_steps:,} steps"
        if text_filter:
            said += f"; {describe_left_out(prepared.left_out)}"
        announce("training", said)
        trained = training.run(lambda figures: announce("progress", json.dumps(figures)), splits["val"])
        temperature = calibrate(trained, training.data, splits["val"], training_options.tilt)
        labels = np.concatenate([part.labels for part in splits.values()])
        frequent = np.flatnonzero(np.bincount(labels, minlength=len(DEEPMOJI_EMOJIS)) >= FREQUENT)
        scores = {name: evaluate(trained, part.head(SCORED_TEXTS), frequent) for name, part in splits.items()}
        texts = {name: len(part) for name, part in splits.items()}
    announce("scores", json.dumps(scores))
    provenance: dict[str, Any] = {
        "made_by": "python -m pipelines.pretrain",
        "data": Path(options.data).name,
        "texts": texts,
        "start": {start.fingerprint: start.name} if start else None,
        "teachers": {teacher.fingerprint: teacher.name for teacher in teachers},
        "options": dataclasses.asdict(training_options),
        **({"filter": text_filter.identity, "left_out": prepared.left_out} if text_filter else {}),
        "temperature": temperature,
        "scores": {name: {key: round(value, 4) for key, value in figures.items()} for name, figures in scores.items()},
    }
    bundle = Bundle(
        name=options.name,
        classes=DEEPMOJI_EMOJIS,
        vocabulary=vocabulary,
        state={name: tensor.half() for name, tensor in trained.state_dict().items()},
        maxlen=options.maxlen,
        provenance=provenance,
    )
    bundle = dataclasses.replace(bundle, card=emoji_model_card(bundle, prose))
    bundle.save(options.output)
    announce("written", f"wrote {options.output}, fingerprint {bundle.fingerprint}")
    return 0


def _read_card(path: Path) -> str:
    try:
        return read_limited(f"--card {path}", path, _MAX_CARD_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--card {path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def _check_reads_the_same(model: Bundle, vocabulary: Vocabulary, maxlen: int) -> None:
    if tuple(model.classes) != tuple(DEEPMOJI_EMOJIS):
        raise InputError(f"model {model.name}: its classes are not DeepMoji's 64 emojis")
    if list(model.vocabulary) != list(vocabulary) or model.maxlen != maxlen:
        raise InputError(
            f"model {model.name}: its vocabulary or maxlen is another; what is learnt from must read the same ids"
        )


if __name__ == "__main__":
    end(run_command(main))
