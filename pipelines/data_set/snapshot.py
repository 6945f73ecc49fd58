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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.data_set import journal, manifest
from pipelines.data_set.delta_log import DeltaLog
from pipelines.data_set.journal import QUIET_SECONDS, Entry, Stream
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from pipelines.data_set.processes import is_gone, this_process
from torchmoji_core import __version__
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.files import name_as_text
from torchmoji_core.inference.scores import valid_unicode
from torchmoji_core.locations import plain
from transforms import metrics
from transforms.output.commit import DEAD_LETTERS, JOURNAL, TEMPORARY, journal_directory
from transforms.storage import files as storage

RETIRED_SECONDS = 86_400.0
"""How long a file stays that is a result no longer: readers that began before have so long to finish."""
RUN = "run.json"
FENCE = "fence"
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

    def _begin(self, manifests: Iterable[Manifest] = ()) -> None:
        self.manifests: list[Manifest] = []
        """From the last checkpoint on, without those that change nothing."""
        self._claims: list[tuple[int, str]] = []
        """Number and run of those and the others."""
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

    def commit(self, decide: Callable[[DataSet], Manifest | None]) -> Manifest | None:
        """Publish a change as the next manifest, and take it up. On return it is on the disk, and so are its files.

        Whoever finds the manifest's number taken has decided upon a state that is no more: it reads what others have
        committed meanwhile, and decides again. So it does not matter how long anybody is suspended, and where.

        Args:
            decide: makes of the state that is there the change that it calls for, as the next number; None if nothing
                is left to be done. It is called again, with another state, as often as another commits first, and
                raises if the state has become one that it cannot work upon.

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
            own = {file.path for file in (*change.files, *change.dead_letters) if _run_of(file.path) == change.run_id}
            if own and not storage.exists(announcement(self.output, change.run_id)):
                raise RunError(
                    f"another command has taken this run for dead, and writes to {self.output}; nothing more was "
                    "committed, so run again"
                )
            # Contents are there since each file was closed. Those of other runs were brought there by them.
            storage.sync(above for path in own for above in storage.directories(f"{self.output}/{path}", self.output))
            if not manifest.claim(self.output, change):
                continue
            self.apply(change)
            # The number of a manifest that was superfluous and is deleted is free again, and worth nothing.
            self.refresh()
            if (change.sequence, change.run_id) in self._claims or own & self.known_files:
                return change

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
        if self.manifests and self.manifests[0].checkpoint:
            last = self.manifests[0].sequence
            names = manifest.superseded(self.output, last, before.timestamp() if before is not None else None)
            paths += [f"{manifest.DIRECTORY}/{name}" for name in names]
        storage.delete(f"{self.output}/{path}" for path in paths)
        return paths

    def publish(self) -> None:
        """Bring the Delta log up to date, by which others read what is live; what fails is a warning."""
        if self.manifests:
            self._log.publish(self.live.files, self.manifests[-1].sequence)


def adopt(data_set: DataSet) -> list[Manifest]:
    """List what waits in the journal in manifests, one for each stream and model.

    Several may do so at once, whatever else is done to the data set meanwhile: each file is listed once.

    Args:
        data_set: what the output holds.

    Returns:
        The manifests that were committed.

    Raises:
        InputError: if the journal cannot be read.
        OSError: if something cannot be written; then what is not listed waits on.
    """
    committed: list[Manifest] = []
    while True:
        adoption = _Adoption()
        change = data_set.commit(adoption.decide)
        # Of what is listed, by whomever, no record is needed; it is deleted by whoever sees that.
        storage.delete(adoption.listed)
        if change is None:
            return committed
        remove_temporary(data_set.output, change.run_id)
        committed.append(change)
        if not adoption.more:
            return committed


class _Adoption:
    """Makes of a state the manifest that lists the next of the files that wait."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        """Records of files that are listed when it is committed."""
        self.more = False
        """Whether others wait."""

    def decide(self, data_set: DataSet) -> Manifest | None:
        # Read after the state: a record that is there now is of a file that is listed in it, or nowhere.
        found, known = journal.read(data_set.output), data_set.known_files
        self.listed = [entry.record for entry in found.entries if entry.file.path in known]
        groups = [
            (stream, entries)
            for stream in found.streams.values()
            for entries in _by_model(
                entry for entry in found.entries if entry.run_id == stream.run_id and entry.file.path not in known
            )
        ]
        self.more = len(groups) > 1
        if not groups:
            return None
        stream, entries = groups[0]
        self.listed += [entry.record for entry in entries]
        return _adoption(data_set, stream, entries)


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

    To be called by the holder of the lock.
    """
    try:
        data_set.purge(datetime.now(UTC) - timedelta(seconds=RETIRED_SECONDS))
    except OSError as error:
        _LOGGER.warning("retired files of %s could not be deleted: %s", data_set.output, error)


