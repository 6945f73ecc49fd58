"""python -m pipelines.compact: merges small files of a data set into fewer, and its manifests into one."""

from __future__ import annotations

import argparse

from pipelines.cli.exits import DONE, end, run_command
from pipelines.cli.logs import LOG_FORMATS, announce
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.errors import InputError


# fmt: off
def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.compact",
        description="Merge the small files of each directory of a data set, and all manifests into one. Values are "
        "copied bit by bit. Readers see the old files until one commit replaces them all.",
        epilog="Exit status: 0 done or nothing to do, 1 failed, 2 wrong options, 4 another run is writing there.",
        allow_abbrev=False,
    )
    result.add_argument("output", metavar="DIR", help="the directory, on any filesystem")
    result.add_argument("--target_mb", type=int, default=256, metavar="MB",
        help="size that merged files should have; files of at least half of it are left alone (default: %(default)s)")
    result.add_argument("--dry_run", action="store_true", help="say what would be merged, and stop")
    result.add_argument("--log_format", choices=LOG_FORMATS, default="text",
        help="json: all output is one JSON object a line, on standard error (default: %(default)s)")
    return result
# fmt: on


def main(arguments: list[str]) -> int:
    """Compact. Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.target_mb < 1:
        raise InputError(f"--target_mb must be at least 1, not {options.target_mb}")

    from pipelines.cli.beam_import import import_beam

    import_beam(is_local=True)

    from pipelines.data_set.compaction import compact
    from pipelines.data_set.lock import Lock
    from pipelines.runs.progress import announce_taken_in
    from transforms.input.formats import absolute_directory

    output = absolute_directory(options.output)
    with Lock(output):
        announce("compacted", compact(output, options.target_mb << 20, options.dry_run, announce_taken_in))
    return DONE


if __name__ == "__main__":
    end(run_command(main))
