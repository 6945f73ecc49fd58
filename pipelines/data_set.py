"""The data set in an output directory: what its manifests together say is live, staged or retired.

>>> import duckdb
>>> duckdb.read_parquet(live_files("scored"), hive_partitioning=True)  # or by the Delta log, see `delta_log`
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines import journal, manifest
from pipelines.delta_log import DeltaLog
from pipelines.journal import QUIET_SECONDS, Entry, Journal, Stream
from pipelines.lease import Lease, this_process
from pipelines.manifest import DataFile, Input, Manifest
from torchmoji_core.errors import InputError
from torchmoji_core.files import name_as_text
from torchmoji_core.inference.scores import valid_unicode
from torchmoji_core.locations import plain
from transforms import metrics, storage
from transforms.commit import DEAD_LETTERS, JOURNAL, TEMPORARY, journal_directory

RETIRED_SECONDS = 86_400.0
"""How long a file stays that is a result no longer: readers that began before have so long to finish."""
RUN = "run.json"
_TRIES = 3
_LOGGER = logging.getLogger(__name__)
FORMER_LIST = "_live.jsonl"
"""The list of live files that earlier versions wrote."""


def live_files(output: str) -> list[str]:
    """Paths of the Parquet files that are results, sorted: what to give to a reader.

    Raises:
        InputError: if a manifest cannot be read.
    """
    data_set = DataSet.read(output)
    return [f"{data_set.output}/{path}" for path in sorted(data_set.live.files)]


@dataclass
class Generation:
    """Inputs, and files scored from them with one model."""

    inputs: dict[str, Input] = field(default_factory=dict)
    files: dict[str, DataFile] = field(default_factory=dict)
    dead_letters: dict[str, DataFile] = field(default_factory=dict)
    fingerprint: str | None = None
    _sources: set[str] | None = None
    """Of all files, once they have been asked for."""

    def apply(self, change: Manifest) -> None:
        self._sources = None
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

    def source(self, path: str) -> str:
        """What rows of an input have as their source.

        Names that are no UTF-8 had U+FFFD for what is not, in what was written before they had a text of their own.
        """
        text = name_as_text(path)
        if text == path:
            return text
        if self._sources is None:
            self._sources = {source for file in self.all_files.values() for source in file.sources}
        former = valid_unicode(path)
        return former if former in self._sources and text not in self._sources else text

    def entangled(self, paths: Collection[str]) -> set[str]:
        """Other inputs whose rows cannot be told from those of some, since they have the same source."""
        sources = {self.source(path) for path in paths if name_as_text(path) != path or "\ufffd" in path}
        if not sources:
            return set()
        return {path for path in self.inputs.keys() - set(paths) if self.source(path) in sources}


class DataSet:
    """The state that a sequence of manifests leads to."""

    def __init__(self, output: str, manifests: Iterable[Manifest] = ()) -> None:
        self.output = output
        self._log = DeltaLog(output)
        self._begin(manifests)

    def _begin(self, manifests: Iterable[Manifest]) -> None:
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
            InputError, RunError: if one cannot be read.
        """
        output = plain(output).rstrip("/") or "/"
        return cls(output, _read_all(output))

    def refresh(self) -> None:
        """Take up what others have committed since; only new manifests are read.

        Raises:
            InputError: if one cannot be read.
        """
        known = [change.name for change in self.manifests]
        names = manifest.names(self.output)
        if names[: len(known)] == known:
            for change in manifest.read_all(self.output, names[len(known) :]):
                self.apply(change)
        else:
            self._begin(_read_all(self.output))

    def apply(self, change: Manifest) -> None:
        """Take up the next manifest."""
        self.manifests.append(change)
        if change.checkpoint:
            self.generations = {}
            self.live_generation = change.generation
        generation = self.generations.setdefault(change.generation, Generation())
        generation.apply(change)
        self._retire(change.retired, change)
        if change.promotes:
            self.live_generation = change.generation
            for number in [number for number in self.generations if number != change.generation]:
                self._retire(self.generations.pop(number).all_files, change)

    def _retire(self, paths: Iterable[str], change: Manifest) -> None:
        for path in paths:
            # Who retires a file again does not prolong its life.
            self.retired.setdefault(path, change.retired_since.get(path, change.finished))

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
        """Publish a manifest, and take it up. On return it is on the disk, and so are the files that it names.

        Raises:
            OSError: if it cannot be written.
        """
        # Contents are there since each file was closed. Those of other runs were brought there by them.
        new = [file.path for file in (*change.files, *change.dead_letters) if _is_of_run(file.path, [change.run_id])]
        storage.sync(above for path in new for above in storage.directories(f"{self.output}/{path}", self.output))
        manifest.write(self.output, change)
        self.apply(change)

    def as_checkpoint(self, change: Manifest) -> Manifest:
        """A commit whose lists are to be the whole data set: what it does not keep is retired.

        Raises:
            OSError: if the output cannot be listed.
        """
        kept = {file.path for file in (*change.files, *change.dead_letters)}
        # Not those that are deleted already: their names would be carried along for ever.
        retired = sorted((self.known_files - kept) & result_files(self.output).keys())
        since = {path: self.retired[path] for path in retired if path in self.retired}
        return dataclasses.replace(change, retired=tuple(retired), retired_since=since, checkpoint=True)

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

        kept = {path for generation in self.generations.values() for path in generation.all_files}
        due = [
            path
            for path, time in self.retired.items()
            if path not in kept and (before is None or datetime.fromisoformat(time) < before)
        ]
        there = result_files(self.output).keys() if due else ()
        paths = [path for path in due if path in there]
        checkpoints = [change.name for change in self.manifests if change.checkpoint]
        if checkpoints:
            names = manifest.superseded(self.output, before.timestamp() if before is not None else float("inf"))
            # What readers of now need is never superfluous, whatever the times of files say.
            paths += [f"{manifest.DIRECTORY}/{name}" for name in names if name < checkpoints[-1]]
        storage.delete(f"{self.output}/{path}" for path in paths)
        return paths

    def publish(self) -> None:
        """Bring the Delta log up to date, by which others read what is live; what fails is a warning."""
        if self.manifests:
            self._log.publish(self.live.files, self.manifests[-1].sequence)


