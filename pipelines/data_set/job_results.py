"""Takes in what submitted runs have done: checks it, and commits it. See `jobs`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.data_set import jobs
from pipelines.data_set.jobs import Basis, Job
from pipelines.data_set.manifest import TOO_MANY_DEAD, DataFile, Manifest, now, with_rows
from pipelines.data_set.recovery import delete_uncommitted
from pipelines.data_set.rewrite import Rewritten, without
from pipelines.data_set.snapshot import DataSet, registration
from torchmoji_core.errors import InputError, RunError, first_line
from torchmoji_core.files import name_as_text
from transforms import metrics
from transforms.output.commit import DEAD_LETTERS, WrittenFile, committed_files, job_directory
from transforms.storage import files as storage

_CHECKERS = 16
_LOGGER = logging.getLogger(__name__)


def take_in(data_set: DataSet, tell: Callable[[Manifest], object]) -> list[Job]:
    """Commit all submitted runs that are done. To be called by the holder of the lock.

    Args:
        data_set: what the output holds now.
        tell: is told of each manifest that was committed.

    Returns:
        The runs that may be going on.

    Raises:
        RunError: if what a run has done does not add up, or was done in vain. It is removed.
        InputError, RunError, OSError: if something cannot be read or written; then the next command tries again.
    """
    jobs.remove_given_up(data_set.output)
    found = jobs.read(data_set.output).values()
    for job in found:
        if job.completed is None:
            continue
        try:
            change = _take_one(data_set, job)
        except _InVain:
            raise
        except (InputError, RunError, OSError) as error:
            kind = InputError if isinstance(error, InputError) else RunError
            raise kind(
                f"{job.said}, is done, but its result cannot be taken in: {first_line(error)}; run again, or if that "
                f"does not help, delete {job_directory(data_set.output, job.run_id)}: its inputs are then scored again"
            ) from (error.__cause__ or error)
        if change is not None:
            tell(change)
    return [job for job in found if job.completed is None]


class _InVain(RunError):
    """What a run has done does not count, and was removed."""


def _take_one(data_set: DataSet, job: Job) -> Manifest | None:
    output = data_set.output
    if _is_committed(data_set, job):
        jobs.remove(output, job.run_id)  # by a command that died right after
        return None
    written = committed_files(output, job.run_id)
    files = [file for file in written if not _is_dead(file)]
    letters = [file for file in written if _is_dead(file)]
    draft = _filled(job, files, letters)
    wrong = _wrong(job, files, letters) or _missing(output, draft)
    change = None
    if wrong is None:
        rewritten: Rewritten = {}

        def decide(state: DataSet) -> Manifest | None:
            nonlocal wrong
            wrong = None
            if _is_committed(state, job):
                return None  # by a command that has taken this one for dead
            if Basis.of(state, draft.generation, job.basis.inputs) != job.basis:
                wrong = "another command has written there meanwhile"
                return None
            return _of_state(draft, state, rewritten)

        # If this fails, what the job has written is left for the next command: to repeat it may cost hours.
        change = data_set.commit(decide)
    delete_uncommitted(data_set, job.run_id)  # all of it, or what was written for a state that has changed
    jobs.remove(output, job.run_id)
    if change is not None:
        data_set.publish()
    if wrong is not None:
        raise _InVain(f"{job.said}, was in vain: {wrong}. What it has written was removed; run again")
    return change


def _is_committed(state: DataSet, job: Job) -> bool:
    return any(done.run_id == job.run_id for done in state.manifests)


def _is_dead(file: WrittenFile) -> bool:
    return file.final.startswith(f"{_output(file)}/{DEAD_LETTERS}/")


def _output(file: WrittenFile) -> str:
    """The output as workers name it, which may be another name than here."""
    return file.record.rsplit("/", 4)[0]


def _wrong(job: Job, files: Sequence[WrittenFile], letters: Sequence[WrittenFile]) -> str | None:
    """What does not add up: each input must have been read, each part of it, and each record must be in a file."""
    completed = job.completed or {}
    if left := [entry.path for entry in job.draft.inputs if completed.get(name_as_text(entry.path), [1])[0]]:
        return f"{len(left):,} of {len(job.draft.inputs):,} input(s) were not read to their end, {left[0]} for instance"
    read, notices = (sum(counts[number] for counts in completed.values()) for number in (1, 2))
    rows, dead = sum(file.rows for file in files), sum(file.rows for file in letters)
    if read != rows + dead + notices:
        return f"the counts do not add up: read {read}, rows in files {rows}, dead letters {dead}, notices {notices}"
    return None


def _missing(output: str, draft: Manifest) -> str | None:
    """Files that are not there, or not as they were written."""
    if not storage.exists(registration(output, draft.run_id)):
        return "another command has taken it for dead"
    written = (*draft.files, *draft.dead_letters)

    def is_missing(file: DataFile) -> bool:
        found = storage.metadata(f"{output}/{file.path}")
        return found is None or found.size_in_bytes != file.bytes

    with ThreadPoolExecutor(_CHECKERS) as threads:
        missing = [
            file.path for file, is_gone in zip(written, threads.map(is_missing, written), strict=True) if is_gone
        ]
    return f"{len(missing):,} of its files are not there, {missing[0]} for instance" if missing else None


def _filled(job: Job, written: Sequence[WrittenFile], letters: Sequence[WrittenFile]) -> Manifest:
    """The draft with what was done."""
    files, dead_letters = tuple(map(_data_file, written)), tuple(map(_data_file, letters))
    counts = list((job.completed or {}).values())
    rows, empty = sum(file.rows for file in written), sum(file.empty for file in written)
    read, dead = sum(each[1] for each in counts), sum(file.rows for file in letters)
    is_too_many = dead / max(read, 1) > job.max_dead_fraction
    if is_too_many:
        _LOGGER.warning("%s: too many dead letters, %d of %d records", job.said, dead, read)
    arithmetics = {file.model["arithmetic"] for file in written if file.model}
    model = dataclasses.replace(
        job.draft.model, arithmetic=", ".join(sorted(arithmetics)) or job.draft.model.arithmetic
    )
    return dataclasses.replace(
        job.draft,
        status=TOO_MANY_DEAD if is_too_many else job.draft.status,
        finished=now(),
        model=model,
        inputs=tuple(with_rows(job.draft.inputs, files, dead_letters)),
        files=files,
        dead_letters=dead_letters,
        counts={
            metrics.READ: read,
            metrics.SCORED: rows - empty,
            metrics.EMPTY: empty,
            metrics.DEAD: dead,
            metrics.NOTICES: sum(each[2] for each in counts),
            metrics.ROWS_WRITTEN: rows,
            metrics.FILES_READ: len(counts),
            metrics.FILES_WRITTEN: len(written) + len(letters),
            metrics.BYTES_WRITTEN: sum(file.bytes_ for file in (*written, *letters)),
        },
    )


def _data_file(file: WrittenFile) -> DataFile:
    return DataFile(file.final.removeprefix(f"{_output(file)}/"), file.rows, file.bytes_, file.sha256, file.sources)


def _of_state(draft: Manifest, state: DataSet, rewritten: Rewritten) -> Manifest:
    """The next manifest: rows that are scored again, or replaced, are retired with it."""
    change = dataclasses.replace(draft, sequence=state.next_sequence)
    if change.checkpoint:
        return state.as_checkpoint(change)
    generation = state.generations.get(change.generation)
    inputs = {entry.path for entry in change.inputs}
    again = inputs & generation.inputs.keys() if generation else set()
    if not again or generation is None:
        return change
    retired, files, dead_letters = without(state.output, generation, again, change.run_id, rewritten)
    return dataclasses.replace(
        change,
        retired=retired,
        files=(*change.files, *files),
        dead_letters=(*change.dead_letters, *dead_letters),
        dropped=tuple(sorted(generation.entangled(again) - inputs)),
    )
