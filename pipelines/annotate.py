"""python -m pipelines.annotate: scores what is new in a growing corpus since the last run, once or again and again."""

from __future__ import annotations

from pipelines.cli.annotate_options import parse
from pipelines.cli.exits import end, run_command


def main(arguments: list[str]) -> int:
    """Parse and run. Returns the exit status."""
    config, rest = parse(arguments)

    from pipelines.runs.beam_alone import import_beam

    import_beam(config.score.is_dataflow)
    from pipelines.runs import repetition

    return repetition.run(config, rest)


if __name__ == "__main__":
    end(run_command(main))