def _read_all(output: str) -> list[Manifest]:
    """All manifests that matter; listed anew if one is deleted meanwhile, whose place a checkpoint has taken."""
    for _ in range(_TRIES):
        try:
            return manifest.read_all(output)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return manifest.read_all(output)


def adopt(data_set: DataSet, lease: Lease | None = None, found: Journal | None = None) -> list[Manifest]:
    """List what waits in the journal in manifests, one for each stream and model; to be called by the lease's holder.

    A file that is listed already, because somebody died before deleting its record, is not listed again.

    Args:
        data_set: what the output holds now.
        lease: looked at before each commit, by those who may have been suspended since they took it.
        found: the journal, if it has been read.

    Returns:
        The manifests that were committed.

    Raises:
        InputError: if the journal cannot be read.
        RunError: if the lease was lost.
        OSError: if something cannot be written; then what is not listed waits on.
    """
    found = found or journal.read(data_set.output)
    known = data_set.known_files if found.entries else set()
    committed = []
    for stream in found.streams.values():
        new = [entry for entry in found.entries if entry.run_id == stream.run_id and entry.file.path not in known]
        for entries in _by_model(new):
            if lease is not None:
                lease.check()
            change = _adoption(data_set, stream, entries)
            data_set.commit(change)
            remove_temporary(data_set.output, change.run_id)
            committed.append(change)
    storage.delete(entry.record for entry in found.entries)
    return committed


