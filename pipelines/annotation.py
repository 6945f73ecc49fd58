"""Annotation of a growing corpus: what `pipelines.annotate` does.

An input file is the unit of work: files are scored in groups, each group by one run of the pipeline that
`pipelines.score` runs, and each group is committed by a manifest. What dies is gone on with by the next run.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipelines import report
from pipelines.annotate_options import AnnotateConfig
from pipelines.command_line import DONE, FAILED, TOO_MANY_DEAD_LETTERS
from pipelines.data_set import DataSet, announce_run, remove_temporary, tidy
from pipelines.inputs import Inputs, by_reason, list_inputs, named, try_to_open
from pipelines.logs import announce
from pipelines.manifest import DataFile, identity
from pipelines.plan import ModelFacts, Plan, as_before, check_fields, check_model, check_no_stream, differences, listed
from pipelines.rewrite import Rewriter
from pipelines.run import Finished, clean_up, commit, describe_commit, execute, too_many_dead_letters
from pipelines.selection import Groups, Selection, select
from pipelines.session import Session, open_session, open_workshop
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.files import name_as_text
from transforms import storage
from transforms.read import InputFile, UnreadableInput

KIND = "annotate"
_CHECKERS = 16


def run(config: AnnotateConfig, rest: list[str]) -> int:
    """Take the lease, find out what is to be done, and do it. Returns the exit status.

    Args:
        config: what to do.
        rest: options for Beam.

    Raises:
        InputError, RunError, LeaseHeldError: as their names say.
    """
    with (
        open_workshop(config.score, rest) as workshop,
        open_session(workshop, DataSet(config.score.output), config.lease) as session,
    ):
        annotation = prepare(config, session, check_model(config.score))
        announce_plan(annotation)
        if config.score.dry_run:
            return DONE
        clock = time.monotonic()
        try:
            annotation.run()
        finally:
            session.figures.update(annotation.figures)
        if annotation.selection.is_empty:
            announce("nothing_new", "nothing is new: nothing was scored")
        else:
            seconds = time.monotonic() - clock
            report.announce_summary(annotation.counts, seconds, annotation.plan.model.classes, session.figures)
        for event, said, level, fields in annotation.complaints():
            announce(event, said, level=level, **fields)
        if warning := too_many_dead_letters(annotation.counts, config.score):
            announce("too_many_dead_letters", warning, level=logging.ERROR)
        status = session.figures["exit_status"] = annotation.status
        return status


def list_all(config: AnnotateConfig, data_set: DataSet) -> Inputs:
    """List the inputs.

    Raises:
        InputError: as `list_inputs`.
    """
    live, retires = data_set.live.inputs.keys(), config.on_vanished == "retire"
    return list_inputs(config.score.inputs, config.score.format, live, retires, config.every is not None)


def prepare(
    config: AnnotateConfig, session: Session, model: ModelFacts, stop: threading.Event | None = None
) -> Annotation:
    """Find out what is to be done.

    Args:
        config: the policies.
        session: where.
        model: that is to score.
        stop: ends the work before the next group once it is set; None for none.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    found = list_all(config, session.data_set)
    selection = select(session.data_set, found, config, model.fingerprint, time.time())
    return Annotation(config, make_plan(config, session.data_set, selection, model), session, selection, stop)


def announce_plan(annotation: Annotation) -> None:
    """Say what will be done, or would be."""
    plan, selection, figures = annotation.plan, annotation.selection, annotation.session.figures
    figures.update(model=plan.model.name, fingerprint=plan.model.fingerprint, **selection.figures)
    every = annotation.config.every
    said = [*plan.describe(), selection.describe(), *([f"again       every {every:g} s"] if every else [])]
    announce("plan", said, input_files=len(plan.files), input_bytes=plan.input_bytes, **figures)
    if plan.config.dry_run:
        announce("dry_run", "dry run: nothing was scored or written")


