"""The data set in an output directory: what its manifests together say is live, staged or retired.

>>> import duckdb
>>> duckdb.read_parquet(live_files("scored"), hive_partitioning=True)  # or by the Delta log, see `delta_log`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipelines.data_set import coverage, manifest
from pipelines.data_set.coverage import Covers
from pipelines.data_set.delta_log import DeltaLog
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from torchmoji_core import __version__
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.files import name_as_text
from torchmoji_core.inference.scores import valid_unicode
from torchmoji_core.locations import plain
from transforms.output.commit import DEAD_LETTERS, TEMPORARY
from transforms.storage import files as storage

RUN = "run.json"
FENCE = "fence"
"""Kind of a manifest that changes nothing, see `recovery.delete_unlisted`."""
_TRIES = 3


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

    def _begin(self, manifests: Iterable[Manifest] = ()) -> None:
        self.manifests: list[Manifest] = []
        """From the last checkpoint on, without those that change nothing."""
        self._claims: list[tuple[int, str]] = []
        """Number and run of those and the others."""
        self.generations: dict[int, Generation] = {}
        self.live_generation = 0
        self.covers: Covers = {}
        """Which messages of sources its rows and dead letters are made from; see `coverage`."""
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
        data_set = cls(plain(output).rstrip("/") or "/")
        data_set.refresh()
        return data_set

    def refresh(self) -> None:
        """Take up what others have committed since; only new manifests are read.

        Raises:
            InputError, RunError: if one cannot be read.
        """
        for _ in range(_TRIES):
            try:
                return self._refresh()
            except InputError as error:
                # One that is deleted meanwhile, because a checkpoint has taken its place, is not listed again.
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        return self._refresh()

    def _refresh(self) -> None:
        names = manifest.names(self.output)
        known = [sequence for sequence, _ in self._claims]
        begun = self.manifests[0].sequence if self.manifests and self.manifests[0].checkpoint else 0
        listed = [name for name in names if manifest.number(name) >= begun]
        if [manifest.number(name) for name in listed[: len(known)]] == known:
            for change in manifest.read_all(self.output, listed[len(known) :]):
                self.apply(change)
        else:
            self._begin(manifest.read_all(self.output, names))

    def apply(self, change: Manifest) -> None:
        """Take up the next manifest."""
        if change.checkpoint:
            self._begin()
            self.live_generation = change.generation
        self._claims.append((change.sequence, change.run_id))
        if change.kind == FENCE:
            return
        self.manifests.append(change)
        if change.covers:
            self.covers = coverage.union(self.covers, change.covers)
        generation = self.generations.setdefault(change.generation, Generation())
        generation.apply(change)
        self._retire(change.retired, change)
        if change.promotes:
            self.live_generation = change.generation
            for number in [number for number in self.generations if number != change.generation]:
                self._retire(self.generations.pop(number).all_files, change)

    def _retire(self, paths: Iterable[str], change: Manifest) -> None:
        for path in paths:
            # A file that is retired again does not live longer.
            self.retired.setdefault(path, change.retired_since.get(path, change.finished))

    @property
    def live(self) -> Generation:
        """What readers see."""
        return self.generations.get(self.live_generation, Generation())

    @property
    def next_sequence(self) -> int:
        return self._claims[-1][0] + 1 if self._claims else 1

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

    def next_manifest(self, kind: str, **fields: Any) -> Manifest:
        """The manifest that follows this state. All manifests are made here, by functions that are given to `commit`.

        Args:
            kind: as of `Manifest`.
            **fields: other fields. Those that are missing are what the data set has now, of a run that begins and ends
                now, and changes nothing.
        """
        last = self.manifests[-1].model if self.manifests else Model("", "", "")
        values: dict[str, Any] = {
            "sequence": self.next_sequence,
            "run_id": manifest.new_run_id(),
            "kind": kind,
            "status": "done",
            "started": manifest.now(),
            "finished": manifest.now(),
            "code_version": __version__,
            "identity": self.identity or {},
            "model": dataclasses.replace(last, fingerprint=self.live.fingerprint or last.fingerprint),
            "generation": self.live_generation,
        }
        return Manifest(**values | fields)

    def commit(self, decide: Callable[[DataSet], Manifest | None]) -> Manifest | None:
        """Publish a change as the next manifest, and take it up. On return it is on the disk, and so are its files.

        If the manifest's number is taken, the decision was made for a state that has changed. Then what others have
        committed is read, and it is decided again. So it does not matter how long a command is suspended, and where.

            A and B have read 16, and each decides what 17 shall be
            A creates 00000017.json; B finds it there, reads it, and decides what 18 shall be

        Args:
            decide: gives, for the state that is there, the change to commit next; None if nothing is left to be done.
                It is called again, with the new state, whenever another command commits first. It raises if it cannot
                work with that state.

        Returns:
            What was committed; None if nothing was left to be done.

        Raises:
            InputError, RunError: if a manifest cannot be read, and what `decide` raises.
            RunError: if another command has taken the run for dead.
            OSError: if it cannot be written. It may be there nevertheless.
        """
        while True:
            self.refresh()
            change = decide(self)
            if change is None:
                return None
            own = {file.path for file in (*change.files, *change.dead_letters) if run_of(file.path) == change.run_id}
            if own and not storage.exists(registration(self.output, change.run_id)):
                raise RunError(
                    f"another command has taken this run for dead, and writes to {self.output}; nothing more was "
                    "committed, so run again"
                )
            # Contents are there since each file was closed. Those of other runs were brought there by them.
            storage.sync(above for path in own for above in storage.directories(f"{self.output}/{path}", self.output))
            if not manifest.claim(self.output, change):
                continue
            self.apply(change)
            # The number of a superfluous manifest that was deleted is free again, and must not be used.
            self.refresh()
            if (change.sequence, change.run_id) in self._claims or own & self.known_files:
                return change

    def as_checkpoint(self, change: Manifest) -> Manifest:
        """A commit whose lists are the whole data set: files that are not in them are retired.

        Raises:
            OSError: if the output cannot be listed.
        """
        kept = {file.path for file in (*change.files, *change.dead_letters)}
        # Not those that are deleted already: their names would be carried along for ever.
        retired = sorted((self.known_files - kept) & written_files(self.output, temporary=False).keys())
        since = {path: self.retired[path] for path in retired if path in self.retired}
        return dataclasses.replace(change, retired=tuple(retired), retired_since=since, checkpoint=True)

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
        there = written_files(self.output, temporary=False).keys() if due else ()
        paths = [path for path in due if path in there]
        if self.manifests and self.manifests[0].checkpoint:
            last = self.manifests[0].sequence
            names = manifest.superseded(self.output, last, before.timestamp() if before is not None else None)
            paths += [f"{manifest.DIRECTORY}/{name}" for name in names]
        storage.delete(f"{self.output}/{path}" for path in paths)
        return paths

    def publish(self) -> None:
        """Bring the Delta log up to date, by which others read what is live; a failure is a warning."""
        if self.manifests:
            self._log.publish(self.live.files, self.manifests[-1].sequence)


def unlisted_files(data_set: DataSet) -> dict[str, float | None]:
    """Files below an output that are named as results or as temporary ones, and that no manifest names.

    Returns:
        Path relative to the output -> seconds since 1970 of its last change, where known.
    """
    known = data_set.known_files
    return {path: changed for path, changed in written_files(data_set.output).items() if path not in known}


def written_files(output: str, temporary: bool = True) -> dict[str, float | None]:
    """Files below an output that are named as results, listed or not, and temporary ones; as of `unlisted_files`."""
    prefix = f"{output}/"
    files = {}
    for file in storage.match([f"{output}/**"]):
        path = file.path[file.path.find(prefix) + len(prefix) :]
        first = path.partition("/")[0]
        is_part = path.rpartition("/")[2].startswith("part-") and (not first.startswith("_") or first == DEAD_LETTERS)
        if is_part or (temporary and first == TEMPORARY):
            files[path] = file.last_updated_in_seconds or None
    return files


def registration(output: str, run_id: str) -> str:
    """The file that says that a run may write and commit."""
    return f"{output}/{TEMPORARY}/{run_id}/{RUN}"


def run_of(path: str) -> str:
    """The run that has written a file, or was to: part-<run>-<unique>.parquet."""
    return path.rpartition("/")[2].removeprefix("part-").rpartition("-")[0]
