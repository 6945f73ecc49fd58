"""python -m pipelines.convert: make a bundle from a published torchMoji or DeepMoji checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.cli.exits import end, run_command
from pipelines.cli.logs import announce
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.bundle_files import check_output
from torchmoji_core.errors import InputError
from torchmoji_core.files import read_limited
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.limits import check_limit
from torchmoji_core.locations import local_path
from torchmoji_core.names import check_name

if TYPE_CHECKING:
    from torch import Tensor

    from torchmoji_core.bundle import Bundle

_MAX_CLASSES_BYTES = 4 << 20


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.convert",
        description="Convert torchMoji's pytorch_model.bin, DeepMoji's .hdf5 or emoji.ckpt to a bundle.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--checkpoint", required=True, help="file or URI of the weights; of TensorFlow's the .index, beside its data"
    )
    result.add_argument("--vocabulary", required=True, help="vocabulary.json of the weights: token to id")
    result.add_argument("--output", required=True, help="bundle to write: a new directory, or a new .zip")
    result.add_argument("--name", help="name of the bundle (default: the checkpoint's name without its ending)")
    result.add_argument("--maxlen", type=int, default=30, help="tokens read of each text (default: %(default)s)")
    result.add_argument(
        "--classes",
        type=local_path,
        help="JSON list of names, one for each output; of a binary classifier's one output two, that of label 0 first "
        "(default: DeepMoji's emojis if 64)",
    )
    result.add_argument("--half", action="store_true", help="store float16: half the size, slightly other scores")
    result.add_argument(
        "--check_known_answers",
        choices=("yes", "no", "auto"),
        default="auto",
        help="score seven texts whose results with the published weights are known; yes: other results are an error; "
        "auto: they are a warning, and only weights of the published size are checked (default: %(default)s)",
    )
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from torchmoji_core.bundle import Bundle
    from torchmoji_core.checkpoints import checkpoint_format, fetch_checkpoint, parse_checkpoint
    from torchmoji_core.locations import is_remote
    from torchmoji_core.model import dimensions_of
    from torchmoji_core.vocabulary import Vocabulary

    if is_remote(options.output):
        raise InputError(f"--output {options.output}: give a local path, and upload the bundle from there")
    check_output(local_path(options.output))
    check_limit("--maxlen", "maxlen", options.maxlen)
    if options.name is not None:
        check_name("--name", options.name)
    vocabulary = Vocabulary.load(options.vocabulary)
    content = fetch_checkpoint(options.checkpoint)
    state = parse_checkpoint(content, options.checkpoint)
    dimensions = dimensions_of(state)
    checkpoint = file_name(options.checkpoint)
    provenance = {
        "made_by": "python -m pipelines.convert",
        "checkpoint": checkpoint,
        "sha256": hashlib.sha256(content).hexdigest(),
        "format": checkpoint_format(content, options.checkpoint),
    }
    del content
    name = options.name or PurePosixPath(checkpoint).stem
    bundle = Bundle(
        name=name,
        classes=read_classes(options.classes, dimensions.classes),
        vocabulary=vocabulary,
        state=state,
        maxlen=options.maxlen,
        provenance=provenance,
        card=f"# {name}\n\nConverted from `{checkpoint}` ({provenance['format']}, SHA-256 {provenance['sha256']}).\n",
    )
    # Before rounding to float16: the question is whose weights these are.
    check_known_answers(bundle, options.check_known_answers, options.checkpoint)
    if options.half:
        bundle = dataclasses.replace(bundle, state=half(state))
    bundle.save(options.output)
    sizes = ", ".join(f"{key} {value:,}" for key, value in vars(dimensions).items())
    announce("written", f"wrote {options.output}, fingerprint {bundle.fingerprint}, {sizes}")
    return 0


def file_name(source: str) -> str:
    """The last part of a path or URI: no directories, no query (which may hold a signature)."""
    path = urlsplit(source).path if "://" in source else source
    return PurePosixPath(path).name or "checkpoint"


def read_classes(path: Path | None, outputs: int) -> tuple[str, ...]:
    """The class names of a model: those of a JSON file, or DeepMoji's emojis.

    Args:
        path: JSON list of names; None for the emojis.
        outputs: how many classes the weights have.

    Raises:
        InputError: if the file is no such list, or there are not as many different names as outputs.
    """
    if path is None:
        if outputs != len(DEEPMOJI_EMOJIS):
            raise InputError(
                f"the weights have {outputs} outputs, not DeepMoji's {len(DEEPMOJI_EMOJIS)}; "
                "name them with --classes FILE, a JSON list of strings"
            )
        return DEEPMOJI_EMOJIS
    try:
        classes = json.loads(read_limited(f"--classes {path}", path, _MAX_CLASSES_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"--classes {path}: not JSON ({error}); expected a list of strings") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise InputError(f"--classes {path}: expected a JSON list of strings, none of them empty")
    if len(classes) != outputs or len(set(classes)) != len(classes):
        raise InputError(
            f"--classes {path}: {len(classes)} names, {len(set(classes))} of them different; "
            f"the weights have {outputs} outputs, give each its own name"
        )
    for name in classes:
        check_name(f"--classes {path}: each name", name)
    return tuple(classes)


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float16.

    Raises:
        InputError: if one is beyond float16's range.
    """
    from torchmoji_core.model import check_weights

    result = {name: tensor.half() for name, tensor in state.items()}
    try:
        check_weights(result)
    except InputError as error:
        raise InputError(f"--half: rounded to float16, {error}; leave --half out") from None
    return result


def check_known_answers(bundle: Bundle, wanted: str, source: str) -> None:
    """Report whether a bundle gives the published weights' known answers.

    Args:
        bundle: the bundle to be written.
        wanted: `yes`, `no` or `auto`, as of the option.
        source: the checkpoint, for errors.

    Raises:
        InputError: if it does not and must.
    """
    from torchmoji_core.checkpoints import KNOWN_ANSWERS, known_answers, looks_published

    if wanted == "no" or (wanted == "auto" and not looks_published(bundle.dimensions)):
        return
    mismatches = known_answers(bundle)
    if not mismatches:
        announce("known_answers", f"known answers: {len(KNOWN_ANSWERS)} of {len(KNOWN_ANSWERS)}")
        return
    finding = f"checkpoint {source}: not the published weights, or not their vocabulary: {mismatches[0]}"
    if len(mismatches) > 1:
        finding += f", and {len(mismatches) - 1} more differences"
    if wanted == "yes":
        raise InputError(f"{finding}; weights of your own need --check_known_answers no")
    announce("known_answers", f"warning: {finding}", level=logging.WARNING)


if __name__ == "__main__":
    end(run_command(main))