def make_plan(config: AnnotateConfig, data_set: DataSet, selection: Selection, model: ModelFacts) -> Plan:
    """Check the command against what is there: rows with other columns do not belong into one data set.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    score = config.score
    check_no_stream(data_set)
    earlier = data_set.identity
    if earlier is None:
        score = check_fields(score, selection.work)
    else:
        score = as_before(score, earlier)
        # Inputs come and go in a growing corpus; of the model, its fingerprint counts and not where it is.
        ours, free = identity(score), {"model", "inputs", "appended"}
        changed = [name for name in differences(ours, earlier) if name not in free]
        if changed:
            raise InputError(
                f"output {score.output} holds results of another command (other {listed(changed, earlier)}); "
                "give the same options as before, or another --output"
            )
    # One that cannot be opened waits for the next run; a dead letter would count it as done.
    return Plan(score, selection.work, model, passed_over=tuple(selection.found.passed_over), strict=True)


class Complaint(NamedTuple):
    """Something about an input, or a directory of them, that a person should know."""

    event: str
    said: str
    level: int
    fields: dict[str, Any]


class Annotation:
    """One run over what was selected: group after group, each committed by itself."""

    def __init__(
        self,
        config: AnnotateConfig,
        plan: Plan,
        session: Session,
        selection: Selection,
        stop: threading.Event | None = None,
    ) -> None:
        """Args:
        config: the policies.
        plan: what to do.
        session: where.
        selection: the inputs to score or retire.
        stop: ends the run before the next group once it is set; None for none.
        """
        self._stop = stop or threading.Event()
        self.config, self.plan, self.session, self.selection = config, plan, session, selection
        self._data_set = session.data_set
        self.counts: Counter[str] = Counter()
        self.committed = 0
        """Inputs."""
        self.left: list[str] = []
        """Inputs that changed while they were read, and are left to the next run."""
        self.unreadable: dict[str, str] = {}
        """Inputs that could not be opened, with the reason."""

    def run(self) -> None:
        """Score and commit everything.

        Raises:
            RunError: if a group fails. What was committed before stays.
        """
        selection = self.selection
        if selection.retired:
            self._retire(selection.retired)
        groups = Groups(selection.work, self.config.commit_every)
        for group in groups:
            if self._stop.is_set():
                break
            begun = time.monotonic()
            self._score(group)
            groups.took(group, time.monotonic() - begun)
        else:
            if selection.promotes:
                self._promote()
        tidy(self._data_set)

    @property
    def figures(self) -> dict[str, int]:
        """For the run's report."""
        of_inputs = {"inputs_committed": self.committed, "inputs_unreadable": len(self.unreadable)}
        return self.selection.figures | self.counts | of_inputs

    @property
    def is_complete(self) -> bool:
        """Whether nothing that was found is left to the next run."""
        left = self.left or self.unreadable or self.selection.unsettled or self.selection.promotes
        return not (left or self._stop.is_set() or self.status == FAILED)

    @property
    def status(self) -> int:
        """The exit status, if this is all that the command does."""
        if self.unreadable or self.selection.found.unlisted or self.selection.not_gone:
            return FAILED
        return TOO_MANY_DEAD_LETTERS if too_many_dead_letters(self.counts, self.plan.config) else DONE

    def complaints(self) -> Iterator[Complaint]:
        """What was left out, and why."""
        for path in self.left:
            said = f"left to the next run: {path} changed while it was read"
            yield Complaint("left", said, logging.WARNING, {"path": path})
        for path, reason in self.unreadable.items():
            said = f"failed: input {path} cannot be opened: {reason}"
            yield Complaint("unreadable", said, logging.ERROR, {"path": path})
        for path, reason in self.selection.found.unlisted.items():
            said = (
                f"failed: directory {path} cannot be listed: {reason}; nothing of what is in it was scored or retired"
            )
            yield Complaint("unlisted", said, logging.ERROR, {"path": path})
        for reason, paths in by_reason(self.selection.not_gone).items():
            said = f"not retired: the rows of {len(paths):,} input(s), {named(paths)}: {reason}"
            yield Complaint("not_retired", said, logging.ERROR, {"inputs": len(paths), "reason": reason})

    def _score(self, group: Sequence[InputFile]) -> None:
        """Score and commit a group, without the files that cannot be opened or change while they are read."""
        # Those that can be known beforehand at once: of a run, one ends it, and then the next.
        opened = try_to_open(group)
        self.unreadable |= opened.unreadable
        self.left += sorted(opened.changed)
        group = [file for file in group if file.path not in opened.unreadable.keys() | opened.changed]
        while group:
            plan = self.plan.with_new_run(group)
            started = datetime.now(UTC)
            try:
                finished = execute(plan, self.session)
            except UnreadableInput as error:
                out = {error.path}
                self.unreadable[error.path] = error.reason
            except RunError:
                out = self._changed_meanwhile(group)
                if not out:
                    raise
                self.left += sorted(out - self.unreadable.keys())
            else:
                out = self._changed_meanwhile(group)
                if not out:
                    self._commit(plan, finished, started)
                    return
                clean_up(plan)
                self.left += sorted(out - self.unreadable.keys())
            group = [file for file in group if file.path not in out]

    def _changed_meanwhile(self, group: Sequence[InputFile]) -> set[str]:
        """The files that are not as they were listed: being written, truncated, replaced or gone."""

        def is_changed(file: InputFile) -> bool:
            try:
                now = storage.metadata(file.path)
            except OSError as error:
                if not storage.is_local(file.path):
                    raise
                self.unreadable[file.path] = str(error)
                return True
            return now is None or (now.size_in_bytes, now.last_updated_in_seconds or None, now.version) != file[1:]

        with ThreadPoolExecutor(_CHECKERS) as threads:
            return {file.path for file, changed in zip(group, threads.map(is_changed, group), strict=True) if changed}

    def _commit(self, plan: Plan, finished: Finished, started: datetime) -> None:
        manifest = describe_commit(plan, finished, self._data_set, KIND, started)
        inputs = {file.path for file in plan.files}
        changed = {file.path for file in self.selection.changed} & inputs
        retired, files, dead_letters = self._without(changed, plan.run_id)
        manifest = dataclasses.replace(
            manifest,
            generation=self.selection.generation,
            files=(*manifest.files, *files),
            dead_letters=(*manifest.dead_letters, *dead_letters),
            retired=retired,
            # Their rows went with those of what changed, so they are new until they are scored.
            dropped=tuple(sorted(self._entangled(changed) - inputs)),
        )
        commit(plan, manifest, self.session)
        remove_temporary(self._data_set.output, plan.run_id)
        self.counts.update(finished.counts)
        self.committed += len(inputs)

    def _retire(self, paths: Sequence[str]) -> None:
        """Commit that the rows of some inputs are results no longer."""
        plan, started = self.plan.with_new_run(()), datetime.now(UTC)
        announce_run(self._data_set.output, plan.run_id)
        paths = sorted({*paths} | self._entangled(paths))
        retired, files, dead_letters = self._without(paths, plan.run_id)
        finished = Finished({}, files, dead_letters, 0.0)
        manifest = describe_commit(plan, finished, self._data_set, KIND, started)
        manifest = dataclasses.replace(manifest, retired=retired, dropped=tuple(paths))
        commit(plan, manifest, self.session)
        remove_temporary(self._data_set.output, plan.run_id)

    def _entangled(self, paths: Collection[str]) -> set[str]:
        generation = self._data_set.generations.get(self.selection.generation)
        return generation.entangled(paths) if generation else set()

    def _without(
        self, inputs: Collection[str], run_id: str
    ) -> tuple[tuple[str, ...], tuple[DataFile, ...], tuple[DataFile, ...]]:
        """What takes the rows of some inputs out of the data set: files to retire, and files to put in their place."""
        generation = self._data_set.generations.get(self.selection.generation)
        if not inputs or generation is None:
            return (), (), ()
        sources = {generation.source(path) for path in inputs} | {name_as_text(path) for path in inputs}
        retired: list[str] = []
        new: dict[bool, list[DataFile]] = {False: [], True: []}
        rewriter = Rewriter(self._data_set.output, run_id)
        for path, file in generation.all_files.items():
            if not sources & file.sources.keys():
                continue
            retired.append(path)
            is_dead = path in generation.dead_letters
            if file.sources.keys() <= sources:
                continue
            left = rewriter.dead_letters_without(file, sources) if is_dead else rewriter.merge([file], sources)
            new[is_dead] += [left] if left else []
        return tuple(retired), tuple(new[False]), tuple(new[True])

    def _promote(self) -> None:
        """Make the new generation the live one, if it has all inputs of the old one that are still wanted."""
        data_set, selection = self._data_set, self.selection
        scored = (
            data_set.generations[selection.generation].inputs if selection.generation in data_set.generations else {}
        )
        missing = data_set.live.inputs.keys() - scored.keys() - set(selection.found.vanished)
        if missing:
            announce(
                "not_yet_complete",
                f"the old results stay until {len(missing)} more file(s) have been scored with the new model",
                missing=len(missing),
            )
            return
        plan = self.plan.with_new_run(())
        finished = Finished({}, (), (), 0.0)
        manifest = describe_commit(plan, finished, data_set, KIND, datetime.now(UTC))
        commit(plan, dataclasses.replace(manifest, generation=selection.generation, promotes=True), self.session)
        remove_temporary(data_set.output, plan.run_id)
