"""Files that a run has written: putting them in place under their final names, and keeping a record of each.

A bundle writes files under temporary names. Only the names come here, each with what is known of its file, to be
renamed. So a failed or repeated bundle leaves nothing under a final name, and rows behind the model are never shuffled.
Object stores have no rename, but objects appear whole: there a file is written under its final name, and it counts once
its record is there.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import GlobalWindows

from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.storage import files as storage

TEMPORARY = "_tmp"
DEAD_LETTERS = "_dead_letters"
JOURNAL = "_journal"
JOBS = "_jobs"
"""Names with an underscore are passed over by readers of Parquet directories."""

_COMMIT_KEYS = 64
"""Bounds how many workers rename files at the same time."""


class WrittenFile(NamedTuple):
    """A closed file under its temporary name, on its way to its final one."""

    temporary: str
    """Equal to `final` on filesystems without a rename: there a file appears whole when it is closed."""
    final: str
    record: str
    """File beside the temporary ones that says, once it is there, that this file is in place."""
    rows: int
    bytes_: int
    sha256: str
    sources: dict[str, int]
    """Rows by the file they are from, where that is known."""
    event_times: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Of rows with a timestamp: how many `rows`, the `earliest`, the `latest` and the `sum`, in milliseconds."""
    empty: int = 0
    """Rows without tokens, which have no scores."""
    model: dict[str, str] = {}  # noqa: RUF012 - never changed
    """Name, fingerprint and arithmetic of what scored the rows, where they have scores."""
    messages: Sequence[str] = ()
    """Position of the message that each row is from, where messages have places of their own (Kafka)."""


def committed_directory(output: str, run_id: str) -> str:
    """Where a run has a record of every file that it has put in place."""
    return f"{output}/{TEMPORARY}/{run_id}/committed"


def journal_directory(output: str, run_id: str) -> str:
    """Where an endless run has the records of the files that it has put in place and that no manifest lists yet."""
    return f"{output}/{JOURNAL}/{run_id}"


def job_directory(output: str, run_id: str) -> str:
    """Where a run that nobody waits for is described, and says when it has done all of its work."""
    return f"{output}/{JOBS}/{run_id}"


def committed_files(output: str, run_id: str) -> list[WrittenFile]:
    """The files that a run has put in place, sorted by name.

    Raises:
        OSError: if their records cannot be read.
    """
    records = storage.match([f"{committed_directory(output, run_id)}/*.json"])
    return [WrittenFile(**json.loads(storage.read_bytes(record.path))) for record in records]


