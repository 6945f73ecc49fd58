"""Deletes what is results no longer, or never was, once no reader can need it: `pipelines.verify --clean`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from pipelines import journal
from pipelines.data_set import DataSet, recover, unlisted_files
from transforms import storage


def clean(output: str, older_than: float) -> list[str]:
    """Delete what runs that died have left, unlisted files, retired files and superfluous manifests.

    To be called by the holder of the lease. What streams have put in place is adopted first, and what one that may be
    going on is about to put in place is left alone.

    Args:
        output: directory of a data set.
        older_than: seconds that a file must have been unlisted, or retired, to be deleted.

    Returns:
        What was deleted, relative to the output.

    Raises:
        InputError: if a manifest cannot be read: then nobody can say what is listed.
        OSError: if a file cannot be deleted.
    """
    data_set = DataSet.read(output)
    recover(data_set)
    streams = journal.read(output)
    now = time.time()
    old = [
        path
        for path, modified in unlisted_files(data_set).items()
        if modified is not None and now - modified >= older_than and not streams.protects(path, modified)
    ]
    storage.delete(f"{output}/{path}" for path in old)
    return old + data_set.purge(datetime.now(UTC) - timedelta(seconds=older_than))
