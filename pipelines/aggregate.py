"""python -m pipelines.aggregate: features of each user and day, say, from a data set, and up to date with it."""

from __future__ import annotations

import argparse

from pipelines.cli.exits import DONE, end, run_command
from pipelines.cli.logs import LOG_FORMATS, announce
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.errors import InputError


# fmt: off
def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.aggregate",
        description="Make features of each entity and period from the live rows of a data set: counts, the mean of "
        "probabilities and embeddings, the share of each first class, entropy. The same command again makes anew only "
        "what the data set's changes concern.",
        epilog="Exit status: 0 done or nothing to do, 1 failed, 2 wrong options, 4 another run is writing there.",
        allow_abbrev=False,
    )
    result.add_argument("source", metavar="DIR", help="the data set, on any filesystem")
    result.add_argument("--by", required=True, metavar="COLUMNS",
        help="columns of the entity, and one of hour, day, week, month: user,day for example")
    result.add_argument("--output", required=True, metavar="FEATURES", help="directory for the features")
    result.add_argument("--log_format", choices=LOG_FORMATS, default="text",
        help="json: all output is one JSON object a line, on standard error (default: %(default)s)")
    return result
# fmt: on


def main(arguments: list[str]) -> int:
    """Aggregate. Returns the exit status."""
    options = parser().parse_args(arguments)

    from pipelines.data_set.aggregation import aggregate
    from pipelines.data_set.feature_record import Grouping
    from pipelines.data_set.lock import Lock
    from transforms.input.formats import absolute_directory

    by = Grouping.parse(options.by)
    source, output = absolute_directory(options.source), absolute_directory(options.output)
    if set(output) & set("*?["):
        raise InputError(f"--output {options.output}: its path holds one of the glob characters *?[; give another")
    if f"{output}/".startswith(f"{source}/"):
        raise InputError(f"--output {options.output} is in the data set itself; give a directory beside it")
    with Lock(output):
        done = aggregate(source, by, output)
    announce("aggregated", done.describe(), rows=done.rows, features=done.features, left_out=done.left_out)
    return DONE


if __name__ == "__main__":
    end(run_command(main))