def announcement(output: str, run_id: str) -> str:
    """The file that says that a run may write and commit."""
    return f"{output}/{TEMPORARY}/{run_id}/{RUN}"


def announce_run(output: str, run_id: str) -> None:
    """Say that a run is going to write there, so that whoever comes after it finds what it has left if it dies.

    Temporary files would tell as much where there are any; in object stores files have their final names at once.

    Raises:
        OSError: if it cannot be written.
    """
    path = announcement(output, run_id)
    storage.publish(path, json.dumps(this_process()).encode(), f"{path}.tmp")


def delete_unlisted(data_set: DataSet, paths: Sequence[str]) -> list[str]:
    """Delete files that no manifest lists and no record of a stream names, and see to it that none ever will.

    The runs that wrote them may be suspended, about to commit. So first their announcements go; then a manifest that
    changes nothing, a fence, takes the number that they were about to take. They look again, and give up.

    Args:
        data_set: what the output holds.
        paths: relative to the output.

    Returns:
        What was deleted.

    Raises:
        InputError, RunError: if journal or manifests cannot be read.
        OSError: if something cannot be deleted, or written.
    """
    output = data_set.output
    # No manifest lists what has a temporary name. On a full disk this makes room for the rest.
    temporary = [path for path in paths if path.startswith(f"{TEMPORARY}/")]
    placed = [path for path in paths if not path.startswith(f"{TEMPORARY}/")]
    storage.delete(f"{output}/{path}" for path in temporary)
    if not placed:
        return temporary
    # Before the state: what is adopted in between is met twice and not never.
    found = journal.read(output)
    waiting = {entry.file.path for entry in found.entries}
    # Of streams, it is who adopts that commits, and only what is in the journal.
    runs = {_run_of(path) for path in placed} - found.streams.keys()
    may_commit = [run_id for run_id in sorted(runs) if not _withdraw(output, run_id)]

    def decide(state: DataSet) -> Manifest | None:
        placed[:] = [path for path in placed if path not in state.known_files | waiting]
        return _fence(state) if placed and may_commit else None

    try:
        fence = data_set.commit(decide)
    except OSError as error:
        if not storage.is_full(error):
            raise
        fence = None  # there is no room for anybody's manifest
    storage.delete(f"{output}/{path}" for path in placed)
    if fence is not None:
        remove_temporary(output, fence.run_id)
    return temporary + placed


def _withdraw(output: str, run_id: str) -> bool:
    """Take back a run's announcement, so that it cannot commit once it looks again.

    Returns:
        Whether it is certain that it has looked for the last time: it is of this process, or one that is gone.
    """
    path = announcement(output, run_id)
    try:
        process = json.loads(storage.read_bytes(path))
        # Under another name, it goes on telling whose files these are, until they are deleted.
        storage.rename(path, f"{path}.withdrawn")
    except FileNotFoundError:
        return False
    except ValueError:
        process = None
    return isinstance(process, dict) and (process == this_process() or is_gone(process))


def _fence(data_set: DataSet) -> Manifest:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(
        sequence=data_set.next_sequence,
        run_id=uuid.uuid4().hex[:12],
        kind=FENCE,
        status="done",
        started=now,
        finished=now,
        code_version=__version__,
        identity={},
        model=Model("", "", ""),
    )


def recover(data_set: DataSet) -> list[Manifest]:
    """Adopt what streams have put in place, and delete what runs that died have left.

    To be called by the holder of the lock, for whom all other runs have died. Of a stream that may be going on, only
    temporary files are deleted that it has not touched for a day.

    Args:
        data_set: what the output holds now.

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
        unlisted = unlisted_files(data_set)
        delete_unlisted(data_set, [path for path in unlisted if _run_of(path) in dead and path not in waiting])
    for run_id in dead:
        remove_temporary(output, run_id)
    committed = adopt(data_set)
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


def _run_of(path: str) -> str:
    """The run that has written a file, or was to: part-<run>-<unique>.parquet."""
    return path.rpartition("/")[2].removeprefix("part-").rpartition("-")[0]


def discard_run(data_set: DataSet, run_id: str) -> None:
    """Delete all files of a run that no manifest lists, in place or under temporary names.

    To be called by whoever runs it, when it is certain that it commits nothing any more.

    Raises:
        InputError, RunError, OSError: if it cannot be done.
    """
    data_set.refresh()
    paths = unlisted_files(data_set)
    storage.delete(f"{data_set.output}/{path}" for path in paths if _run_of(path) == run_id)
    remove_temporary(data_set.output, run_id)


def remove_temporary(output: str, run_id: str) -> None:
    """Delete what a run has left under temporary names.

    Raises:
        OSError: if it cannot be done.
    """
    storage.delete_directory(f"{output}/{TEMPORARY}/{run_id}")
    storage.remove_empty(f"{output}/{TEMPORARY}")