def _by_model(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Dead letters are of no model, so they are with the last one's."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    dead = []
    for entry in entries:
        if entry.is_dead_letters:
            dead.append(entry)
        else:
            groups[entry.file.fingerprint].append(entry)
    if dead:
        groups[next(reversed(groups), "")].extend(dead)
    return list(groups.values())


def _adoption(data_set: DataSet, stream: Stream, entries: Sequence[Entry]) -> Manifest:
    files = tuple(entry.file for entry in entries if not entry.is_dead_letters)
    dead_letters = tuple(entry.file for entry in entries if entry.is_dead_letters)
    rows, dead = sum(file.rows for file in files), sum(file.rows for file in dead_letters)
    empty = sum(entry.empty for entry in entries)
    return Manifest(
        sequence=data_set.next_sequence,
        # Not the stream's: of two that commit at once, because one lost its lease, neither must replace the other's.
        run_id=uuid.uuid4().hex[:12],
        kind="stream",
        status="done",
        started=stream.started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=stream.code_version,
        identity=stream.identity,
        model=next((entry.model for entry in entries if entry.model is not None), stream.model),
        files=files,
        dead_letters=dead_letters,
        generation=data_set.live_generation,
        counts={
            metrics.READ: rows + dead,
            metrics.SCORED: rows - empty,
            metrics.EMPTY: empty,
            metrics.DEAD: dead,
            metrics.ROWS_WRITTEN: rows,
            metrics.FILES_WRITTEN: len(entries),
            metrics.BYTES_WRITTEN: sum(entry.file.bytes for entry in entries),
        },
    )


def unlisted_files(data_set: DataSet) -> dict[str, float | None]:
    """Files below an output that are named as results or as temporary ones, and that no manifest names.

    Returns:
        Path relative to the output -> seconds since 1970 of its last change, where known.
    """
    known = data_set.known_files
    return {path: changed for path, changed in _files(data_set.output, temporary=True).items() if path not in known}


def result_files(output: str) -> dict[str, float | None]:
    """Files below an output that are named as results, listed or not; values as of `unlisted_files`."""
    return _files(output, temporary=False)


def written_files(output: str) -> dict[str, float | None]:
    """Files below an output that are named as results or as temporary ones; values as of `unlisted_files`."""
    return _files(output, temporary=True)


def _files(output: str, temporary: bool) -> dict[str, float | None]:
    prefix = f"{output}/"
    files = {}
    for file in storage.match([f"{output}/**"]):
        path = file.path[file.path.find(prefix) + len(prefix) :]
        first = path.partition("/")[0]
        is_part = path.rpartition("/")[2].startswith("part-") and (not first.startswith("_") or first == DEAD_LETTERS)
        if is_part or (temporary and first == TEMPORARY):
            files[path] = file.last_updated_in_seconds or None
    return files


def tidy(data_set: DataSet) -> None:
    """Delete what was retired a day ago, as every command does that commits; what cannot be deleted is left for later.

    To be called by the holder of the lease.
    """
    try:
        data_set.purge(datetime.now(UTC) - timedelta(seconds=RETIRED_SECONDS))
    except OSError as error:
        _LOGGER.warning("retired files of %s could not be deleted: %s", data_set.output, error)


def announce_run(output: str, run_id: str) -> None:
    """Say that a run is going to write there, so that whoever comes after it finds what it has left if it dies.

    Temporary files would tell as much where there are any; in object stores files have their final names at once.

    Raises:
        OSError: if it cannot be written.
    """
    path = f"{output}/{TEMPORARY}/{run_id}/{RUN}"
    storage.publish(path, json.dumps(this_process()).encode(), f"{path}.tmp")


def recover(data_set: DataSet, lease: Lease | None = None) -> list[Manifest]:
    """Adopt what streams have put in place, and delete what runs that died have left.

    To be called by the holder of the lease. Of a stream that may be going on, only temporary files are deleted that it
    has not touched for a day.

    Args:
        data_set: what the output holds now.
        lease: as of `adopt`.

    Returns:
        The manifests that were committed.

    Raises:
        InputError, RunError, OSError: as `adopt`.
    """
    output = data_set.output
    found = journal.read(output)
    dead = {*manifest.names_of_runs(output), *found.ended} - found.going_on
    # Before anything is written, for which there may be no room yet.
    if dead:
        waiting = {entry.file.path for entry in found.entries}
        paths = [path for path in unlisted_files(data_set) if _is_of_run(path, dead) and path not in waiting]
        storage.delete(f"{output}/{path}" for path in paths)
    for run_id in dead:
        remove_temporary(output, run_id)
    committed = adopt(data_set, lease, found)
    for run_id in found.going_on:
        old = [
            file.path
            for file in storage.match([f"{output}/{TEMPORARY}/{run_id}/**"])
            if file.last_updated_in_seconds and time.time() - file.last_updated_in_seconds > QUIET_SECONDS
        ]
        storage.delete(old)
    for run_id in found.ended:
        storage.delete_directory(journal_directory(output, run_id))
    storage.remove_empty(f"{output}/{JOURNAL}")
    storage.delete([f"{output}/{FORMER_LIST}"])
    data_set.publish()  # perhaps who committed last was killed before that
    return committed


def _is_of_run(path: str, runs: Collection[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(name.startswith(f"part-{run_id}-") for run_id in runs)


def files_of_run(output: str, run_id: str) -> list[str]:
    """Paths of all files that a run has put in place, listed or not."""
    return [path for path in result_files(output) if _is_of_run(path, [run_id])]


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
