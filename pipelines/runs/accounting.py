"""What a run did: every record that was met is accounted for, and what was written is described for the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.cli.options import ScoreConfig
from pipelines.data_set.liveness import this_process
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from pipelines.data_set.pending import Stream
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.identity import identity, identity_of_stream
from pipelines.runs.plan import Plan
from torchmoji_core import __version__
from torchmoji_core.errors import (
    RunError,
)
from torchmoji_core.files import name_as_text
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


def describe_commit(plan: Plan, finished: Finished, target: DataSet, kind: str, started: datetime) -> Manifest:
    """The manifest of a finished run.

    Args:
        plan: what was to be done.
        finished: what was done.
        target: the data set that it is for.
        kind: name of the command.
        started: when.
    """
    rows: Counter[str] = Counter()
    dead_letters: Counter[str] = Counter()
    for file in finished.files:
        rows.update(file.sources)
    for file in finished.dead_letters:
        dead_letters.update(file.sources)
    tells_source = "source" in plan.config.score.outputs
    model = plan.model
    return Manifest(
        sequence=target.next_sequence,
        run_id=plan.run_id,
        kind=kind,
        status="done",
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        identity=identity(plan.config),
        model=Model(model.name, model.fingerprint, model.arithmetic),
        inputs=tuple(
            Input(
                file.path,
                file.bytes_,
                file.modified,
                named_format(file.path, plan.config.form.format),
                rows[name_as_text(file.path)] if tells_source else None,
                dead_letters[name_as_text(file.path)],
            )
            for file in plan.files
        ),
        files=finished.files,
        dead_letters=finished.dead_letters,
        generation=target.live_generation,
        counts=finished.counts,
    )


def describe_stream(plan: Plan, started: datetime, options: Mapping[str, Any]) -> Stream:
    """What the journal says of an endless run.

    Args:
        plan: what it will do.
        started: when.
        options: as of `identity_of_stream`.
    """
    model = plan.model
    return Stream(
        run_id=plan.run_id,
        started=started.isoformat(timespec="seconds"),
        code_version=__version__,
        identity=identity_of_stream(plan.config, options),
        model=Model(model.name, model.fingerprint, model.arithmetic),
        process=this_process() if plan.config.is_local else None,
    )


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


def reconcile(counts: dict[str, int], written: Sequence[DataFile]) -> None:
    """Check that every record met is scored, empty, dead or a notice, and every row and dead letter is in a file.

    Raises:
        RunError: with the figures.
    """
    in_files = sum(file.rows for file in written if not is_dead(file))
    dead_in_files = sum(file.rows for file in written if is_dead(file))
    rows, dead = counts.get(metrics.ROWS_WRITTEN, 0), counts.get(metrics.DEAD, 0)
    if unaccounted(counts) or (in_files, dead_in_files) != (rows, dead):
        raise RunError(
            f"{_figures(counts)}, rows in files {in_files}, dead letters in files {dead_in_files}; this is a fault of "
            "the program, and the results were removed"
        )


def unaccounted(counts: dict[str, int]) -> str | None:
    """The figures of a run that has not written, or rejected, each record that it met; None if it has."""
    read, scored, empty, dead, notices, rows = (counts.get(name, 0) for name in _ACCOUNT)
    return None if read == scored + empty + dead + notices and rows == scored + empty else _figures(counts)


_ACCOUNT = (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.NOTICES, metrics.ROWS_WRITTEN)


def _figures(counts: dict[str, int]) -> str:
    return "the counts do not add up: " + ", ".join(
        f"{name.replace('_', ' ')} {counts.get(name, 0)}" for name in _ACCOUNT
    )
