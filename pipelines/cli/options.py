"""The options of `python -m pipelines.score`, most of which other commands share.

Imports neither Beam nor torch, so that --help is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.logs import LOG_FORMATS
from pipelines.cli.parsing import OneLineParser, add_options, names, seconds, take_options
from pipelines.cli.streaming_options import StreamOptions, add_streaming_options, streaming_options
from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from torchmoji_core.inference import available_cores
from torchmoji_core.locations import plain
from torchmoji_core.options import option
from transforms.addresses import KafkaTopic
from transforms.columns import FINGERPRINT_COLUMN
from transforms.input.fields import KEPT_TYPES, FieldMapping, KeptField
from transforms.input.formats import absolute, absolute_directory
from transforms.input.forms import FormOptions
from transforms.options import ROWS_PER_FILE, ScoreOptions

SAMPLE = Path(__file__).parents[1] / "sample" / "posts.jsonl"
LOCAL_RUNNER = "DirectRunner"
_RUNNERS = (
    LOCAL_RUNNER, "BundleBasedDirectRunner", "DaskRunner", "DataflowRunner", "FlinkRunner", "InteractiveRunner",
    "PortableRunner", "PrismRunner", "RenderRunner", "SparkRunner", "SwitchingDirectRunner", "TrivialRunner",
)  # fmt: skip
"""Those of Beam's that are known here, each with what it needs or why it is refused."""
IF_EXISTS = ("rerun", "replace", "append", "fail")
PROGRESS = ("auto", "bar", "lines", "off")


