"""The data set in an output directory: what its manifests together say is live, staged or retired.

>>> import duckdb
>>> duckdb.read_parquet(live_files("scored"), hive_partitioning=True)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipelines import manifest
from pipelines.manifest import DataFile, Input, Manifest
from transforms import storage
from transforms.write import DEAD_LETTERS, TEMPORARY

LIVE = "_live.jsonl"
"""A list of the live files for readers without this package; a snapshot, at most one commit behind the manifests."""


def live_files(output: str) -> list[str]:
    """Paths of the Parquet files that are results, sorted: what to give to a reader.

    Raises:
        InputError: if a manifest cannot be read.
    """
    return [f"{output}/{path}" for path in sorted(DataSet.read(output).live.files)]


@dataclass
class Generation:
    """Inputs, and files scored from them with one model."""

    inputs: dict[str, Input] = field(default_factory=dict)
    files: dict[str, DataFile] = field(default_factory=dict)
    dead_letters: dict[str, DataFile] = field(default_factory=dict)
    fingerprint: str | None = None

    def apply(self, change: Manifest) -> None:
        for path in change.retired:
            self.files.pop(path, None)
            self.dead_letters.pop(path, None)
        for path in change.dropped:
            self.inputs.pop(path, None)
        self.inputs.update({entry.path: entry for entry in change.inputs})
        self.files.update({file.path: file for file in change.files})
        self.dead_letters.update({file.path: file for file in change.dead_letters})
        self.fingerprint = change.model.fingerprint

    @property
    def all_files(self) -> dict[str, DataFile]:
        return self.files | self.dead_letters


class DataSet:
    """The state that a sequence of manifests leads to."""

    def __init__(self, output: str, manifests: Iterable[Manifest] = ()) -> None:
        self.output = output
        self.manifests: list[Manifest] = []
        self.generations: dict[int, Generation] = {}
        self.live_generation = 0
        self.retired: dict[str, str] = {}
        """Files that are results no longer and may not be deleted yet, with the time of their retirement."""
        for change in manifests:
            self.apply(change)

    @classmethod
    def read(cls, output: str) -> DataSet:
        """Read all manifests of an output directory.

        Raises:
            InputError: if one cannot be read.
        """
        output = output.rstrip("/") or "/"
        return cls(output, manifest.read_all(output))

    def apply(self, change: Manifest) -> None:
        """Take up the next manifest."""
        self.manifests.append(change)
        if change.checkpoint:
            self.generations = {}
            self.live_generation = change.generation
        generation = self.generations.setdefault(change.generation, Generation())
        generation.apply(change)
        self.retired.update(dict.fromkeys(change.retired, change.finished))
        if change.promotes:
            self.live_generation = change.generation
            for number in [number for number in self.generations if number != change.generation]:
                self.retired.update(dict.fromkeys(self.generations.pop(number).all_files, change.finished))

    @property
    def live(self) -> Generation:
        """What readers see."""
        return self.generations.get(self.live_generation, Generation())

    @property
    def next_sequence(self) -> int:
        return self.manifests[-1].sequence + 1 if self.manifests else 1

    @property
    def identity(self) -> dict[str, Any] | None:
        """What its rows were made with; None for an empty one."""
        return self.manifests[-1].identity if self.manifests else None

    @property
    def known_files(self) -> set[str]:
        """Paths of all files that manifests name, live or not."""
        known = set(self.retired)
        for generation in self.generations.values():
            known |= generation.all_files.keys()
        return known

    def commit(self, change: Manifest) -> None:
        """Publish a manifest, and take it up.

        Raises:
            OSError: if it cannot be written.
        """
        manifest.write(self.output, change)
        self.apply(change)

    def is_committed(self, run_id: str) -> bool:
        """Whether a manifest of a run is there, so that its files are results whatever came after.

        Raises:
            OSError: if that cannot be known.
        """
        return bool(storage.match([f"{self.output}/{manifest.DIRECTORY}/*-{run_id}*.json"]))

    def purge(self, before: datetime | None = None) -> list[str]:
        """Delete files that are results no longer, and manifests that a later checkpoint makes superfluous.

        Args:
            before: only what was retired before; None for all.

        Returns:
            What was deleted, relative to the output.

        Raises:
            OSError: if it cannot be done.
        """

        def is_due(time: str) -> bool:
            return before is None or datetime.fromisoformat(time) < before

        live = self.live.all_files
        paths = [path for path, time in self.retired.items() if is_due(time) and path not in live]
        checkpoints = [change for change in self.manifests if change.checkpoint]
        if checkpoints and is_due(checkpoints[-1].finished):
            last = checkpoints[-1].name
            prefix = f"{self.output}/{manifest.DIRECTORY}/"
            names = [file.path.rpartition("/")[2] for file in storage.match([f"{prefix}*.json"])]
            paths += [f"{manifest.DIRECTORY}/{name}" for name in names if name < last]
        existing = [path for path in paths if storage.exists(f"{self.output}/{path}")]
        storage.delete(f"{self.output}/{path}" for path in existing)
        return existing

    def publish_list(self, run_id: str) -> None:
        """Write the list of live files: one JSON object a line with path (relative), rows and bytes."""
        lines = [
            json.dumps({"path": file.path, "rows": file.rows, "bytes": file.bytes}, ensure_ascii=False)
            for _, file in sorted(self.live.files.items())
        ]
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        path = f"{self.output}/{LIVE}"
        if not storage.exists(path) or storage.read_bytes(path) != content:
            storage.publish(path, content, f"{self.output}/{TEMPORARY}/{run_id}/{LIVE}")
            remove_temporary(self.output, run_id)


def unlisted_files(data_set: DataSet) -> dict[str, float | None]:
    """Files below an output that are named as results or as temporary ones, and that no manifest names.

    Returns:
        Path relative to the output -> seconds since 1970 of its last change, where known.
    """
    prefix = f"{data_set.output}/"
    known = data_set.known_files
    unlisted = {}
    for file in storage.match([f"{data_set.output}/**"]):
        path = file.path[file.path.find(prefix) + len(prefix) :]
        first = path.partition("/")[0]
        is_part = path.rpartition("/")[2].startswith("part-") and (not first.startswith("_") or first == DEAD_LETTERS)
        if (is_part or first == TEMPORARY) and path not in known:
            unlisted[path] = file.last_updated_in_seconds or None
    return unlisted


def recover(data_set: DataSet) -> None:
    """Delete what runs that died have left; to be called by the holder of the lease.

    Raises:
        OSError: if it cannot be done.
    """
    runs = list(manifest.names_of_runs(data_set.output))
    known = data_set.known_files
    for run_id in runs:
        paths = [path for path in files_of_run(data_set.output, run_id) if path not in known]
        storage.delete(f"{data_set.output}/{path}" for path in paths)
        remove_temporary(data_set.output, run_id)


def files_of_run(output: str, run_id: str) -> list[str]:
    """Paths of all files that a run has put in place, listed or not."""
    prefix = f"{output}/"
    return [
        file.path[file.path.find(prefix) + len(prefix) :]
        for file in storage.match([f"{output}/**"])
        if file.path.rpartition("/")[2].startswith(f"part-{run_id}-")
    ]


def discard_run(output: str, run_id: str) -> None:
    """Delete all files of a run that was not committed, in place or under temporary names.

    Raises:
        OSError: if it cannot be done.
    """
    storage.delete(f"{output}/{path}" for path in files_of_run(output, run_id))
    remove_temporary(output, run_id)


def remove_temporary(output: str, run_id: str) -> None:
    """Delete what a run has left under temporary names.

    Raises:
        OSError: if it cannot be done.
    """
    storage.delete_directory(f"{output}/{TEMPORARY}/{run_id}")
    storage.remove_empty(f"{output}/{TEMPORARY}")
