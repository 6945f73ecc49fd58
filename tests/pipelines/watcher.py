"""Watches a directory in a process of its own: `python -m tests.pipelines.watcher DIR SECONDS OPTION...`."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.command_line import end, run_command
from pipelines.options import parse


class Watch(NamedTuple):
    """See `pipelines.watch.Watch`."""

    directory: str
    poll: float


def main(arguments: list[str]) -> int:
    """Do what the module says."""
    from pipelines import watch

    directory, poll, *options = arguments
    return watch.run(*parse(options), Watch(directory, float(poll)))


if __name__ == "__main__":
    end(run_command(main))
