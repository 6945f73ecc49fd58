"""WriteCompletion: a bounded run says, in a file, that all of its work is done, and what it has read.

Of a run that nobody waits for, nobody can ask the runner's counters. What is said here comes through the graph itself,
so a bundle that is done twice counts once, on every runner.

AwaitFiles: the same end of a graph, where somebody waits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from transforms.output.commit import WrittenFile
from transforms.records import PartCount
from transforms.storage import files as storage


class WriteCompletion(beam.PTransform):
    """Write a JSON file once every file of a run is in place: path of each input -> [parts left, read, notices]."""

    def __init__(self, path: str, written: Iterable[beam.PCollection[WrittenFile]]) -> None:
        """Args:
        path: of the file to write.
        written: what the run has put in place.
        """
        super().__init__()
        self._path, self._written = path, list(written)

    def expand(self, counts: tuple[beam.PCollection[PartCount], ...]) -> beam.PCollection[None]:
        summed = (
            counts
            | "Counts" >> beam.Flatten()
            | "Key" >> beam.Map(_by_path).with_output_types(tuple[str, tuple[int, int, int]])
            | "Sum" >> beam.CombinePerKey(_sum).with_output_types(tuple[str, tuple[int, int, int]])
        )
        # Nothing of these comes through, but that there will be no more of them.
        files = [
            each
            | f"Files{number}" >> beam.FlatMap(_nothing).with_output_types(tuple[str, tuple[int, int, int]])
            | f"AllOf{number}" >> beam.WindowInto(GlobalWindows())
            for number, each in enumerate(self._written)
        ]
        # One element that is always there: without any, a group of nothing would never come.
        begin = counts[0].pipeline | "Begin" >> beam.Create([("", (0, 0, 0))], reshuffle=False)
        return (
            (summed, *files, begin)
            | "All" >> beam.Flatten()
            | "One" >> beam.Map(_of_one_key).with_output_types(tuple[int, tuple[str, tuple[int, int, int]]])
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write, self._path)
        )


class AwaitFiles(beam.PTransform):
    """Group what comes of putting files in place, so that the runner waits for it.

    Beam's embedded job server notices the death of a worker only while it waits for what a bundle gives on (Beam 2.77).
    """

    def expand(self, written: tuple[beam.PCollection[WrittenFile], ...]) -> beam.PCollection[Any]:
        names = [
            each | f"Name{number}" >> beam.Map(_name).with_output_types(tuple[int, str])
            for number, each in enumerate(written)
        ]
        return (
            names
            | "All" >> beam.Flatten()
            | "Window" >> beam.WindowInto(GlobalWindows())
            | "Group" >> beam.GroupByKey()
        )


def _name(file: WrittenFile) -> tuple[int, str]:
    return 0, file.final


def _by_path(count: PartCount) -> tuple[str, tuple[int, int, int]]:
    return count.path, (count.parts, count.read, count.notices)


def _sum(counts: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    parts = read = notices = 0
    for each in counts:
        parts, read, notices = parts + each[0], read + each[1], notices + each[2]
    return parts, read, notices


def _nothing(_: WrittenFile) -> Iterator[tuple[str, tuple[int, int, int]]]:
    yield from ()


def _of_one_key(item: tuple[str, tuple[int, int, int]]) -> tuple[int, tuple[str, tuple[int, int, int]]]:
    return 0, item


def _write(group: tuple[int, Iterable[tuple[str, tuple[int, int, int]]]], path: str) -> None:
    inputs: dict[str, Any] = {name: counts for name, counts in group[1] if name}
    storage.publish(path, json.dumps({"inputs": inputs}).encode(), f"{path}.tmp")