class _Extend(argparse.Action):
    """Values of an option that is given several times; the default is not among them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = getattr(namespace, f"_{self.dest}", [])
        setattr(namespace, f"_{self.dest}", [*given, *values])
        setattr(namespace, self.dest, [*given, *values])


def _output(text: str) -> str:
    output = plain(text)
    if set(output) & set("*?["):
        raise InputError(f"--output {text} holds one of the glob characters *?[; give another name")
    return output.rstrip("/") or "/"


def _runner(text: str) -> str:
    """A runner by its name in full. Beam takes names in any case, without `Runner`, and with their module in front."""
    short = text.rpartition(".")[2] if text.startswith("apache_beam.") else text
    known = {name.lower(): name for name in _RUNNERS}
    return known.get(short.lower()) or known.get(f"{short.lower()}runner") or text


def _processes(text: str) -> int:
    number = int(text)
    if number < 0:
        raise InputError(f"--direct_num_workers must be at least 0, not {number}")
    return number or available_cores()


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What is read, beside the `FormOptions` and the `FieldMapping`."""

    inputs: tuple[str, ...] = option(
        None, "files, directories, globs or URIs, several if wanted", name="input",
        nargs="+", action=_Extend, metavar="GLOB",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and how many dead letters are too many."""

    output: str = option(None, "directory to write to", type=_output, metavar="DIR")
    rows_per_file: int = option(ROWS_PER_FILE, "rows at which a new file begins", metavar="N")
    max_dead_fraction: float = option(
        0.1, "exit with status 3 if more of what was read than this became dead letters", metavar="F"
    )
    if_exists: str = option(
        "rerun",
        "if DIR holds results: rerun replaces those of the same command and refuses others, replace replaces all, "
        "append adds, fail refuses",
        choices=IF_EXISTS,
    )

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        if not 0 <= self.max_dead_fraction <= 1:
            raise InputError(f"--max_dead_fraction must lie between 0 and 1, not {self.max_dead_fraction}")
        if self.rows_per_file < 1:
            raise InputError(f"--rows_per_file must be at least 1, not {self.rows_per_file}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where it runs, and what it says meanwhile."""

    runner: str = option(
        LOCAL_RUNNER, "DirectRunner runs on this machine; others are those of Beam", type=_runner, metavar="NAME"
    )
    local_workers: int = option(
        1, "processes of a local run, 0 for one a core", name="direct_num_workers", type=_processes, metavar="N"
    )
    stall_timeout: float = option(
        600.0,
        "end a local run that makes no progress for so long, or a job for which no worker begins, with status 1; "
        "0 for never",
        type=seconds,
    )
    progress: str = option(
        "auto", "bar: a progress bar; lines: one every ten seconds; auto: a bar on a terminal", choices=PROGRESS
    )
    report: str | None = option(
        None, "write the run's figures there as JSON and, with the suffix .prom instead, for Prometheus", type=plain,
        metavar="FILE",
    )  # fmt: skip
    log_format: str = option(
        "text", "json: all output is one JSON object a line, on standard error", choices=LOG_FORMATS
    )
    dry_run: bool = option(False, "check everything, print the plan and stop")
    no_wait: bool = option(
        False, "submit the job to a cluster and leave it there; the next annotate, compact or verify --clean takes in "
        "its result",
    )  # fmt: skip

    @property
    def is_local(self) -> bool:
        return self.runner == LOCAL_RUNNER

    @property
    def is_dataflow(self) -> bool:
        """Whether jobs go to Google's Dataflow."""
        return self.runner == "DataflowRunner"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(InputOptions, OutputOptions, RunOptions):
    """A validated command line."""

    form: FormOptions
    fields: FieldMapping
    keep_without_type: tuple[str, ...]
    """Kept fields whose type is to be told from the data."""
    score: ScoreOptions
    limits: BatchLimits
    stream: StreamOptions | None = None
    """How to read messages; None for files."""

    def with_fields(self, fields: FieldMapping) -> ScoreConfig:
        """With other fields, of which the kept ones become columns."""
        return dataclasses.replace(self, fields=fields, score=dataclasses.replace(self.score, keep=fields.keep))

    @property
    def local_threads(self) -> int:
        """Threads of Beam in a local run of one process: as many as score at the same time."""
        return (self.score.threads or 1) if self.local_workers == 1 else 1


def score_parser() -> argparse.ArgumentParser:
    """The options of `pipelines.score`."""
    result = OneLineParser(
        prog="python -m pipelines.score",
        description="Score tweets: emoji distributions and embeddings of texts, to Parquet. --input - reads standard "
        "input.",
        epilog="Other options go to Apache Beam and its runner, e.g. --runner=FlinkRunner --flink_master=HOST:PORT. "
        "Exit status: 0 done, 1 failed, 2 wrong options or input, 3 too many dead letters, 4 another run is writing to "
        "the same output.",
        allow_abbrev=False,
    )
    add_shared_options(result, without=("partition_by",), inputs=[str(SAMPLE)], output="./scored")
    add_streaming_options(result)
    return result


def add_shared_options(result: argparse.ArgumentParser, without: Collection[str] = (), **defaults: Any) -> None:
    """Add what every command that scores has.

    Args:
        result: parser to add to.
        without: fields to leave out.
        **defaults: instead of its own.
    """
    group = result.add_argument_group("input")
    add_options(group, InputOptions, **defaults)
    add_options(group, FormOptions)
    add_options(group, FieldMapping, without, **defaults)
    group.add_argument(
        "--keep_fields", default="", metavar="FIELDS",
        help="fields to carry through, path, path:type or path:type:as=name of the column; types: "
        f"{', '.join(KEPT_TYPES)} (default: as in the data)",
    )  # fmt: skip
    add_options(result.add_argument_group("output"), OutputOptions, without, **defaults)
    add_options(result.add_argument_group("scores"), ScoreOptions)
    group = result.add_argument_group("run")
    add_options(group, RunOptions)
    add_options(group, BatchLimits)


def parse(arguments: list[str]) -> tuple[ScoreConfig, list[str]]:
    """Parse and validate; what is not ours is returned for Beam.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    parser = score_parser()
    options, rest = parse_known(parser, arguments)
    stream = streaming_options(options, parser)
    config = score_config(options)
    if stream is not None:
        # A row's window is told by its time, so it is always there.
        outputs = config.score.outputs if stream.model_watch is None else (*config.score.outputs, FINGERPRINT_COLUMN)
        is_kafka = isinstance(stream.source, KafkaTopic)
        score = dataclasses.replace(config.score, timestamp=True, outputs=outputs, messages=is_kafka)
        config = dataclasses.replace(config, stream=stream, score=score)
    return config, rest


def parse_known(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse; what is not ours is returned for Beam.

    Raises:
        InputError: for a value that is wrong, or one that no option takes.
    """
    options, rest = parser.parse_known_args(arguments)
    stray = [argument for argument in rest if not argument.startswith("-")]
    if stray and rest[0] == stray[0]:
        raise InputError(f"argument {stray[0]!r} belongs to no option; inputs are given with --input")
    if options.runner != LOCAL_RUNNER:
        _make_absolute(options)
    return options, rest


def _make_absolute(options: argparse.Namespace) -> None:
    """Make local paths absolute that workers open: they are in directories of their own."""
    for name in ("output", "model", "model_watch", "consumer_config", "producer_config"):
        path = getattr(options, name, None)
        # A model may have a name.
        if path and (name != "model" or Path(plain(path)).exists()):
            setattr(options, name, absolute_directory(path))


def _kept_field(text: str) -> tuple[KeptField, bool]:
    """A field of --keep_fields, and whether its type is given."""
    field, _, column = text.partition(":as=")
    path, _, kind = field.partition(":")
    column, _, kind_behind = column.partition(":")
    kind = kind or kind_behind
    return KeptField(column or path, kind or "string", path), bool(kind)


def score_config(options: argparse.Namespace) -> ScoreConfig:
    """Validate the shared options.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    kept = [_kept_field(text) for text in names(options.keep_fields)]
    keep = tuple(field for field, _ in kept)
    fields = take_options(FieldMapping, options, keep=keep)
    if options.runner == LOCAL_RUNNER and options.threads is None:
        # One thread a core in all: more threads than cores slow each other down.
        options.threads = max(1, available_cores() // options.direct_num_workers)
    score = take_options(
        ScoreOptions,
        options,
        keep=keep,
        timestamp=fields.timestamp is not None,
        partitioned=bool(fields.partition_by),
    )
    return take_options(
        ScoreConfig,
        options,
        inputs=tuple(absolute(pattern) for pattern in options.input),
        form=take_options(FormOptions, options),
        fields=fields,
        keep_without_type=tuple(field.name for field, is_typed in kept if not is_typed),
        score=score,
        limits=take_options(BatchLimits, options),
    )
