"""One bounded run of the pipeline: build it, run it, account for every record, say which files it has written."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipelines.cli.interrupts import heed_interrupt
from pipelines.cli.logs import announce, quoted
from pipelines.cli.options import ScoreConfig
from pipelines.data_set.journal import Stream
from pipelines.data_set.manifest import DataFile, Input, Manifest, Model
from pipelines.data_set.processes import this_process
from pipelines.data_set.recovery import announce_run, discard_run, remove_temporary
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import report
from pipelines.runs.identity import identity, identity_of_stream
from pipelines.runs.local_workers import WORKER_DIED
from pipelines.runs.plan import Plan
from pipelines.runs.session import WORKER_LOG, Session
from pipelines.runs.stream_stages import model_updates, publish_scores, read_messages
from pipelines.runs.watchdog import Watchdog
from torchmoji_core import __version__
from torchmoji_core.errors import (
    DISK,
    FILE_SIZE,
    FILES,
    MEMORY,
    THREADS,
    RunError,
    TorchMojiError,
    first_line,
    shortage_of,
)
from torchmoji_core.files import name_as_text
from transforms import AnnotateTweets, HoldOptions, ReadTweets, WriteDeadLetters, WriteScores, metrics
from transforms.input.formats import resolve_format
from transforms.input.read import UnreadableInput, unreadable_path
from transforms.output.commit import DEAD_LETTERS, WrittenFile, committed_files

_LOGGER = logging.getLogger(__name__)


def _names_of_errors(kind: type[OSError]) -> list[str]:
    return [kind.__name__, *(name for each in kind.__subclasses__() for name in _names_of_errors(each))]


_STORAGE_ERROR = rf"(?m)^(?:\w+\.)*(?:{'|'.join(dict.fromkeys(_names_of_errors(OSError)))}): (.*)"
"""The end of a traceback, in text, of what a store or a disk has refused."""


@dataclass(frozen=True)
class Finished:
    """What a run did. Its files are in place, but results only once a manifest lists them."""

    counts: dict[str, int]
    files: tuple[DataFile, ...]
    dead_letters: tuple[DataFile, ...]
    seconds: float


def build_pipeline(
    pipeline: beam.Pipeline,
    plan: Plan,
    progress: str | None = None,
) -> None:
    """Add the whole job to a pipeline: read, annotate, write scores and dead letters.

    Endless input differs in its source and its windows, in what holds tweets until there are enough for a batch, and in
    that what is written goes to the journal, for there is no end at which it could be committed.

    Args:
        pipeline: an empty one.
        plan: what to do.
        progress: directory of `metrics.Progress`.

    Raises:
        InputError: if a source or sink cannot be used.
    """
    config, stream = plan.config, plan.config.stream
    for_streams: dict[str, Any] = {}
    if stream is None:
        read = pipeline | "ReadTweets" >> ReadTweets(plan.files, config.format, config.fields, progress, plan.strict)
    else:
        read = read_messages(pipeline, config, stream)
        for_streams = {
            "hold": HoldOptions(stream.max_latency, stream.shards),
            "model_updates": model_updates(pipeline, config, stream),
        }
    score = dataclasses.replace(config.score, progress=progress)
    annotated = read.results | "AnnotateTweets" >> AnnotateTweets(options=score, limits=config.limits, **for_streams)
    is_stream = stream is not None
    annotated.results | "WriteScores" >> WriteScores(
        config.output, plan.run_id, config.rows_per_file, journal=is_stream, measure_latency=is_stream
    )
    dead = (*read.dead_letters, *annotated.dead_letters)
    dead | "WriteDeadLetters" >> WriteDeadLetters(config.output, plan.run_id, journal=is_stream)
    if stream is not None and stream.publish is not None:
        annotated.results | "PublishScores" >> publish_scores(stream)


def execute(plan: Plan, session: Session) -> Finished:
    """Run a plan to its end and account for every record.

    Args:
        plan: what to do.
        session: where.

    Raises:
        RunError: if the run fails, or its counts do not add up. What it has written by then is removed.
        UnreadableInput: if an input of a strict plan cannot be opened.
    """
    config = plan.config
    clock = time.monotonic()
    mode = config.progress if config.is_local else "off"
    progress = Path(session.scratch, f"progress-{plan.run_id}")
    progress.mkdir()
    try:
        with (
            report.ProgressDisplay(str(progress), plan.input_bytes, mode),
            _watchdog(plan, session, str(progress)),
            _worker_log(plan, session.scratch),
        ):
            announce_run(config.output, plan.run_id)
            pipeline = beam.Pipeline(runner=session.runner, options=session.options)
            build_pipeline(pipeline, plan, str(progress) if config.is_local else None)
            result = pipeline.run()
            result.wait_until_finish()
        counts = report.counters(result)
        written = [_data_file(config.output, file) for file in committed_files(config.output, plan.run_id)]
        reconcile(counts, written)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            heed_interrupt()
        clean_up(plan, session.data_set)
        if isinstance(error, UnreadableInput) or not isinstance(error, Exception):
            raise
        path = unreadable_path(str(error))
        if path is not None:
            reason = str(error).partition("cannot be opened: ")[2].partition(" [while running")[0]
            raise UnreadableInput(path, reason.splitlines()[0]) from error
        raise RunError(explain(error, config.output, Path(session.scratch, WORKER_LOG))) from error
    finally:
        shutil.rmtree(progress, ignore_errors=True)
    files = tuple(file for file in written if not _is_dead(file))
    dead_letters = tuple(file for file in written if _is_dead(file))
    return Finished(counts, files, dead_letters, time.monotonic() - clock)


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
                resolve_format(file.path, plan.config.format),
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


def _data_file(output: str, file: WrittenFile) -> DataFile:
    return DataFile(file.final.removeprefix(f"{output}/"), file.rows, file.bytes_, file.sha256, file.sources)


def _is_dead(file: DataFile) -> bool:
    return file.path.startswith(f"{DEAD_LETTERS}/")


def commit(plan: Plan, session: Session, decide: Callable[[DataSet], Manifest | None]) -> bool:
    """Make a run's files results, or remove them.

    Args:
        plan: what was to be done.
        session: where.
        decide: as of `DataSet.commit`.

    Returns:
        Whether they are results; if not, nothing was left to be done.

    Raises:
        RunError: if the manifest cannot be written.
        InputError, RunError: as `DataSet.commit`, and what `decide` raises.
    """
    target = session.data_set
    decided = 0

    def counted(state: DataSet) -> Manifest | None:
        nonlocal decided
        decided += 1
        return decide(state)

    try:
        change = target.commit(counted)
    except BaseException as error:
        # If the manifest is there, the files are results, whatever came after.
        clean_up(plan, target)
        if isinstance(error, OSError):
            raise RunError(explain(error, target.output)) from error
        raise
    if change is not None and decided == 1:
        remove_temporary(target.output, plan.run_id)
    else:
        clean_up(plan, target)  # what was written for a state that was no more
    target.publish()
    return change is not None


def clean_up(plan: Plan, target: DataSet) -> None:
    """Remove what a run has written and no manifest lists. Where that cannot be done, the next command does it."""
    try:
        discard_run(target, plan.run_id)
    except (OSError, TorchMojiError) as error:  # the output may be gone, and the first error is the one to report
        _LOGGER.warning("could not clean up %s: %s", target.output, error)


def _watchdog(plan: Plan, session: Session, progress: str) -> Watchdog:
    """What ends a local run that does not get on; clusters have their own."""
    dump = getattr(session.runner, "dump_stacks", lambda: None)
    return Watchdog(
        lambda: metrics.Progress.state(progress),
        plan.config.stall_timeout if plan.config.is_local else 0.0,
        dump,
        Path(session.scratch, WORKER_LOG),
    )


@contextlib.contextmanager
def _worker_log(plan: Plan, scratch: str) -> Iterator[None]:
    """What the threads of a local run print goes where processes print it: Beam prints every error that it raises."""
    if not plan.config.is_local:
        yield
        return
    file = Path(scratch, WORKER_LOG)
    with file.open("a", encoding="utf-8", errors="backslashreplace") as log, contextlib.redirect_stderr(log):
        yield


def reconcile(counts: dict[str, int], written: Sequence[DataFile]) -> None:
    """Check that every record met is scored, empty or dead, and every row and dead letter is in a file.

    Raises:
        RunError: with the figures.
    """
    in_files = sum(file.rows for file in written if not _is_dead(file))
    dead_in_files = sum(file.rows for file in written if _is_dead(file))
    rows, dead = counts.get(metrics.ROWS_WRITTEN, 0), counts.get(metrics.DEAD, 0)
    if unaccounted(counts) or (in_files, dead_in_files) != (rows, dead):
        raise RunError(
            f"{_figures(counts)}, rows in files {in_files}, dead letters in files {dead_in_files}; this is a fault of "
            "the program, and the results were removed"
        )


def unaccounted(counts: dict[str, int]) -> str | None:
    """The figures of a run that has not written, or rejected, each record that it met; None if it has."""
    read, scored, empty, dead, rows = (counts.get(name, 0) for name in _ACCOUNT)
    return None if read == scored + empty + dead and rows == scored + empty else _figures(counts)


_ACCOUNT = (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.ROWS_WRITTEN)


def _figures(counts: dict[str, int]) -> str:
    return "the counts do not add up: " + ", ".join(
        f"{name.replace('_', ' ')} {counts.get(name, 0)}" for name in _ACCOUNT
    )


_REMEDIES = {
    DISK: "disk full while writing {output}; free space and run again, nothing was left under a final name",
    FILE_SIZE: "a file in {output} hit the size limit (ulimit -f); lower --rows_per_file or raise the limit",
    MEMORY: f"{MEMORY.what}; lower --max_batch_tokens, --threads or --direct_num_workers, or {MEMORY.remedy}",
    THREADS: f"{THREADS.what}; lower --threads or --direct_num_workers, or {THREADS.remedy}",
    FILES: f"{FILES.what}; {FILES.remedy}",
}
"""By what a failed run was short of."""


def explain(error: BaseException, output: str, worker_log: Path | None = None) -> str:
    """One line for a failed run; what is not foreseen is logged with its traceback as well.

    Worker processes hand over their errors as text only, so it is the text that is searched.
    """
    text = str(error)
    shortage = shortage_of(error) or shortage_of(text)
    if shortage is not None:
        return _REMEDIES[shortage].format(output=output)
    if "Channel closed prematurely" in text or WORKER_DIED in text:
        return (
            "a worker process died: killed, or out of memory; run again, with a lower --max_batch_tokens or "
            "--direct_num_workers if memory was short"
        )
    ours = re.search(r"torchmoji_core\.errors\.\w+: (.*)", text)
    if ours or isinstance(error, TorchMojiError):
        return (ours[1] if ours else text).partition(" [while running")[0]
    if isinstance(error, OSError):
        return first_line(error)
    # The last one is the cause of the others.
    if of_storage := re.findall(_STORAGE_ERROR, text):
        return str(of_storage[-1]).partition(" [while running")[0]
    _LOGGER.error("the run failed", exc_info=error)
    if worker_log is not None and worker_log.exists() and (log := worker_log.read_text("utf-8", "replace")):
        announce("workers_log", ["the workers' last words:", *quoted(log[-2000:])], level=logging.ERROR)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
