"""The options of `python -m pipelines.score`, most of which other commands share.

Imports neither Beam nor torch, so that --help is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command_line import OneLineParser, duration
from pipelines.logs import LOG_FORMATS
from pipelines.streaming_options import StreamOptions, WatchOptions, add_streaming_options, streaming_options
from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS, available_cores
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP, EMBEDDING_TYPES
from torchmoji_core.locations import plain
from transforms.fields import DEFAULT_ID_FIELDS, DEFAULT_TEXT_FIELDS, KEPT_TYPES, FieldMapping, KeptField
from transforms.formats import FORMATS, absolute
from transforms.options import DEFAULT_OUTPUTS, OUTPUTS, PARQUET_ENCODINGS, ROWS_PER_FILE, ScoreOptions

SAMPLE = Path(__file__).parent / "sample" / "posts.jsonl"
LOCAL_RUNNER = "DirectRunner"
IF_EXISTS = ("rerun", "replace", "append", "fail")
PROGRESS = ("auto", "bar", "lines", "off")


@dataclass(frozen=True)
class ScoreConfig:
    """A validated command line."""

    inputs: tuple[str, ...]
    output: str
    format: str | None
    fields: FieldMapping
    keep_without_type: tuple[str, ...]
    """Kept fields whose type is to be told from the data."""
    score: ScoreOptions
    limits: BatchLimits
    rows_per_file: int
    max_dead_fraction: float
    if_exists: str
    resume: bool
    """Whether to commit input by input, and leave out what was committed."""
    dry_run: bool
    progress: str
    report: str | None
    runner: str
    local_workers: int
    """Processes of a local run."""
    stall_timeout: float
    """Seconds without progress after which a local run ends; 0 for never."""
    stream: StreamOptions | None = None
    """How to read messages; None for files."""
    watch: WatchOptions | None = None
    """How to watch a directory; None for none."""

    @property
    def local_threads(self) -> int:
        """Threads of Beam in a local run of one process: as many as score at the same time."""
        return (self.score.threads or 1) if self.local_workers == 1 else 1

    @property
    def is_local(self) -> bool:
        return self.runner == LOCAL_RUNNER


# fmt: off
def score_parser() -> argparse.ArgumentParser:
    """The options of `pipelines.score`."""
    result = OneLineParser(
        prog="python -m pipelines.score",
        description="Score tweets: emoji distributions and embeddings of texts, to Parquet.",
        epilog="Other options go to Apache Beam and its runner, e.g. --runner=FlinkRunner --flink_master=HOST:PORT. "
        "Exit status: 0 done, 1 failed, 2 wrong options or input, 3 too many dead letters, 4 another run is writing to "
        "the same output.",
        allow_abbrev=False,
    )
    result.set_defaults(input=[str(SAMPLE)], output="./scored")
    add = add_shared_options(result, "(default: the bundled sample of 360 posts)")
    add("--if_exists", choices=IF_EXISTS, default="rerun",
        help="if DIR holds results: rerun replaces those of the same command and refuses others, replace replaces all, "
        "append adds, fail refuses (default: %(default)s)")
    add("--resume", action="store_true",
        help="commit the results of input file after input file, and leave out what an earlier run of the same command "
        "has committed: what died is gone on with")
    add_streaming_options(result)
    return result


def add_shared_options(result: argparse.ArgumentParser, default_input: str) -> Callable[..., Any]:
    """Add what every command that scores has.

    Args:
        result: parser to add to.
        default_input: what its help says of --input without a value.

    Returns:
        What adds further options to the group that says how to write.
    """
    add = result.add_argument_group("input").add_argument
    add("--input", nargs="+", action=_Extend, metavar="GLOB",
        help=f"files, directories, globs or URIs, several if wanted {default_input}")
    add("--format", choices=FORMATS, help="format of all inputs (default: by their names, less .gz, .bz2, .zst)")
    add("--text_field", default=",".join(DEFAULT_TEXT_FIELDS), metavar="PATHS",
        help="field with the text; dots go into nested fields; the first of several (default: %(default)s)")
    add("--id_field", default=",".join(DEFAULT_ID_FIELDS), metavar="PATHS",
        help="field with the id; without one, ids are hashes of file and position (default: %(default)s)")
    add("--timestamp_field", metavar="PATH",
        help="field with the time, written as column timestamp: ISO 8601, Twitter's format, or seconds since 1970")
    add("--keep_fields", default="", metavar="FIELDS",
        help=f"fields to carry through, name or name:type; types: {', '.join(KEPT_TYPES)} (default: as in the data)")
    group = result.add_argument_group("output")
    add = group.add_argument
    add("--output", metavar="DIR", help="directory to write to"
        + (" (default: %(default)s)" if result.get_default("output") else ""), default=result.get_default("output"))
    add("--outputs", default=",".join(DEFAULT_OUTPUTS), metavar="COLUMNS",
        help=f"any of {','.join(OUTPUTS)} (default: %(default)s)")
    add("--top_k", type=int, default=DEFAULT_TOP, metavar="K", help="classes in the top column (default: %(default)s)")
    add("--embedding_type", choices=EMBEDDING_TYPES, default="float32",
        help="float32 holds multiples of 1/4096; float16 takes a bit less, is half as exact, and fewer tools read it "
        "(default: %(default)s)")
    add("--parquet_encoding", choices=PARQUET_ENCODINGS, default="plain",
        help="of probabilities and embeddings; byte_stream_split takes a fifth less (default: %(default)s)")
    add("--rows_per_file", type=int, default=ROWS_PER_FILE, metavar="N",
        help="rows at which a new file begins (default: %(default)s)")
    add("--max_dead_fraction", type=float, default=0.1, metavar="F",
        help="exit with status 3 if more of what was read than this became dead letters (default: %(default)s)")
    add = result.add_argument_group("model").add_argument
    add("--model", metavar="BUNDLE", help="bundle: directory, .zip, or URI of either (default: the bundled model)")
    add("--precision", choices=PRECISIONS, default="auto",
        help="of the products; auto: the fastest that the processor has instructions for (default: %(default)s)")
    add("--cache_mb", type=int, default=DEFAULT_CACHE_MB, metavar="MB",
        help="bound of each process's cache of recent results, a temporary file; 0 scores repeated texts again "
        "(default: %(default)s)")
    add = result.add_argument_group("run").add_argument
    add("--runner", default=LOCAL_RUNNER,
        help="DirectRunner runs on this machine; others are those of Beam (default: %(default)s)")
    add("--direct_num_workers", type=int, default=1, metavar="N",
        help="processes of a local run, 0 for one a core (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="scoring threads of each process (default: the cores shared out)")
    add("--max_batch_rows", type=int, default=BatchLimits.max_rows, metavar="N", help="(default: %(default)s)")
    add("--max_batch_tokens", type=int, default=BatchLimits.max_tokens, metavar="N", help="(default: %(default)s)")
    add("--stall_timeout", default="10m", metavar="TIME",
        help="end a local run that makes no progress for so long, with status 1; 0 for never (default: %(default)s)")
    add("--progress", choices=PROGRESS, default="auto",
        help="bar: a progress bar; lines: one every ten seconds; auto: a bar on a terminal (default: %(default)s)")
    add("--report", metavar="FILE",
        help="write the run's figures there as JSON and, with the suffix .prom instead, for Prometheus")
    add("--log_format", choices=LOG_FORMATS, default="text",
        help="json: all output is one JSON object a line, on standard error (default: %(default)s)")
    add("--dry_run", action="store_true", help="check everything, print the plan and stop")
    return group.add_argument
# fmt: on


class _Extend(argparse.Action):
    """Values of an option that is given several times; the default is not among them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = getattr(namespace, f"_{self.dest}", [])
        setattr(namespace, f"_{self.dest}", [*given, *values])
        setattr(namespace, self.dest, [*given, *values])


