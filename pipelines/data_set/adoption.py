"""How each message of a source gets into the data set once, whichever runs have read it.

Several may have read the same: a job that was taken for dead wakes up, a runner repeats a bundle whose files are in
place, or a job is started while the last files of the one before are still on their way. So this holds:

    A manifest that follows a state of the data set lists rows only of messages that this state does not cover.

What is covered never becomes less, and of two manifests that follow one state only one is there. So whatever records
there are, and however many commands look at them at a time, no message is listed twice. And none is lost: a record is
deleted only if the data set covers all its messages.

    a record that shares no message with the data set is listed with its files, as they are
    of one that shares some, the other rows are written again, and listed; then it is as the next one
    one whose messages are all covered is deleted, with its files, which nobody can list any more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.data_set import coverage
from pipelines.data_set.coverage import Covers
from pipelines.data_set.pending import PendingFile, Record
from pipelines.data_set.rewrite import Rewriter
from pipelines.data_set.snapshot import DataSet
from torchmoji_core.errors import InputError
from transforms.storage import files as storage


class Waiting(NamedTuple):
    """Records that say something that manifests do not say."""

    to_list: list[Record]
    """Of one run, and none shares a message with another or with the data set."""
    others: list[Record]
    """Their turn comes when those are listed."""
    doubled: list[Record]
    """They share messages with the data set."""


def sort(records: Sequence[Record], data_set: DataSet) -> Waiting:
    """Tell which records may be listed next.

    Args:
        records: what waits.
        data_set: its state.
    """
    known = data_set.known_files
    waiting = Waiting([], [], [])
    # A manifest that lists some files of a record has decided about it.
    begun = {record.path for record in records if record.has_begun(known)}
    taken = coverage.union(data_set.covers, *(record.covers for record in records if record.path in begun))
    for record in sorted(records, key=lambda record: record.path not in begun):
        is_new = record.path not in begun
        is_of_other = bool(waiting.to_list) and waiting.to_list[0].run_id != record.run_id
        if is_new and coverage.overlap(record.covers, data_set.covers):
            waiting.doubled.append(record)
        elif is_of_other or (is_new and coverage.overlap(record.covers, taken)):
            waiting.others.append(record)
        else:
            waiting.to_list.append(record)
            if record.covers:
                taken = coverage.union(taken, record.covers)
    return waiting


def repeating(records: Sequence[Record], data_set: DataSet) -> list[Record]:
    """Records that share messages with the data set, or with one before them: some of their rows will be no results."""
    known = data_set.known_files
    taken, found = data_set.covers, []
    for record in sorted(records, key=lambda record: not record.has_begun(known)):
        if not record.has_begun(known) and coverage.overlap(record.covers, taken):
            found.append(record)
        elif record.covers:
            taken = coverage.union(taken, record.covers)
    return found


def drop(record: Record, data_set: DataSet) -> None:
    """Delete a record whose messages are all covered, with its files.

    Raises:
        OSError: if that cannot be done.
    """
    known = data_set.known_files
    # In this order: a record without files is dropped by the next command, and files without one are nobody's.
    storage.delete(f"{data_set.output}/{file.file.path}" for file in record.files if file.file.path not in known)
    storage.delete([record.path])


def remaining(record: Record, covers: Covers, rewriter: Rewriter) -> tuple[PendingFile, ...]:
    """Write the rows of a record's files again whose messages are not covered.

    Raises:
        InputError: if the record does not tell which message each row is from.
        RunError: if a file cannot be read or written.
    """
    ((source, _),) = record.covers.items()
    covered = coverage.of_source(covers, source)
    found = []
    for file in record.files:
        if file.file.rows and not file.messages:
            raise InputError(
                f"{record.path}: some of its messages are in the data set already, and it does not tell which rows are "
                "from them; move it away, and the stream reads the others again"
            )
        new, empty = rewriter.some_rows(file.file, [not _is_covered(position, covered) for position in file.messages])
        if new is not None:
            found.append(PendingFile(new, file.is_dead_letters, empty, file.model))
    return tuple(found)


def _is_covered(position: str, covered: dict[str, coverage.Intervals]) -> bool:
    """Args:
    position: `partition:offset` of a message, or of a post in one, `partition:offset.number`.
    covered: by partition.
    """
    partition, _, within = position.partition(":")
    offset = within.partition(".")[0]
    return coverage.first_uncovered(covered.get(partition, []), int(offset)) != int(offset)
