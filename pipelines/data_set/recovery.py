"""How files of a run become part of the data set, or are deleted; also for runs that died, and for streams.

Each command that writes begins by recovering: it commits pending files, and deletes what runs that died have left.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from pipelines.data_set import adoption, coverage, jobs, manifest, pending
from pipelines.data_set.coverage import Covers
from pipelines.data_set.liveness import is_gone, this_process
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.pending import QUIET_SECONDS, PendingFile, Record, Stream
from pipelines.data_set.rewrite import Rewriter
from pipelines.data_set.snapshot import FENCE, DataSet, registration, run_of, unlisted_files
from torchmoji_core.errors import RunError, TorchMojiError
from transforms import metrics
from transforms.output.commit import JOURNAL, TEMPORARY, journal_directory
from transforms.storage import files as storage

RETIRED_SECONDS = 86_400.0
"""How long a retired file stays: readers that began before have so much time to finish."""
_LOGGER = logging.getLogger(__name__)


def commit_pending(data_set: DataSet) -> list[Manifest]:
    """List pending files in manifests, one for each stream and model.

    Several may do so at once, whatever else is done to the data set meanwhile: each file is listed once, and each
    message of a source whose records tell what they cover (see `adoption`).

    Args:
        data_set: what the output holds.

    Returns:
        The manifests that were committed.

    Raises:
        InputError: if a record of a pending file cannot be read.
        OSError: if something cannot be written; then what is not listed stays pending.
    """
    committed: list[Manifest] = []
    listed: list[str] = []  # records of files that some manifest lists, once the next one is there
    doubled: list[Record] = []
    more = True

    def decide(state: DataSet) -> Manifest | None:
        nonlocal listed, doubled, more
        # Read after the state: a record that is there now is of a file that is listed in it, or nowhere.
        found, known = pending.read(state.output), state.known_files
        waiting = adoption.sort([record for record in found.records if not record.is_done(known, state.covers)], state)
        own, doubled = waiting.to_list, waiting.doubled
        covers = state.covers
        more = bool(waiting.others or doubled)
        change = None
        if own:
            groups = _by_model(file for record in own for file in record.files if file.file.path not in known)
            more |= len(groups) > 1
            now_known = known | {file.file.path for file in (groups[0] if groups else ())}
            # A record counts as covered when all its files are listed: until then it is there, and says so itself.
            complete = [record for record in own if all(file.file.path in now_known for file in record.files)]
            added = coverage.union(*(record.covers for record in complete))
            change = _manifest_of(state, found.streams[own[0].run_id], groups[0] if groups else (), added)
            known, covers = now_known, coverage.union(covers, added)
        listed = [record.path for record in found.records if record.is_done(known, covers)]
        return change

    while more:
        change = data_set.commit(decide)
        # A file that a manifest lists needs no record: any command that sees one deletes it.
        storage.delete(listed)
        if change is not None:
            remove_temporary(data_set.output, change.run_id)
            committed.append(change)
        for record in doubled:
            committed += _commit_the_rest(data_set, record)
    return committed


def _commit_the_rest(data_set: DataSet, record: Record) -> list[Manifest]:
    """List the rows of a record whose messages the data set does not cover, if there are any; then drop it.

    Raises:
        InputError, RunError, OSError: as `commit_pending`.
    """
    run_id = manifest.new_run_id()
    rewriter = Rewriter(data_set.output, run_id)

    def decide(state: DataSet) -> Manifest | None:
        rest = coverage.without(record.covers, state.covers)
        stream = pending.read(state.output).streams.get(record.run_id)
        if not rest or stream is None:
            return None
        files = adoption.remaining(record, state.covers, rewriter)
        return dataclasses.replace(_manifest_of(state, stream, files, rest), run_id=run_id)

    committed = []
    if coverage.without(record.covers, data_set.covers):
        register_run(data_set.output, run_id)
        try:
            change = commit_run(data_set, run_id, decide)
        except RunError:
            data_set.refresh()
            if coverage.without(record.covers, data_set.covers):
                raise  # otherwise another command was faster, and has deleted the files
            change = None
        committed = [change] if change is not None else []
    if not coverage.without(record.covers, data_set.covers):
        adoption.drop(record, data_set)
        rows = sum(file.file.rows for file in record.files) - sum(one.counts[metrics.READ] for one in committed)
        _LOGGER.info("%s: %d rows are left out, which another run has written already", record.path, rows)
    return committed


def _by_model(entries: Iterable[PendingFile]) -> list[list[PendingFile]]:
    """Dead letters are of no model, so they are with the last one's."""
    groups: dict[str, list[PendingFile]] = defaultdict(list)
    dead = []
    for entry in entries:
        if entry.is_dead_letters:
            dead.append(entry)
        else:
            groups[entry.file.fingerprint].append(entry)
    if dead:
        groups[next(reversed(groups), "")].extend(dead)
    return list(groups.values())


