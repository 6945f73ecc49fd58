"""Deletes files that are not live, once no reader can need them: `pipelines.verify --clean`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from pipelines.data_set import jobs, pending
from pipelines.data_set.job_results import take_in
from pipelines.data_set.lock import Lock, is_living, read_lock
from pipelines.data_set.manifest import Manifest
from pipelines.data_set.recovery import delete_unlisted, recover
from pipelines.data_set.snapshot import DataSet, unlisted_files, written_files
from torchmoji_core.errors import RunError
from transforms.storage import files as storage


def vacuum(output: str, older_than: float, tell: Callable[[Manifest], object] = lambda _: None) -> list[str]:
    """Take the lock, and delete what runs that died have left, unlisted files, retired files, superfluous manifests.

    Pending files are committed, after room was made for that, and so is what submitted runs have done. Files that a
    stream may be about to put in place are left alone, and those of a submitted run that may be going on.

    Args:
        output: directory of a data set.
        older_than: seconds that a file must have been unlisted, or retired, to be deleted.
        tell: is told of each result of a submitted run that was committed.

    Returns:
        What was deleted, relative to the output.

    Raises:
        LockHeldError: if another run is writing there.
        InputError, RunError: if a manifest cannot be read: then it is unknown what is listed.
        OSError: if a file cannot be deleted.
    """
    try:
        return _vacuum(output, older_than, tell)
    except RunError as error:
        if not (isinstance(error.__cause__, OSError) and storage.is_full(error.__cause__)):
            raise
    return _vacuum_without_lock(output, older_than) + _vacuum(output, older_than, tell)


def _vacuum(output: str, older_than: float, tell: Callable[[Manifest], object]) -> list[str]:
    with Lock(output):
        data_set = DataSet.read(output)
        deleted = _delete_old(data_set, unlisted_files(data_set), older_than)
        recover(data_set)
        take_in(data_set, tell)
    return deleted


def _delete_old(data_set: DataSet, unlisted: Mapping[str, float | None], older_than: float) -> list[str]:
    """Delete unlisted and retired files, and superfluous manifests, of some age."""
    streams, submitted = pending.read(data_set.output), jobs.read(data_set.output).keys()
    now = time.time()
    old = [
        path
        for path, modified in unlisted.items()
        if modified is not None
        and now - modified >= older_than
        and not (streams.protects(path, modified) or jobs.is_of(path, submitted))
    ]
    # First what needs no fence, since the disk may be too full to write one.
    purged = data_set.purge(datetime.now(UTC) - timedelta(seconds=older_than))
    return purged + delete_unlisted(data_set, old)


def _vacuum_without_lock(output: str, older_than: float) -> list[str]:
    """If a disk is so full that no lock can be written, delete files that are certainly not needed.

    Those are files that are old enough, were there before this looked for a lock and found none, and are in none of the
    manifests that were there after that. A command that begins later writes other files.
    """
    found = written_files(output)
    holder = read_lock(output)
    if holder is not None and is_living(holder):
        return []  # the lock will say whose it is
    data_set = DataSet.read(output)
    known = data_set.known_files
    return _delete_old(data_set, {path: at for path, at in found.items() if path not in known}, older_than)
