"""What `pipelines.annotate` does: look for what is new and annotate it; with --every TIME wait, and look again.

A look that finds nothing new costs no more than the listing. Otherwise the lock is taken, and the work of runs that
died is gone on with, so every row is there once. The model is loaded once.

Files that go on coming are read by a loop of bounded runs, not by a source without end: Beam's `MatchContinuously`
forgets at a restart what it has read, and never reads again what has changed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from pipelines.cli.annotate_options import AnnotateConfig
from pipelines.cli.exits import DONE, FAILED, LOCK_HELD, TOO_MANY_DEAD_LETTERS, failure
from pipelines.cli.interrupts import is_ending, told_to_stop
from pipelines.cli.logs import announce
from pipelines.data_set.snapshot import DataSet
from pipelines.runs import progress, submission
from pipelines.runs.accounting import too_many_dead_letters
from pipelines.runs.annotation import Annotation, announce_plan, list_all, prepare
from pipelines.runs.context import RunContext, locked, open_context
from pipelines.runs.inputs import Inputs
from pipelines.runs.plan import ModelFacts, check_model
from pipelines.runs.run_report import report_so_far
from torchmoji_core.errors import LockHeldError
from transforms import metrics
from transforms.scoring.loaded_model import LoadedModel, load_model

STOP_SECONDS = 5.0
"""For the group of files that it is at when it is told to stop; then that is left to the next run."""


def run(config: AnnotateConfig, rest: list[str], wait: Callable[[float], object] | None = None) -> int:
    """Annotate what is there and, with --every, what comes until a signal ends it. Returns the exit status.

    Args:
        config: what to do.
        rest: options for Beam.
        wait: waits for so many seconds; what it returns is true to stop then. None to wait for a signal meanwhile.

    Raises:
        InputError: if there is no use in trying again; what was committed before stays.
        RunError: if a run makes no progress; without --every, if it fails.
        LockHeldError: if another run is writing there; with --every only of a dry run, others wait.
    """
    with open_context(config.score, rest) as context:
        if config.every is None or config.score.dry_run:
            looks = _Looks(config, context, threading.Event())
            status = looks.annotate()
        else:
            with told_to_stop(STOP_SECONDS) as stop:
                looks = _Looks(config, context, stop)
                status = looks.look()
                while not (wait or stop.wait)(config.every):
                    status = looks.look()
        looks.finish()
        context.figures["exit_status"] = status
        return status


class _Looks:
    """What is known from one look to the next."""

    def __init__(self, config: AnnotateConfig, context: RunContext, stop: threading.Event) -> None:
        self._config, self._context, self._stop = config, context, stop
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._model: ModelFacts | None = None
        self._loaded: LoadedModel | None = None
        """Held, so that every run finds it."""
        self._done: Inputs | None = None
        """What was found last, if nothing is left to be done with it."""
        self._is_planned = self._had_work = self._has_submitted = False
        self._counts: Counter[str] = Counter()
        self._committed = 0
        self._before: set[str] = set()
        """What was wrong at the last look."""
        self._wrong: set[str] = set()
        """What is wrong at this one."""
        self._suffixes: set[str] = set()
        """Names that are passed over, and have been reported as such."""

    def look(self) -> int:
        """As `annotate`, but an error that may pass is reported, and left to the next look.

        Raises:
            Exception: an error that does not pass by itself.
        """
        config, figures = self._config.score, self._context.figures
        self._before, self._wrong = self._wrong, set()
        failed: dict[str, str] = {}
        try:
            status = self.annotate()
        except LockHeldError as error:
            self._say("lock_held", f"waiting: {error}", logging.WARNING, about="the lock")
            return LOCK_HELD
        except Exception as error:
            reason = failure(error)
            if reason is None or is_ending():
                raise
            status, failed = FAILED, {"error": str(error)}
            # Whatever it was, nothing is taken as known.
            self._context.data_set, self._done = DataSet(config.output), None
            self._say("failed", f"failed, and tried again: {reason}", logging.ERROR)
        if status == DONE and too_many_dead_letters(self._counts, config):
            status = TOO_MANY_DEAD_LETTERS
        report_so_far(config.report, figures | failed | {"exit_status": status}, self._started)
        return status

    def annotate(self) -> int:
        """Annotate what is new. Returns the exit status of a command that ends then.

        Raises:
            Exception: whatever fails.
        """
        config, context = self._config, self._context
        if self._done is not None and list_all(config, context.data_set) == self._done:
            return DONE
        with locked(context, config.lock_timeout):
            self._model = self._model or check_model(config.score)
            annotation = prepare(config, context, self._model, self._stop)
            if config.score.no_wait:
                submission.check(annotation.plan, context)
            if not self._is_planned:
                announce_plan(annotation)
            if config.score.dry_run:
                return DONE
            self._had_work |= not annotation.selection.is_empty
            self._hold_model(annotation)
            clock = time.monotonic()
            try:
                annotation.run()
            finally:
                self._take_stock(annotation, time.monotonic() - clock)
        self._done = annotation.selection.found if annotation.is_complete else None
        return annotation.status

    def _hold_model(self, annotation: Annotation) -> None:
        """Keep the model for further looks, where they use it in this process."""
        config = annotation.plan.config
        if self._config.every is None or self._loaded is not None or not annotation.selection.work:
            return
        if config.is_local and config.local_workers == 1:
            options = annotation.plan.with_new_run(()).config.score
            self._loaded = load_model(options.model, options)

    def _take_stock(self, annotation: Annotation, seconds: float) -> None:
        """Say what was done and what was not, and add it to the figures."""
        self._counts.update(annotation.counts)
        self._has_submitted |= annotation.submitted > 0
        self._committed += annotation.committed
        self._context.figures.update(annotation.figures | self._counts, inputs_committed=self._committed)
        files, counts = annotation.committed, annotation.counts
        if files and self._config.every is not None:
            rows, dead = counts[metrics.ROWS_WRITTEN], counts[metrics.DEAD]
            said = f"committed   {files:,} file(s), {rows:,} rows, {dead:,} dead letters, in {seconds:.1f} s"
            announce("committed", said, files=files, rows=rows, dead=dead, seconds=round(seconds, 3))
        for event, said, level, fields in annotation.complaints():
            self._say(event, said, level, **fields)
        if warning := too_many_dead_letters(counts, self._config.score):
            announce("too_many_dead_letters", warning, level=logging.ERROR)
        for path in annotation.selection.found.passed_over:
            suffix, is_hidden = PurePosixPath(path).suffix, PurePosixPath(path).name.startswith((".", "_"))
            if self._is_planned and not is_hidden and suffix not in self._suffixes:
                announce("passed_over", f"passed over {path}, and others of such names", level=logging.WARNING)
            self._suffixes.add(suffix)
        self._is_planned = True

    def _say(self, event: str, said: str, level: int, about: str | None = None, **fields: Any) -> None:
        """Say what is wrong once, until it has passed; it is the same fault if it is about the same thing."""
        about = about or said
        if about not in self._before | self._wrong:
            announce(event, said, level=level, **fields)
        self._wrong.add(about)

    def finish(self) -> None:
        """Say what all looks together have done."""
        if self._has_submitted:
            return  # and nothing is known of what comes of it
        if self._had_work and self._model is not None:
            seconds = time.monotonic() - self._clock
            progress.announce_summary(self._counts, seconds, self._model.classes, self._context.figures)
        elif self._is_planned:
            announce("nothing_new", "nothing is new: nothing was scored")