def _manifest_of(data_set: DataSet, stream: Stream, entries: Sequence[PendingFile], covers: Covers) -> Manifest:
    files = tuple(entry.file for entry in entries if not entry.is_dead_letters)
    dead_letters = tuple(entry.file for entry in entries if entry.is_dead_letters)
    rows, dead = sum(file.rows for file in files), sum(file.rows for file in dead_letters)
    empty = sum(entry.empty for entry in entries)
    return data_set.next_manifest(
        "stream",
        started=stream.started,
        code_version=stream.code_version,
        identity=stream.identity,
        model=next((entry.model for entry in entries if entry.model is not None), stream.model),
        files=files,
        dead_letters=dead_letters,
        covers=covers,
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


def covered(data_set: DataSet) -> Covers:
    """Which messages the files in an output are made from, pending ones included: a run that begins reads the others.

    Raises:
        InputError, RunError: if manifests, or records of pending files, cannot be read.
    """
    # In this order: what is committed in between is then seen twice, not missed.
    waiting = pending.read(data_set.output)
    data_set.refresh()
    return coverage.union(data_set.covers, *(record.covers for record in waiting.records))


def register_run(output: str, run_id: str) -> None:
    """Say that a run is going to write there, so that the next command finds what it has left if it dies.

    Temporary files would tell as much where there are any; in object stores files have their final names at once.

    Raises:
        OSError: if it cannot be written.
    """
    path = registration(output, run_id)
    storage.publish(path, json.dumps(this_process()).encode(), f"{path}.tmp")


def delete_unlisted(data_set: DataSet, paths: Sequence[str]) -> list[str]:
    """Delete files that no manifest lists and no record of a stream names, and see to it that none ever will.

    The runs that wrote them may be suspended, about to commit. So first their registrations go; then a manifest that
    changes nothing, a fence, takes the number that they were about to take. They look again, and give up.

        a run decides to commit as 17, and is suspended
        here: its registration goes, 17 becomes a fence, its files are deleted
        the run wakes: 17 is taken, it looks again, is not registered any more, and fails

    Args:
        data_set: what the output holds.
        paths: relative to the output.

    Returns:
        What was deleted.

    Raises:
        InputError, RunError: if manifests, or records of pending files, cannot be read.
        OSError: if something cannot be deleted, or written.
    """
    output = data_set.output
    # No manifest lists what has a temporary name. On a full disk this makes room for the rest.
    temporary = [path for path in paths if path.startswith(f"{TEMPORARY}/")]
    placed = [path for path in paths if not path.startswith(f"{TEMPORARY}/")]
    storage.delete(f"{output}/{path}" for path in temporary)
    if not placed:
        return temporary
    # Before the state: a file that is committed in between is then seen twice, not missed.
    found = pending.read(output)
    waiting = {file.file.path for file in found.files}
    # A stream's files are committed only from records, so files without one are never committed.
    runs = {run_of(path) for path in placed} - found.streams.keys()
    may_commit = [run_id for run_id in sorted(runs) if not _unregister(output, run_id)]

    def decide(state: DataSet) -> Manifest | None:
        known = state.known_files | waiting
        placed[:] = [path for path in placed if path not in known]
        return state.next_manifest(FENCE) if placed and may_commit else None

    try:
        fence = data_set.commit(decide)
    except OSError as error:
        if not storage.is_full(error):
            raise
        fence = None  # there is no room for any manifest
    storage.delete(f"{output}/{path}" for path in placed)
    if fence is not None:
        remove_temporary(output, fence.run_id)
    return temporary + placed


def _unregister(output: str, run_id: str) -> bool:
    """Take back a run's registration, so that it cannot commit once it looks again.

    Returns:
        Whether it is certain that it has looked for the last time: it is of this process, or one that is gone.
    """
    path = registration(output, run_id)
    try:
        process = json.loads(storage.read_bytes(path))
        # Under another name, it goes on telling whose files these are, until they are deleted.
        storage.rename(path, f"{path}.withdrawn")
    except FileNotFoundError:
        return False
    except ValueError:
        process = None
    return isinstance(process, dict) and (process == this_process() or is_gone(process))


def recover(data_set: DataSet) -> list[Manifest]:
    """Commit pending files, and delete what runs that died have left.

    To be called by the holder of the lock, for whom all other runs have died, but those that were submitted to a
    cluster (`jobs`). Of a stream that may be going on, only temporary files are deleted that it has not touched for a
    day.

    Args:
        data_set: what the output holds now.

    Returns:
        The manifests that were committed.

    Raises:
        InputError, RunError, OSError: as `commit_pending`.
    """
    output = data_set.output
    found = pending.read(output)
    dead = {*manifest.names_of_runs(output), *found.ended} - found.going_on - jobs.read(output).keys()
    # Before anything is written, for which there may be no room yet.
    if dead:
        delete_unlisted(data_set, [path for path in unlisted_files(data_set) if run_of(path) in dead])
    for run_id in dead:
        remove_temporary(output, run_id)
    committed = commit_pending(data_set)
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
    data_set.publish()  # perhaps the last command was killed before that
    return committed


def delete_retired(data_set: DataSet) -> None:
    """Delete what was retired a day ago, as every command does that commits; what cannot be deleted is left for later.

    To be called by the holder of the lock.
    """
    try:
        data_set.purge(datetime.now(UTC) - timedelta(seconds=RETIRED_SECONDS))
    except OSError as error:
        _LOGGER.warning("retired files of %s could not be deleted: %s", data_set.output, error)


def commit_run(data_set: DataSet, run_id: str, decide: Callable[[DataSet], Manifest | None]) -> Manifest | None:
    """Make a run's files results, delete those of them that no manifest lists, and bring the Delta log up to date.

    Args:
        data_set: what the output holds.
        run_id: of the run.
        decide: as of `DataSet.commit`.

    Returns:
        What was committed; None if nothing was left to be done.

    Raises:
        InputError, RunError, OSError: as `DataSet.commit`, and what `decide` raises.
    """
    states = 0

    def counted(state: DataSet) -> Manifest | None:
        nonlocal states
        states += 1
        return decide(state)

    try:
        change = data_set.commit(counted)
    except BaseException:
        # If the manifest is there, the files are results, whatever came after.
        delete_uncommitted(data_set, run_id)
        raise
    if change is not None and states == 1:
        remove_temporary(data_set.output, run_id)
    else:
        delete_uncommitted(data_set, run_id)  # what was written for a state that has changed
    data_set.publish()
    return change


def delete_uncommitted(data_set: DataSet, run_id: str) -> None:
    """Delete all files of a run that no manifest lists, in place or under temporary names.

    To be called by the run itself, when it is certain that it commits nothing any more. If something cannot be deleted
    now, that is a warning, and the next command deletes it: the output may be gone, and an earlier error is to be told.
    """
    try:
        data_set.refresh()
        paths = unlisted_files(data_set)
        storage.delete(f"{data_set.output}/{path}" for path in paths if run_of(path) == run_id)
        remove_temporary(data_set.output, run_id)
    except (OSError, TorchMojiError) as error:
        _LOGGER.warning("could not clean up %s: %s", data_set.output, error)


def remove_temporary(output: str, run_id: str) -> None:
    """Delete what a run has left under temporary names.

    Raises:
        OSError: if it cannot be done.
    """
    storage.delete_directory(f"{output}/{TEMPORARY}/{run_id}")
    storage.remove_empty(f"{output}/{TEMPORARY}")
