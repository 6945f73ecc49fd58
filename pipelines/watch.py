"""A watched directory: what `pipelines.score --watch DIR` does, one bounded annotation run after the other.

Each look lists the files; only if some are new or changed, the lease is taken and they are scored and committed as by
`pipelines.annotate`, so whatever dies is gone on with and every row is there once. The model is loaded once.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Protocol

from apache_beam.io.filesystems import FileSystems

from pipelines import report
from pipelines.annotate_options import COMMIT_SECONDS, DEFAULT_LEASE, AnnotateConfig
from pipelines.annotation import Annotation, make_plan
from pipelines.command_line import DONE, TOO_MANY_DEAD_LETTERS
from pipelines.data_set import DataSet, recover, tidy
from pipelines.figures import write_report
from pipelines.interrupts import told_to_stop
from pipelines.lease import Lease
from pipelines.logs import announce
from pipelines.options import ScoreConfig
from pipelines.plan import Plan, check_model
from pipelines.run import too_many_dead_letters
from pipelines.selection import Selection, select
from pipelines.session import Workshop, open_workshop
from torchmoji_core.errors import InputError, LeaseHeldError
from transforms import metrics
from transforms.fields import DATE, HOUR
from transforms.formats import absolute, guess_format
from transforms.loaded_model import LoadedModel, load_model
from transforms.read import InputFile, list_files

KIND = "watch"
SETTLE_SECONDS = 2.0
"""A file waits until it has not changed for so long, or for the time between two looks if that is less. One whose
writer pauses for longer is scored as far as it is there, and again when it has changed."""
STOP_SECONDS = 5.0
"""For the group of files that it is at when it is told to stop; then that is left to the next run."""
RETRY_SECONDS = 60.0
"""How often a file is tried that could not be opened, and has not changed since."""
_LOGGER = logging.getLogger(__name__)


class Watch(Protocol):
    """How to watch."""

    @property
    def directory(self) -> str:
        """Directory, or glob, on any filesystem."""

    @property
    def poll(self) -> float:
        """Seconds between two looks at it."""


def run(config: ScoreConfig, rest: list[str], watch: Watch) -> int:
    """Score what is in a directory and what is put into it, until a signal ends it. Returns the exit status.

    Args:
        config: the command line; its inputs and partitions are set here.
        rest: options for Beam.
        watch: what to watch.

    Raises:
        InputError, RunError: as their names say; what was committed before stays.
        LeaseHeldError: if another run is writing there, of a dry run only; others wait.
    """
    pattern = absolute(watch.directory)
    if FileSystems.get_scheme(pattern) is None and not _is_in_a_directory(pattern):
        raise InputError(f"--watch {watch.directory}: there is no such directory; make it, or check the path")
    fields = dataclasses.replace(config.fields, partition_by=(DATE, HOUR))
    score = dataclasses.replace(
        config.score, outputs=tuple(dict.fromkeys((*config.score.outputs, "source"))), partitioned=True
    )
    config = dataclasses.replace(
        config,
        inputs=(pattern,),
        fields=fields,
        score=score,
        # A display for each of many short runs would be no help.
        progress="off" if config.progress == "auto" else config.progress,
    )
    annotate = AnnotateConfig(
        score=config,
        settle=min(SETTLE_SECONDS, watch.poll),
        on_changed="rescore",
        on_vanished="keep",
        rescore_with_new_model=False,
        commit_every=COMMIT_SECONDS,
        lease=DEFAULT_LEASE,
    )
    with open_workshop(config, rest) as workshop, told_to_stop(STOP_SECONDS) as stop:
        status = workshop.figures["exit_status"] = _Watcher(annotate, watch.poll, workshop, stop).run()
        return status


def _is_in_a_directory(pattern: str) -> bool:
    """Whether files may come that a glob matches; a directory that is there has become one."""
    directory, name = os.path.split(pattern)
    return bool(set("*?[") & set(name)) and any(map(os.path.isdir, glob.glob(directory)))  # noqa: PTH207


class _Watcher:
    """The loop."""

    def __init__(self, config: AnnotateConfig, poll: float, workshop: Workshop, stop: threading.Event) -> None:
        self._config, self._poll, self._workshop, self._stop = config, poll, workshop, stop
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._model = check_model(config.score)
        self._data_set = DataSet.read(config.score.output)
        self._loaded: LoadedModel | None = None
        """Held, so that every run finds it."""
        self._counts: Counter[str] = Counter()
        self._committed = 0
        self._plan: Plan | None = None
        self._last_listing: list[InputFile] | None = None
        """If nothing was left to be done with it."""
        self._unreadable: dict[str, tuple[InputFile, float]] = {}
        """With the time of the next try."""
        self._said: set[str] = set()

    def run(self) -> int:
        while not self._stop.is_set():
            seconds = self._look_once()
            if self._plan is not None and self._config.score.dry_run:
                announce("dry_run", "dry run: nothing was scored or written")
                return DONE
            self._stop.wait(seconds)
        score, figures = self._config.score, self._workshop.figures
        if self._plan is not None:
            report.announce_summary(self._counts, time.monotonic() - self._clock, self._model.classes, figures)
        warning = too_many_dead_letters(self._counts, score)
        if warning:
            announce("too_many_dead_letters", warning, level=logging.ERROR)
        return TOO_MANY_DEAD_LETTERS if warning else DONE

    def _look_once(self) -> float:
        """Look, and do what is to be done. Returns the seconds until the next look."""
        try:
            listed = self._list()
        except InputError as error:
            self._say("listing", str(error))
            return self._poll
        self._said.discard("listing")
        if listed == self._last_listing and self._plan is not None:
            return self._poll
        selection = self._select(listed)
        if not selection.is_empty or self._plan is None:
            try:
                selection = self._annotate(listed)
            except LeaseHeldError as error:
                if self._config.score.dry_run:
                    raise
                self._say("lease", f"tried again every {self._poll:g} s until the other is done: {error}")
                return self._poll
            self._said.discard("lease")
        is_done = selection.is_empty and not selection.unsettled
        self._last_listing = listed if is_done else None
        return min(self._poll, self._config.settle) if selection.unsettled else self._poll

    def _list(self) -> list[InputFile]:
        """What is there to be scored.

        Raises:
            InputError: if it cannot be listed.
        """
        now = time.monotonic()
        listed = []
        found = list_files(self._config.score.inputs[0])
        for path, reason in found.unlisted.items():
            self._say(path, f"left alone: directory {path} cannot be listed: {reason}")
        for file in found.files:
            name = file.path.rpartition("/")[2]
            put_off, until = self._unreadable.get(file.path, (None, 0.0))
            if name.startswith((".", "_")) or (file == put_off and now < until):
                continue
            if self._config.score.format is None and guess_format(file.path)[0] is None:
                suffix = name.rpartition(".")[2]
                self._say(f".{suffix}", f"left alone: {file.path} and others whose names do not tell their format")
                continue
            listed.append(file)
        return listed

    def _select(self, listed: list[InputFile]) -> Selection:
        files = {file.path: file for file in listed}
        return select(self._data_set, files, [], self._config, self._model.fingerprint, time.time())

    def _annotate(self, listed: list[InputFile]) -> Selection:
        """Score what is new as the holder of the lease, and say so. Returns what was new.

        Raises:
            InputError, RunError, LeaseHeldError: as their names say.
        """
        config, data_set = self._config, self._data_set
        with Lease(config.score.output, config.lease) as lease:
            data_set.refresh()
            recover(data_set)
            selection = self._select(listed)
            plan = make_plan(config, data_set, selection, self._model, KIND)
            self._announce(plan)
            if config.score.dry_run or selection.is_empty:
                return selection
            if self._loaded is None and config.score.local_workers == 1:
                options = plan.with_new_run(()).config.score
                self._loaded = load_model(options.model, options)
            session = self._workshop.session(lease, data_set)
            annotation = Annotation(config, plan, session, selection, KIND, self._stop)
            clock = time.monotonic()
            try:
                annotation.score_all()
            finally:
                self._take_stock(annotation, selection)
            tidy(data_set)
            self._say_what_was_done(annotation, time.monotonic() - clock)
            return selection

    def _announce(self, plan: Plan) -> None:
        """Say once what will be done."""
        if self._plan is None:
            model, figures = self._model, self._workshop.figures
            figures.update(model=model.name, fingerprint=model.fingerprint)
            said = [*plan.describe(), f"watching    {self._config.score.inputs[0]}, every {self._poll:g} s"]
            announce("plan", said, input_files=len(plan.files), input_bytes=plan.input_bytes, **figures)
        self._plan = plan

    def _take_stock(self, annotation: Annotation, selection: Selection) -> None:
        self._counts.update(annotation.counts)
        self._committed += annotation.committed
        until = time.monotonic() + RETRY_SECONDS
        for file in selection.work:
            self._unreadable.pop(file.path, None)
            if file.path in annotation.unreadable:
                self._unreadable[file.path] = file, until
        self._workshop.figures.update(self._counts, inputs_committed=self._committed)

    def _say_what_was_done(self, annotation: Annotation, seconds: float) -> None:
        annotation.status()
        counts, files = annotation.counts, annotation.committed
        rows, dead = counts[metrics.ROWS_WRITTEN], counts[metrics.DEAD]
        if files:
            said = f"committed   {files:,} file(s), {rows:,} rows, {dead:,} dead letters, in {seconds:.1f} s"
            announce("committed", said, files=files, rows=rows, dead=dead, seconds=round(seconds, 3))
        path = self._config.score.report
        if path is not None:
            times: dict[str, Any] = {"started": self._started, "finished": datetime.now(UTC)}
            try:
                write_report(path, self._workshop.figures | {"exit_status": DONE} | times)
            except OSError as error:
                _LOGGER.error("--report %s could not be written: %s", path, error)

    def _say(self, about: str, text: str) -> None:
        """Once about each thing, until it is over."""
        if about not in self._said:
            announce("waiting", text, level=logging.WARNING)
        self._said.add(about)
