"""python -m pipelines.score: tweets in, emoji distributions and embeddings in Parquet out."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import DONE, TOO_MANY_DEAD_LETTERS, run_command
from pipelines.logs import announce
from pipelines.options import parse
from torchmoji_core import __version__
from torchmoji_core.errors import RunError, TorchMojiError

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

    from pipelines.plan import Plan

_LOGGER = logging.getLogger(__name__)

WORKER_LOG = "workers.log"


def build_pipeline(pipeline: beam.Pipeline, plan: Plan, progress: str | None = None) -> None:
    """Add the whole job to a pipeline: read, annotate, write scores and dead letters."""
    import apache_beam as beam

    from transforms import AnnotateTweets, ReadTweets, WriteDeadLetters, WriteScores

    config, score = plan.config, plan.config.score
    read = pipeline | "ReadTweets" >> ReadTweets(list(config.inputs), config.format, config.fields, progress)
    annotated = read.results | "AnnotateTweets" >> AnnotateTweets(
        **vars(score) | {"limits": config.limits, "progress": progress}
    )
    annotated.results | "WriteScores" >> WriteScores(config.output, plan.run_id, config.rows_per_file)
    dead = (read.dead_letters, annotated.dead_letters) | "DeadLetters" >> beam.Flatten()
    dead | "WriteDeadLetters" >> WriteDeadLetters(config.output, plan.run_id)


def main(arguments: list[str]) -> int:
    """Parse, plan, run, report. Returns the exit status."""
    config, rest = parse(arguments)

    from pipelines.figures import reported
    from pipelines.plan import make_plan
    from pipelines.runners import make_runner, pipeline_options

    options = pipeline_options(config, rest)
    with (
        reported(config.report, config.dry_run, output=config.output) as figures,
        # An interrupted run has threads that still write there.
        tempfile.TemporaryDirectory(prefix="torchmoji-", ignore_cleanup_errors=True) as scratch,
    ):
        runner = make_runner(config, options, f"{scratch}/{WORKER_LOG}")
        plan = make_plan(config)
        figures.update(run_id=plan.run_id, model=plan.model.name, fingerprint=plan.model.fingerprint)
        announce("plan", plan.describe(), input_files=len(plan.files), input_bytes=plan.input_bytes, **figures)
        if config.dry_run:
            announce("dry_run", "dry run: nothing was scored or written")
            return DONE
        figures["exit_status"] = run(plan, runner, options, scratch, figures)
        return int(figures["exit_status"])


def run(plan: Plan, runner: PipelineRunner, options: PipelineOptions, scratch: str, figures: dict[str, Any]) -> int:
    """Run a plan to its end and account for every record.

    Args:
        plan: what to do.
        runner: where.
        options: for Beam.
        scratch: local directory for progress counts and the log of worker processes.
        figures: of this run; gets its counts.

    Raises:
        RunError: if the run fails, or its counts do not add up. What it has written by then is removed.
    """
    import apache_beam as beam

    from pipelines import manifest, report
    from transforms import metrics

    config = plan.config
    started, clock = datetime.now(UTC), time.monotonic()
    mode = config.progress if config.is_local else "off"
    progress = Path(scratch, "progress")
    progress.mkdir()
    try:
        with report.ProgressDisplay(str(progress), plan.input_bytes, mode), _worker_log(plan, scratch):
            pipeline = beam.Pipeline(runner=runner, options=options)
            build_pipeline(pipeline, plan, str(progress) if mode != "off" else None)
            result = pipeline.run()
            result.wait_until_finish()
        counts = report.counters(result)
        reconcile(counts)
        dead_fraction = counts.get(metrics.DEAD, 0) / max(counts.get(metrics.READ, 0), 1)
        too_many = dead_fraction > config.max_dead_fraction
        manifest.write(config.output, _manifest(plan, counts, started, "too many dead letters" if too_many else "done"))
    except BaseException as error:
        _clean_up(plan)
        if isinstance(error, Exception):
            raise RunError(explain(error, config.output, Path(scratch, WORKER_LOG))) from error
        raise
    for earlier in plan.replaced:
        manifest.remove_run(config.output, earlier["run_id"])
    manifest.remove_temporary(config.output, plan.run_id)
    seconds = time.monotonic() - clock
    figures.update(counts)
    summary = report.summary(counts, plan.model.classes, seconds, plan.model.fingerprint, config.output)
    announce("summary", summary, seconds=round(seconds, 3), **figures)
    if too_many:
        announce(
            "too_many_dead_letters",
            f"too many dead letters: {dead_fraction:.1%} of what was read, above --max_dead_fraction "
            f"{config.max_dead_fraction:.1%}; reasons are in {config.output}/_dead_letters",
            level=logging.ERROR,
        )
        return TOO_MANY_DEAD_LETTERS
    return DONE


@contextlib.contextmanager
def _worker_log(plan: Plan, scratch: str) -> Iterator[None]:
    """What the threads of a local run print goes where processes print it: Beam prints every error that it raises."""
    if not plan.config.is_local:
        yield
        return
    with Path(scratch, WORKER_LOG).open("a") as log, contextlib.redirect_stderr(log):
        yield


def reconcile(counts: dict[str, int]) -> None:
    """Check that every record met is scored, empty or dead, and every row is in a file.

    Raises:
        RunError: with the figures.
    """
    from transforms import metrics

    read, scored, empty, dead, rows = (
        counts.get(name, 0)
        for name in (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.ROWS_WRITTEN)
    )
    if read != scored + empty + dead or rows != scored + empty:
        raise RunError(
            f"the counts do not add up: read {read}, scored {scored}, empty {empty}, dead {dead}, rows written {rows}; "
            "this is a fault of the program, and the results were removed"
        )


def explain(error: BaseException, output: str, worker_log: Path | None = None) -> str:
    """One line for a failed run; what is not foreseen is logged with its traceback as well.

    Worker processes hand over their errors as text only, so it is the text that is searched.
    """
    text = str(error)
    if "No space left on device" in text or "Errno 28" in text:
        return f"disk full while writing {output}; free space and run again, nothing was left under a final name"
    if "File too large" in text or "Errno 27" in text:
        return f"a file in {output} hit the size limit (ulimit -f); lower --rows_per_file or raise the limit"
    if "MemoryError" in text or isinstance(error, MemoryError):
        return "out of memory; lower --max_batch_tokens or --direct_num_workers"
    ours = re.search(r"torchmoji_core\.errors\.\w+: (.*)", text)
    if ours or isinstance(error, TorchMojiError):
        return (ours[1] if ours else text).partition(" [while running")[0]
    _LOGGER.error("the run failed", exc_info=error)
    if worker_log is not None and worker_log.exists() and (log := worker_log.read_text(errors="replace")):
        _LOGGER.error("the workers' last words:\n%s", log[-2000:])
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"


def _clean_up(plan: Plan) -> None:
    from pipelines import manifest

    try:
        manifest.remove_run(plan.config.output, plan.run_id)
        manifest.remove_temporary(plan.config.output, plan.run_id)
    except Exception as error:  # the output may be gone or unwritable, and the first error is the one to report
        _LOGGER.warning("could not clean up %s: %s", plan.config.output, error)


def _manifest(plan: Plan, counts: dict[str, int], started: datetime, status: str) -> dict[str, Any]:
    from pipelines import manifest

    config = plan.config
    return {
        "version": manifest.VERSION,
        "run_id": plan.run_id,
        "status": status,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": __version__,
        "identity": manifest.identity(config),
        "model": {"name": plan.model.name, "fingerprint": plan.model.fingerprint},
        "inputs": [{"path": path, "bytes": size, "format": kind} for path, size, kind in plan.files],
        "files": [{"path": path, "bytes": size} for path, size in manifest.files_of_run(config.output, plan.run_id)],
        "counts": counts,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
