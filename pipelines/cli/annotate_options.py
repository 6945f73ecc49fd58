"""The options of `python -m pipelines.annotate`. Imports neither Beam nor torch, so that --help is fast."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from pipelines.cli.options import ScoreConfig, add_shared_options, parse_known, score_config
from pipelines.cli.parsing import OneLineParser, add_options, as_time, seconds, take_options
from torchmoji_core.errors import InputError
from torchmoji_core.options import option
from transforms.input.fields import DATE
from transforms.input.formats import STANDARD_INPUT

COMMIT_SECONDS = 30.0
"""A run of the pipeline costs half a second before it scores anything; one that dies loses half of this on average."""
EVERY_SETTLE = 2.0
"""A file whose writer pauses for longer is scored as far as it is there, and again when it has changed."""


@dataclass(frozen=True)
class AnnotateConfig:
    """A validated command line."""

    score: ScoreConfig
    every: float | None = option(
        None, "go on until SIGTERM or Ctrl-C: look for what is new, score it, wait TIME, look again", type=seconds
    )
    settle: float = option(
        None, "leave files that changed within the last TIME, 10m for instance, to the next run (default: 0s, with "
        f"--every {as_time(EVERY_SETTLE)})", type=seconds,
    )  # fmt: skip
    on_changed: str = option(
        "rescore", "a file that has changed since it was scored: rescore replaces its rows, skip leaves them, fail "
        "stops", choices=("rescore", "skip", "fail"),
    )  # fmt: skip
    on_vanished: str = option(
        "keep", "a file that is gone since it was scored: keep or retire its rows, or fail",
        choices=("keep", "retire", "fail"),
    )  # fmt: skip
    rescore_with_new_model: bool = option(
        False, "if --model is another one than before: score everything again, and replace the old results when all is "
        "done (default: refuse to mix models)",
    )  # fmt: skip
    commit_every: float = option(
        None, f"commit after so much work; 0 for once at the end (default: {as_time(COMMIT_SECONDS)}, 0 on clusters)",
        type=seconds,
    )  # fmt: skip
    lock_timeout: float = option(
        300.0, "another machine's run that gave no sign of life for so long is taken for dead", type=seconds
    )

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        if self.lock_timeout < 1:
            raise InputError(f"--lock_timeout must be at least 1s, not {as_time(self.lock_timeout)}")
        if self.every == 0:
            raise InputError("--every must be more than 0")


def annotate_parser() -> argparse.ArgumentParser:
    """The options of `pipelines.annotate`."""
    result = OneLineParser(
        prog="python -m pipelines.annotate",
        description="Score what is new in a growing corpus since the last run; see README for how to schedule it.",
        epilog="Other options go to Apache Beam and its runner. Exit status: 0 done or nothing to do, 1 failed, 2 "
        "wrong options or input, 3 too many dead letters, 4 another run is writing to the same output.",
        allow_abbrev=False,
    )
    add_shared_options(result, without=("if_exists",), partition_by=(DATE,))
    add_options(result.add_argument_group("what is new"), AnnotateConfig)
    return result


def parse(arguments: list[str]) -> tuple[AnnotateConfig, list[str]]:
    """Parse and validate; what is not ours is returned for Beam.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    options, rest = parse_known(annotate_parser(), arguments)
    for name in ("input", "output"):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing; --help lists all options")
    config = score_config(options)
    if STANDARD_INPUT in config.inputs:
        raise InputError(
            "--input -: what is new is told from files, which standard input is not; give it to pipelines.score, or "
            "write it to a file"
        )
    # Which rows are from which file is needed to replace a changed file's.
    score = dataclasses.replace(config.score, outputs=(*config.score.outputs, "source"))
    if options.settle is None:
        options.settle = 0.0 if options.every is None else EVERY_SETTLE
    if options.commit_every is None:
        options.commit_every = COMMIT_SECONDS if config.is_local else 0.0
    return take_options(AnnotateConfig, options, score=dataclasses.replace(config, score=score)), rest
