"""What a run did: accounts for every record that was read, and describes the files written, for the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cli.options import ScoreConfig
from pipelines.data_set.liveness import this_process
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model, now, with_rows
from pipelines.data_set.pending import Stream
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.identity import identity
from pipelines.runs.plan import Plan
from torchmoji_core import __version__
from torchmoji_core.errors import RunError
from transforms import metrics
from transforms.input.forms import named_format
from transforms.output.commit import DEAD_LETTERS, WrittenFile


@dataclass(frozen=True)
class Finished:
    """What a run did. Its files are in place, but results only once a manifest lists them."""

    counts: dict[str, int]
    files: tuple[DataFile, ...]
    dead_letters: tuple[DataFile, ...]
    seconds: float
    arithmetics: frozenset[str] = frozenset()
    """Of the workers that scored, as their files say; on clusters they may differ."""


def describe_commit(
    plan: Plan, finished: Finished, state: DataSet, kind: str, started: str, **changes: Any
) -> Manifest:
    """The manifest of a finished run.

    Args:
        plan: what was to be done.
        finished: what was done.
        state: of the data set that it is to follow.
        kind: name of the command.
        started: when, as `manifest.now` says it.
        **changes: further fields, or others than follow from that.
    """
    tells_source = "source" in plan.config.score.outputs
    inputs = (
        Input(
            file.path,
            file.bytes_,
            file.modified,
            named_format(file.path, plan.config.form.format),
            0 if tells_source else None,
        )
        for file in plan.files
    )
    fields = {
        "run_id": plan.run_id,
        "started": started,
        "identity": identity(plan.config),
        "model": _model(plan, finished.arithmetics),
        "inputs": tuple(with_rows(inputs, finished.files, finished.dead_letters)),
        "files": finished.files,
        "dead_letters": finished.dead_letters,
        "counts": finished.counts,
    }
    return state.next_manifest(kind, **fields | changes)


def describe_stream(plan: Plan) -> Stream:
    """What is said of an endless run before it starts, beside its pending files."""
    return Stream(
        run_id=plan.run_id,
        started=now(),
        code_version=__version__,
        identity=identity(plan.config),
        model=_model(plan, frozenset()),
        process=this_process() if plan.config.is_local else None,
    )


def _model(plan: Plan, arithmetics: frozenset[str]) -> Model:
    said = ", ".join(sorted(arithmetics)) or plan.model.arithmetic
    return Model(plan.model.name, plan.model.fingerprint, said)


def too_many_dead_letters(counts: dict[str, int], config: ScoreConfig) -> str | None:
    """What to say if more of what was read than allowed became dead letters; None if not."""
    fraction = counts.get(metrics.DEAD, 0) / max(counts.get(metrics.READ, 0), 1)
    if fraction <= config.max_dead_fraction:
        return None
    return (
        f"too many dead letters: {fraction:.1%} of what was read, above --max_dead_fraction "
        f"{config.max_dead_fraction:.1%}; reasons are in {config.output}/{DEAD_LETTERS}"
    )


def data_file(output: str, file: WrittenFile) -> DataFile:
    return DataFile(file.final.removeprefix(f"{output}/"), file.rows, file.bytes_, file.sha256, file.sources)


def is_dead(file: DataFile) -> bool:
    return file.path.startswith(f"{DEAD_LETTERS}/")


def reconcile(counts: dict[str, int], written: Sequence[DataFile], inputs: int) -> None:
    """Check that every record met is scored, empty, dead or a notice, and every row and dead letter is in a file.

    Args:
        counts: of the run.
        written: what it has put in place.
        inputs: files that it was to read. A runner that gives no counts would otherwise pass: 0 is 0.

    Raises:
        RunError: with the figures.
    """
    if counts.get(metrics.FILES_READ, 0) < inputs:
        raise RunError(
            f"the runner says that it is done, and has counted {counts.get(metrics.FILES_READ, 0):,} of {inputs:,} "
            "input(s); what was written was removed"
        )
    in_files = sum(file.rows for file in written if not is_dead(file))
    dead_in_files = sum(file.rows for file in written if is_dead(file))
    rows, dead = counts.get(metrics.ROWS_WRITTEN, 0), counts.get(metrics.DEAD, 0)
    if unaccounted(counts) or (in_files, dead_in_files) != (rows, dead):
        raise RunError(
            f"{_figures(counts)}, rows in files {in_files}, dead letters in files {dead_in_files}; this is a fault of "
            "the program, and the results were removed"
        )


def unaccounted(counts: dict[str, int]) -> str | None:
    """The figures of a run, if some record was neither written nor rejected; None if all are accounted for."""
    read, scored, empty, dead, notices, rows = (counts.get(name, 0) for name in _ACCOUNT)
    return None if read == scored + empty + dead + notices and rows == scored + empty else _figures(counts)


_ACCOUNT = (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.NOTICES, metrics.ROWS_WRITTEN)


def _figures(counts: dict[str, int]) -> str:
    return "the counts do not add up: " + ", ".join(
        f"{name.replace('_', ' ')} {counts.get(name, 0)}" for name in _ACCOUNT
    )
