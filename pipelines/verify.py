"""python -m pipelines.verify: proves that a data set is whole, or says what is wrong with it."""

from __future__ import annotations

import argparse
import logging

from pipelines.cli.exits import COULD_NOT_TELL, DONE, FAILED, end, run_command
from pipelines.cli.logs import LOG_FORMATS, announce
from pipelines.cli.parsing import OneLineParser, seconds
from torchmoji_core.errors import RunError, first_line


# fmt: off
def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.verify",
        description="Check a directory that pipelines.score or pipelines.annotate has written: every file that its "
        "manifests list is there and unchanged, ids are unique, counts add up, and nothing else lies there.",
        epilog="Exit status: 0 sound, 1 not sound, 2 wrong options, 4 (with --clean) another run is writing there, 5 a "
        "store or disk failed, so that it could not tell: try again.",
        allow_abbrev=False,
    )
    result.add_argument("output", metavar="DIR", help="the directory, on any filesystem")
    result.add_argument("--duplicate_ids", choices=("fail", "allow"), default="fail",
        help="allow, where the inputs themselves hold ids more than once (default: %(default)s)")
    result.add_argument("--clean", action="store_true",
        help="first delete what no manifest lists, and what is retired, where it is older than --older_than")
    result.add_argument("--older_than", type=seconds, default="1d", metavar="TIME",
        help="readers that began before a commit have so long to finish (default: %(default)s)")
    result.add_argument("--memory_mb", type=int, default=512, metavar="MB",
        help="for comparing ids; more of them go through temporary files (default: %(default)s)")
    result.add_argument("--log_format", choices=LOG_FORMATS, default="text",
        help="json: all output is one JSON object a line, on standard error (default: %(default)s)")
    return result
# fmt: on


def main(arguments: list[str]) -> int:
    """Verify, after a vacuum if asked to. Returns the exit status."""
    options = parser().parse_args(arguments)

    from pipelines.cli.beam_import import import_beam

    import_beam(is_local=True)

    from pipelines.data_set.vacuum import vacuum
    from pipelines.data_set.verification import verify
    from pipelines.runs.progress import announce_taken_in
    from transforms.input.formats import absolute_directory

    output = absolute_directory(options.output)
    try:
        if options.clean:
            deleted = vacuum(output, options.older_than, announce_taken_in)
            announce("cleaned", f"deleted     {len(deleted):,} file(s)", deleted=len(deleted))
        findings = verify(output, options.duplicate_ids == "fail", options.memory_mb)
    except (OSError, RunError) as error:
        announce("could_not_tell", f"could not tell: {first_line(error)}", level=logging.ERROR)
        return COULD_NOT_TELL
    announce(
        "verified", findings.describe(), sound=not (findings.problems or findings.untold), problems=findings.problems,
        untold=findings.untold, rows=findings.rows, files=findings.files, waiting=findings.waiting,
    )  # fmt: skip
    return FAILED if findings.problems else COULD_NOT_TELL if findings.untold else DONE


if __name__ == "__main__":
    end(run_command(main))