class CommitFiles(beam.PTransform):
    """Put files in place, each in the worker that gets its name; gives them on."""

    def __init__(self, count_rows: bool, measure_latency: bool = False, journal: bool = False) -> None:
        super().__init__()
        self._count_rows, self._measure_latency, self._journal = count_rows, measure_latency, journal

    def expand(self, files: beam.PCollection[WrittenFile]) -> beam.PCollection[WrittenFile]:
        # In the global window with a trigger that fires at once: a late window's file must not be dropped here. A file
        # of held tweets, which is written when the input has ended, must not be dropped either: by then the local
        # runner's watermark has passed the global window, hence the lateness. Beam's Reshuffle has none, and its many
        # keys are never forgotten by that runner.
        window = beam.WindowInto(
            GlobalWindows(),
            trigger=Repeatedly(AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            allowed_lateness=2 * 24 * 3600,
        )
        return (
            files
            | "Rewindow" >> window
            | "Key" >> beam.Map(_commit_key).with_output_types(tuple[int, WrittenFile])
            | "GroupNames" >> beam.GroupByKey()
            | "Names" >> beam.FlatMap(_names).with_output_types(WrittenFile)
            | "Rename" >> beam.Map(commit, self._count_rows, self._measure_latency, self._journal)
        )


def _commit_key(file: WrittenFile) -> tuple[int, WrittenFile]:
    return zlib.crc32(file.final.encode("utf-8", "surrogatepass")) % _COMMIT_KEYS, file


def _names(group: tuple[int, Iterable[WrittenFile]]) -> Iterable[WrittenFile]:
    return group[1]


def commit(
    file: WrittenFile, count_rows: bool = True, measure_latency: bool = False, journal: bool = False
) -> WrittenFile:
    """Give a closed file its final name. Done again after a retry, it finds the work done.

    With a journal, file and record are on the disk on return: a record makes a file count, and messages are
    acknowledged by it. Without, both count only for a run that is still going on, and directories are brought onto the
    disk once a commit, before its manifest (`pipelines.data_set.snapshot`).

    Raises:
        RunError: if the file is under neither name.
    """
    try:
        _rename(file)
        if journal:
            storage.sync(storage.directories(file.final, file.record.rsplit("/", 3)[0]))
        storage.publish(file.record, json.dumps(file._asdict()).encode(), f"{file.record}.tmp", lasting=journal)
    except OSError as error:
        raise RunError(f"{file.final} cannot be put in place: {error}") from error
    _count(file, count_rows, measure_latency)
    return file


def put_in_place(files: Sequence[WrittenFile]) -> None:
    """Give closed files their final names, on the disk. They count for nothing before `record_together`.

    Raises:
        RunError: if that cannot be done.
    """
    directories: set[str] = set()
    try:
        for file in files:
            _rename(file)
            directories.update(storage.directories(file.final, file.record.rsplit("/", 3)[0]))
        storage.sync(sorted(directories))
    except OSError as error:
        raise RunError(f"files cannot be put in place: {error}") from error


def record_together(
    rows: Sequence[WrittenFile], letters: Sequence[WrittenFile], path: str, covers: Mapping[str, Any]
) -> None:
    """Record files that are in place, of one local stream: all of them count from now on, or none.

    So a message whose rows are in several files is in the data set whole, or not at all.

    Args:
        rows: files that are in place.
        letters: the same, of dead letters.
        path: of the record, in the run's `journal_directory`.
        covers: which messages they are made from (`pipelines.data_set.coverage`), where the source tells.

    Raises:
        RunError: if the record cannot be written.
    """
    content = {"files": [file._replace(record=path)._asdict() for file in (*rows, *letters)], "covers": covers}
    try:
        storage.publish(path, json.dumps(content).encode(), f"{path}.tmp", lasting=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    for files, are_rows in ((rows, True), (letters, False)):
        for file in files:
            _count(file, count_rows=are_rows, measure_latency=are_rows)


def _rename(file: WrittenFile) -> None:
    if file.temporary != file.final and storage.exists(file.temporary):
        storage.rename(file.temporary, file.final)
    elif not storage.exists(file.final):
        raise RunError(f"{file.temporary} is gone before it could be renamed; was the output removed while running?")


def _count(file: WrittenFile, count_rows: bool, measure_latency: bool) -> None:
    metrics.counter(metrics.FILES_WRITTEN).inc()
    metrics.counter(metrics.BYTES_WRITTEN).inc(file.bytes_)
    if count_rows:
        metrics.counter(metrics.ROWS_WRITTEN).inc(file.rows)
    if measure_latency:
        distribution = metrics.distribution(metrics.LATENCY)
        for latency in latencies(file.event_times, round(1000 * time.time())):
            distribution.update(latency)


def latencies(event_times: dict[str, int], now: int) -> Iterator[int]:
    """As many latencies as a file has rows, with the same number, smallest, largest and sum as the rows' own.

    Beam's distributions keep nothing else of them, so files need not keep the latency of each row.

    >>> list(latencies({"rows": 4, "earliest": 10, "latest": 50, "sum": 10 + 20 + 45 + 50}, now=100))
    [90, 50, 68, 67]
    """
    rows = event_times.get("rows", 0)
    if rows == 0:
        return
    ends = [now - event_times["earliest"], now - event_times["latest"]][:rows]
    yield from ends
    if rows > 2:
        each, ones = divmod(rows * now - event_times["sum"] - sum(ends), rows - 2)
        yield from (each + (index < ones) for index in range(rows - 2))
