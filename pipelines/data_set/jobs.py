"""Runs that were submitted to a cluster, and that no command waits for.

Before such a run starts, `_jobs/<run>/job.json` says what its manifest is going to be, but for its files and counts.
The run's last step writes `completed.json` beside it (`transforms.output.completion`). Then the next command that
writes there commits it (`job_results`). Until then nothing deletes its files, and no other run scores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.data_set import lock, manifest
from pipelines.data_set.manifest import Input, Manifest
from pipelines.data_set.snapshot import DataSet, Generation
from torchmoji_core.errors import InputError, LockHeldError
from transforms.output.commit import JOBS, TEMPORARY, job_directory
from transforms.storage import files as storage

JOB, COMPLETED = "job.json", "completed.json"


@dataclass(frozen=True)
class Basis:
    """What of a data set a run was planned for. If it is another when the run is done, that was in vain."""

    identity: dict[str, Any] | None
    live_generation: int
    inputs: dict[str, Input | None]
    """What the generation that it adds to had of its inputs."""

    @classmethod
    def of(cls, state: DataSet, generation: int, inputs: Collection[str]) -> Basis:
        scored = state.generations.get(generation, Generation()).inputs
        return cls(state.identity, state.live_generation, {path: scored.get(path) for path in inputs})


@dataclass(frozen=True)
class Job:
    """A run that was submitted."""

    draft: Manifest
    """What is to be committed; its number, files and counts come at the end."""
    basis: Basis
    runner: str
    max_dead_fraction: float
    job: str | None = None
    """What the runner calls it; None before that is known."""
    completed: dict[str, list[int]] | None = None
    """Each input, as text, and of it: parts left, records read, notices. None while it goes on."""

    @property
    def run_id(self) -> str:
        return self.draft.run_id

    @property
    def said(self) -> str:
        """For people."""
        name = f"job {self.job}" if self.job else "a job"
        return f"{name}, submitted to {self.runner} at {self.draft.started}"

    @property
    def state(self) -> str:
        """How far it is, for people."""
        if self.completed is None:
            return "which has not finished"
        return "which is done; pipelines.annotate, pipelines.compact or pipelines.verify --clean takes in its result"


def write(output: str, job: Job) -> None:
    """Describe a run: before it starts, and when the name of its job is known.

    Raises:
        InputError, RunError: if the output cannot be written.
    """
    values = dataclasses.asdict(job)
    del values["completed"]
    path = f"{job_directory(output, job.run_id)}/{JOB}"
    try:
        storage.publish(path, json.dumps(values, indent=1).encode(), f"{path}.tmp")
    except OSError as error:
        raise lock.unwritable(output, error) from None


def remove(output: str, run_id: str) -> None:
    """Delete what is said of a run; then its files are those of one that has died, if no manifest lists them.

    Raises:
        OSError: if it cannot be deleted.
    """
    directory = job_directory(output, run_id)
    storage.delete([f"{directory}/{JOB}"])  # first: without its completion the run would seem to go on
    storage.delete_directory(directory)
    storage.remove_empty(f"{output}/{JOBS}", deep=False)


def remove_given_up(output: str) -> None:
    """Delete completions of runs that are not described any more: a person has given them up, and they went on.

    To be called by the holder of the lock, under which runs are described.

    Raises:
        OSError: if something cannot be read or deleted.
    """
    for file in storage.match([f"{output}/{JOBS}/*/{COMPLETED}"]):
        run_id = file.path.split("/")[-2]
        if not storage.exists(f"{job_directory(output, run_id)}/{JOB}"):
            remove(output, run_id)


def completion(output: str, run_id: str) -> str:
    """The file by which a run says that all of its work is done."""
    return f"{job_directory(output, run_id)}/{COMPLETED}"


def read(output: str) -> dict[str, Job]:
    """All of an output, by their runs.

    Raises:
        InputError, RunError: if one cannot be read.
    """
    try:
        found = [job for file in storage.match([f"{output}/{JOBS}/*/{JOB}"]) if (job := _read(output, file.path))]
    except OSError as error:
        raise manifest.cannot_read(f"output {output}/{JOBS}", error) from error
    return {job.run_id: job for job in found}


def _read(output: str, path: str) -> Job | None:
    """None if it is gone: another command has just taken it in."""
    try:
        values = json.loads(storage.read_bytes(path))
        draft = manifest.of_values(values["draft"])
        basis = values["basis"]
        inputs = {name: entry and Input(**entry) for name, entry in basis["inputs"].items()}
        job = Job(**values | {"draft": draft, "basis": Basis(**basis | {"inputs": inputs})})
        if job.run_id != path.split("/")[-2]:
            raise ValueError("of another run")
        path_of_counts = completion(output, job.run_id)
        if not storage.exists(path_of_counts):
            return job
        counts = json.loads(storage.read_bytes(path_of_counts))["inputs"]
        completed = {name: [int(parts), int(read), int(notices)] for name, (parts, read, notices) in counts.items()}
        return dataclasses.replace(job, completed=completed)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not what a submitted job has there ({error}); restore it from a copy, or if the job has ended "
            f"for certain, delete {path.rpartition('/')[0]}: its inputs are then scored again"
        ) from None


def is_of(path: str, run_ids: Collection[str]) -> bool:
    """Whether a file below an output is of one of some runs."""
    name, parts = path.rpartition("/")[2], path.split("/")
    return any(name.startswith(f"part-{run_id}-") or parts[:2] == [TEMPORARY, run_id] for run_id in run_ids)


def check_none(output: str, found: Iterable[Job]) -> None:
    """Make sure that no submitted run is going on, whose inputs would be scored twice.

    Args:
        output: where it would write.
        found: the runs of that output.

    Raises:
        LockHeldError: if one may be.
    """
    for job in found:
        if job.completed is None:
            raise LockHeldError(
                f"{output} is being written by {job.said}; wait for its end, or if it has failed or was cancelled for "
                f"certain, delete {job_directory(output, job.run_id)}"
            )
