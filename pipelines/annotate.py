"""python -m pipelines.annotate: scores what is new in a growing corpus since the last run, and only that."""

from __future__ import annotations

from pipelines.annotate_options import parse
from pipelines.command_line import end, run_command


def main(arguments: list[str]) -> int:
    """Parse and run. Returns the exit status."""
    config, rest = parse(arguments)

    from pipelines.annotation import run  # Beam and torch, which --help can do without

    return run(config, rest, "annotate")


if __name__ == "__main__":
    end(run_command(main))
