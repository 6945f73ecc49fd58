"""The options of `python -m pipelines.annotate`. Imports neither Beam nor torch, so that --help is fast."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from pipelines.command_line import OneLineParser, duration
from pipelines.options import ScoreConfig, add_shared_options, parse_known, score_config
from torchmoji_core.errors import InputError
from transforms.fields import DATE

ON_CHANGED = ("rescore", "skip", "fail")
ON_VANISHED = ("keep", "retire", "fail")
COMMIT_SECONDS = 30.0
"""A run of the pipeline costs half a second before it scores anything, and what dies loses half of this on average."""
EVERY_SETTLE = "2s"
"""A file whose writer pauses for longer is scored as far as it is there, and again when it has changed."""


@dataclass(frozen=True)
class AnnotateConfig:
    """A validated command line."""

    score: ScoreConfig
    settle: float
    """Seconds that an input must not have changed for."""
    on_changed: str
    on_vanished: str
    rescore_with_new_model: bool
    commit_every: float
    """Seconds of work after which what is done is committed; 0 for one commit at the end."""
    lease: float
    """Seconds after which a holder on another machine that gives no sign of life is taken for dead."""
    every: float | None = None
    """Seconds from one look at the inputs to the next; None for one look."""


# fmt: off
def annotate_parser() -> argparse.ArgumentParser:
    """The options of `pipelines.annotate`."""
    result = OneLineParser(
        prog="python -m pipelines.annotate",
        description="Score what is new in a growing corpus since the last run; see README for how to schedule it.",
        epilog="Other options go to Apache Beam and its runner. Exit status: 0 done or nothing to do, 1 failed, 2 "
        "wrong options or input, 3 too many dead letters, 4 another run is writing to the same output.",
        allow_abbrev=False,
    )
    add = add_shared_options(result, "")
    add("--partition_by", default=DATE, metavar="FIELDS",
        help="fields whose values name directories, DIR/date=2026-01-31/part-*.parquet; date is the day and hour the "
        "hour (UTC) of the timestamp or, without --timestamp_field, of the file; '' for none (default: %(default)s)")
    add("--lease", default="5m", metavar="TIME",
        help="another machine's run that gave no sign of life for so long is taken for dead (default: %(default)s)")
    add = result.add_argument_group("what is new").add_argument
    add("--every", metavar="TIME",
        help="go on until SIGTERM or Ctrl-C: look for what is new, score it, wait TIME, look again")
    add("--settle", metavar="TIME",
        help="leave files that changed within the last TIME, 10m for instance, to the next run (default: 0s, with "
        f"--every {EVERY_SETTLE})")
    add("--on_changed", choices=ON_CHANGED, default="rescore",
        help="a file that has changed since it was scored: rescore replaces its rows, skip leaves them, fail stops "
        "(default: %(default)s)")
    add("--on_vanished", choices=ON_VANISHED, default="keep",
        help="a file that is gone since it was scored: keep or retire its rows, or fail (default: %(default)s)")
    add("--rescore_with_new_model", action="store_true",
        help="if --model is another one than before: score everything again, and replace the old results when all is "
        "done (default: refuse to mix models)")
    add("--commit_every", metavar="TIME",
        help=f"commit after so much work; 0 for once at the end (default: {COMMIT_SECONDS:.0f}s, 0 on clusters)")
    return result
# fmt: on


def parse(arguments: list[str]) -> tuple[AnnotateConfig, list[str]]:
    """Parse and validate; what is not ours is returned for Beam.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    options, rest = parse_known(annotate_parser(), arguments)
    for name in ("input", "output"):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing; --help lists all options")
    score = score_config(options)
    commit_every = options.commit_every or ("30s" if score.is_local else "0")
    config = AnnotateConfig(
        # Which rows are from which file is needed to replace a changed file's.
        score=dataclasses.replace(
            score,
            score=dataclasses.replace(score.score, outputs=tuple(dict.fromkeys((*score.score.outputs, "source")))),
        ),
        settle=duration("--settle", options.settle or ("0s" if options.every is None else EVERY_SETTLE)),
        on_changed=options.on_changed,
        on_vanished=options.on_vanished,
        rescore_with_new_model=options.rescore_with_new_model,
        commit_every=duration("--commit_every", commit_every),
        lease=duration("--lease", options.lease),
        every=None if options.every is None else duration("--every", options.every),
    )
    if config.lease < 1:
        raise InputError(f"--lease must be at least 1s, not {options.lease}")
    if config.every == 0:
        raise InputError(f"--every must be more than 0, not {options.every}")
    return config, rest
