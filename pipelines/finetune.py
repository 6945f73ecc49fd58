"""python -m pipelines.finetune: make a classifier of labelled texts from a pretrained bundle."""

from __future__ import annotations

import argparse
import json

from pipelines.cli.exits import end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.parsing import OneLineParser, add_options, shares, take_options
from torchmoji_core.bundle_files import check_output
from torchmoji_core.limits import check_threads
from torchmoji_core.locations import local_path
from torchmoji_core.names import check_name
from torchmoji_core.training.labelled_texts import check_ratios
from torchmoji_core.training.options import FineTuningOptions


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.finetune",
        description="Train a classifier on labelled texts, from a pretrained model, and write it as a bundle that "
        "pipelines.score runs.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--data", required=True, type=local_path, help="texts with labels: .parquet, .csv, .tsv or .jsonl"
    )
    result.add_argument("--text_field", default="text", help="column of the texts (default: %(default)s)")
    result.add_argument(
        "--label_field", default="label", help="column of the labels: numbers, names, or lists (default: %(default)s)"
    )
    result.add_argument(
        "--split_field",
        default="split",
        help="column of train, val, test (default: %(default)s); without it 80, 10 and 10 %% at random",
    )
    result.add_argument(
        "--split_ratios",
        type=shares,
        metavar="TRAIN,VAL,TEST",
        help="shares of the splits, 0.7,0.1,0.2 for instance: they are drawn at random, whatever the file says",
    )
    result.add_argument("--classes", help="names of the classes, separated by commas (default: the labels)")
    result.add_argument("--model", help="bundle to start from: path or URI (default: the bundled model)")
    result.add_argument("--output", required=True, type=local_path, help="bundle to write: new directory or .zip")
    result.add_argument("--name", help="name of the bundle (default: that of the output)")
    result.add_argument("--checkpoint", type=local_path, help="file to save progress in and to resume from")
    result.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    result.add_argument("--embedding", type=int, help="embedding channels, for method new (default: the model's)")
    result.add_argument("--hidden", type=int, help="LSTM channels per direction, for method new (default: the model's)")
    add_options(result, FineTuningOptions)
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    training_options = take_options(FineTuningOptions, options)
    check_output(options.output)
    name = options.name or options.output.stem
    check_name("the name of the bundle (--name, or else that of --output)", name)
    check_threads("--threads", options.threads)
    if options.split_ratios:
        check_ratios("--split_ratios", options.split_ratios)
    import torch

    from torchmoji_core.bundle import load_bundle
    from torchmoji_core.memory import keep_freed_memory
    from torchmoji_core.training.classifier import ClassifierTraining, epochs_bar
    from transforms.input.training_data import read_labelled_texts

    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    classes = options.classes.split(",") if options.classes else ()
    split_field = None if options.split_ratios else options.split_field
    data = read_labelled_texts(options.data, options.text_field, options.label_field, split_field, classes)
    if options.split_ratios:
        data = data.divided(options.split_ratios, training_options.seed)
    splits = data.split(training_options.seed)
    base = load_bundle(options.model)
    size = None
    if options.embedding is not None or options.hidden is not None:
        own = base.dimensions
        size = (
            own.embedding if options.embedding is None else options.embedding,
            own.hidden if options.hidden is None else options.hidden,
        )
    training = ClassifierTraining(splits, base, training_options, size=size, checkpoint=options.checkpoint)
    texts = ", ".join(f"{len(part.texts):,} {name}" for name, part in splits.items())
    announce(
        "training",
        f"{texts}; {len(training.classes)} classes; {training.maxlen} tokens a text, {training.added_words:,} words "
        "added to the vocabulary",
    )
    with epochs_bar() as report:
        bundle = training.run(report, name, options.data.name)
    announce("scores", json.dumps(bundle.provenance["scores"]))
    bundle.save(options.output)
    announce("written", f"wrote {options.output}, fingerprint {bundle.fingerprint}")
    return 0


if __name__ == "__main__":
    end(run_command(main))
