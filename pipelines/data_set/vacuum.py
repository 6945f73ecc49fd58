"""Deletes what is results no longer, or never was, once no reader can need it: `pipelines.verify --clean`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pipelines.data_set import pending
from pipelines.data_set.lock import is_living, read_lock
from pipelines.data_set.recovery import delete_unlisted, recover
from pipelines.data_set.snapshot import DataSet, unlisted_files, written_files
from transforms.storage import files as storage


def clean(output: str, older_than: float) -> list[str]:
    """Delete what runs that died have left, unlisted files, retired files and superfluous manifests.

    To be called by the holder of the lock. What streams have put in place is adopted, after room was made for that,
    and what one that may be going on is about to put in place is left alone.

    Args:
        output: directory of a data set.
        older_than: seconds that a file must have been unlisted, or retired, to be deleted.

    Returns:
        What was deleted, relative to the output.

    Raises:
        InputError, RunError: if a manifest cannot be read: then nobody can say what is listed.
        OSError: if a file cannot be deleted.
    """
    data_set = DataSet.read(output)
    deleted = _delete_old(data_set, unlisted_files(data_set), older_than)
    recover(data_set)
    return deleted


def _delete_old(data_set: DataSet, unlisted: Mapping[str, float | None], older_than: float) -> list[str]:
    """Delete unlisted and retired files, and superfluous manifests, of some age."""
    streams = pending.read(data_set.output)
    waiting = {entry.file.path for entry in streams.entries}
    now = time.time()
    old = [
        path
        for path, modified in unlisted.items()
        if modified is not None
        and now - modified >= older_than
        and path not in waiting
        and not streams.protects(path, modified)
    ]
    # First what no fence needs to be written for, since the disk may be full.
    purged = data_set.purge(datetime.now(UTC) - timedelta(seconds=older_than))
    return purged + delete_unlisted(data_set, old)


def free_space(output: str, older_than: float) -> list[str]:
    """Where a disk is so full that no lock can be written, delete without one what certainly nobody needs.

    That is what is old enough among the files that were there before the lock was looked at, if nobody held it, and
    that no manifest lists which was there after that: whoever comes later has other files.

    Args:
        output: directory of a data set.
        older_than: as of `clean`.

    Returns:
        What was deleted, relative to the output; nothing where there is room.

    Raises:
        InputError, RunError, OSError: as `clean`.
    """
    if not _is_full(output):
        return []
    found = written_files(output)
    holder = read_lock(output)
    if holder is not None and is_living(holder):
        return []  # the lock will say whose it is
    streams_before = pending.read(output)
    data_set = DataSet.read(output)
    known = data_set.known_files | {entry.file.path for entry in streams_before.entries}
    unlisted = {path: modified for path, modified in found.items() if path not in known}
    return _delete_old(data_set, unlisted, older_than)


def _is_full(output: str) -> bool:
    """Whether nothing can be written to a local disk any more."""
    path = f"{output}/_lock-{uuid.uuid4().hex}.tmp"
    if not (storage.can_rename(output) and storage.exists(output)):
        return False
    try:
        storage.publish(path, bytes(4096), path, lasting=False)
    except OSError as error:
        return storage.is_full(error)
    finally:
        storage.delete([path])
    return False