def parse(arguments: list[str]) -> tuple[ScoreConfig, list[str]]:
    """Parse and validate; what is not ours is returned for Beam.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    parser = score_parser()
    options, rest = parse_known(parser, arguments)
    endless = streaming_options(options, parser)
    config = score_config(options)
    if isinstance(endless, WatchOptions):
        return dataclasses.replace(config, watch=endless), rest
    if isinstance(endless, StreamOptions):
        # A row's window is told by its time, so it is always there.
        score = dataclasses.replace(config.score, timestamp=True)
        if endless.model_watch is not None and "fingerprint" not in score.outputs:
            score = dataclasses.replace(score, outputs=(*score.outputs, "fingerprint"))
        config = dataclasses.replace(config, stream=endless, score=score)
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
    return options, rest


def score_config(options: argparse.Namespace) -> ScoreConfig:
    """Validate the shared options.

    Raises:
        InputError: naming the option at fault and its valid values.
    """
    fields, keep_without_type = _field_mapping(options)
    if not 0 <= options.max_dead_fraction <= 1:
        raise InputError(f"--max_dead_fraction must lie between 0 and 1, not {options.max_dead_fraction}")
    if options.rows_per_file < 1:
        raise InputError(f"--rows_per_file must be at least 1, not {options.rows_per_file}")
    if options.direct_num_workers < 0:
        raise InputError(f"--direct_num_workers must be at least 0, not {options.direct_num_workers}")
    output = plain(options.output)
    if set(output) & set("*?["):
        raise InputError(f"--output {options.output} holds one of the glob characters *?[; give another name")
    cores = available_cores()
    workers = options.direct_num_workers or cores
    local = options.runner == LOCAL_RUNNER
    return ScoreConfig(
        inputs=tuple(absolute(pattern) for pattern in options.input),
        output=output.rstrip("/") or "/",
        format=options.format,
        fields=fields,
        keep_without_type=keep_without_type,
        score=ScoreOptions(
            model=options.model,
            precision=options.precision,
            outputs=tuple(_names(options.outputs)),
            top_k=options.top_k,
            embedding_type=options.embedding_type,
            parquet_encoding=options.parquet_encoding,
            keep=fields.keep,
            cache_mb=options.cache_mb,
            timestamp=fields.timestamp is not None,
            partitioned=bool(fields.partition_by),
            # One thread a core in all: more threads than cores slow each other down.
            threads=max(1, cores // workers) if options.threads is None and local else options.threads,
        ),
        limits=BatchLimits(max_rows=options.max_batch_rows, max_tokens=options.max_batch_tokens),
        rows_per_file=options.rows_per_file,
        max_dead_fraction=options.max_dead_fraction,
        if_exists=getattr(options, "if_exists", "append"),
        resume=getattr(options, "resume", True),
        dry_run=options.dry_run,
        progress=options.progress,
        report=plain(options.report) if options.report else options.report,
        runner=options.runner,
        local_workers=workers,
        stall_timeout=duration("--stall_timeout", options.stall_timeout),
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _field_mapping(options: argparse.Namespace) -> tuple[FieldMapping, tuple[str, ...]]:
    kept = [name.partition(":") for name in _names(options.keep_fields)]
    fields = FieldMapping(
        text=tuple(_names(options.text_field)),
        id=tuple(_names(options.id_field)),
        timestamp=options.timestamp_field,
        keep=tuple(KeptField(name, kind or "string") for name, _, kind in kept),
        partition_by=tuple(_names(getattr(options, "partition_by", ""))),
    )
    return fields, tuple(name for name, _, kind in kept if not kind)
