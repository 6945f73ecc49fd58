"""Annotation of a growing corpus: what `pipelines.annotate` does.

An input file is the unit of work: files are scored in groups, each group by one run of the pipeline that
`pipelines.score` runs, and each group is committed by a manifest. If a run dies, the next one goes on with its work.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pipelines.cli.annotate_options import AnnotateConfig
from pipelines.cli.exits import DONE, FAILED, TOO_MANY_DEAD_LETTERS
from pipelines.cli.logs import announce
from pipelines.data_set.manifest import Manifest, now
from pipelines.data_set.recovery import delete_retired, delete_uncommitted, register_run
from pipelines.data_set.rewrite import Rewritten, without
from pipelines.data_set.snapshot import DataSet, Generation
from pipelines.runs.accounting import Finished, describe_commit, too_many_dead_letters
from pipelines.runs.context import RunContext
from pipelines.runs.execute import commit, execute
from pipelines.runs.identity import check_goes_on, other_options
from pipelines.runs.inputs import Inputs, by_reason, list_inputs, named, try_to_open
from pipelines.runs.inspection import check_fields, describe
from pipelines.runs.plan import ModelFacts, Plan, as_before, check_no_stream
from pipelines.runs.selection import Groups, Selection, generation_of, select
from pipelines.runs.submission import build_only, submit
from torchmoji_core.errors import InputError, RunError
from transforms.input.inputs import InputFile
from transforms.input.parts import UnreadableInput
from transforms.storage import files as storage

KIND = "annotate"
_CHECKERS = 16


def list_all(config: AnnotateConfig, data_set: DataSet) -> Inputs:
    """List the inputs.

    Raises:
        InputError: as `list_inputs`.
    """
    live, retires = data_set.live.inputs.keys(), config.on_vanished == "retire"
    return list_inputs(
        config.score.inputs, config.score.form.format, live, retires, config.every is not None, config.score.output
    )


def prepare(
    config: AnnotateConfig, context: RunContext, model: ModelFacts, stop: threading.Event | None = None
) -> Annotation:
    """Find out what is to be done.

    Args:
        config: the policies.
        context: where.
        model: that is to score.
        stop: ends the work before the next group once it is set; None for none.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    found = list_all(config, context.data_set)
    selection = select(context.data_set, found, config, model.fingerprint, time.time())
    return Annotation(config, make_plan(config, context.data_set, selection, model), context, selection, stop)


def announce_plan(annotation: Annotation) -> None:
    """Say what will be done, or would be."""
    plan, selection, figures = annotation.plan, annotation.selection, annotation.context.figures
    figures.update(model=plan.model.name, fingerprint=plan.model.fingerprint, **selection.figures)
    every = annotation.config.every
    said = [*plan.describe(), selection.describe(), *([f"again       every {every:g} s"] if every else [])]
    announce("plan", said, input_files=len(plan.files), input_bytes=plan.input_bytes, **figures)
    if plan.config.dry_run:
        if plan.files and not plan.config.is_local:
            build_only(plan.with_new_run(plan.files), annotation.context)
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
        fields, seen = check_fields(score.form, score.fields, selection.work, score.keep_without_type, True)
        score = score.with_fields(fields)
    else:
        score, seen = as_before(score, earlier), None
        check_goes_on(score, earlier)
    groups = describe(score, selection.work, seen)
    # One that cannot be opened waits for the next run; a dead letter would count it as done.
    passed_over = tuple(selection.found.passed_over)
    return Plan(score, selection.work, model, passed_over=passed_over, strict=True, groups=groups)


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
        context: RunContext,
        selection: Selection,
        stop: threading.Event | None = None,
    ) -> None:
        """Args:
        config: the policies.
        plan: what to do.
        context: where.
        selection: the inputs to score or retire.
        stop: ends the run before the next group once it is set; None for none.
        """
        self._stop = stop or threading.Event()
        self.config, self.plan, self.context, self.selection = config, plan, context, selection
        self._data_set = context.data_set
        concerned = (*(file.path for file in selection.work), *selection.retired)
        self._before = {path: self._scored(self._data_set).inputs.get(path) for path in concerned}
        """What the data set had of the inputs that are to be scored or retired."""
        self.counts: Counter[str] = Counter()
        self.committed = 0
        """Inputs."""
        self.left: list[str] = []
        """Inputs that changed while they were read, and are left to the next run."""
        self.submitted = 0
        """Inputs whose end nobody waits for."""
        self.taken: list[str] = []
        """Inputs that another run has scored meanwhile."""
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
            if self.plan.config.no_wait:
                self._submit(group)
                break  # what it leaves over is for the next run, which finds the job's results
            begun = time.monotonic()
            self._score(group)
            groups.took(group, time.monotonic() - begun)
        else:
            if selection.promotes:
                self._promote()
        delete_retired(self._data_set)

    @property
    def figures(self) -> dict[str, int]:
        """For the run's report."""
        of_inputs = {"inputs_committed": self.committed, "inputs_unreadable": len(self.unreadable)}
        return self.selection.figures | self.counts | of_inputs

    @property
    def is_complete(self) -> bool:
        """Whether nothing that was found is left to the next run."""
        left = self.left or self.taken or self.unreadable or self.selection.unsettled or self.selection.promotes
        return not (left or self.submitted or self._stop.is_set() or self.status == FAILED)

    @property
    def status(self) -> int:
        """The exit status, if this is all that the command does."""
        if self.unreadable or self.selection.found.unlisted or self.selection.not_gone:
            return FAILED
        is_too_many = self.context.has_too_many_dead_letters or too_many_dead_letters(self.counts, self.plan.config)
        return TOO_MANY_DEAD_LETTERS if is_too_many else DONE

    def complaints(self) -> Iterator[Complaint]:
        """What was left out, and why."""
        for path in self.left:
            said = f"left to the next run: {path} changed while it was read"
            yield Complaint("left", said, logging.WARNING, {"path": path})
        if self.taken:
            said = (
                f"another run has scored {len(self.taken):,} input(s) meanwhile, {named(self.taken)}: left as they are"
            )
            yield Complaint("scored_meanwhile", said, logging.WARNING, {"inputs": len(self.taken)})
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
        group = self._readable(group)
        while group:
            plan, started = self.plan.with_new_run(group), now()
            try:
                finished = execute(plan, self.context)
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
                if out:
                    delete_uncommitted(self._data_set, plan.run_id)
                    self.left += sorted(out - self.unreadable.keys())
                else:
                    out = self.commit(plan, finished, started)
                    if not out:
                        return
            group = [file for file in group if file.path not in out]

    def _readable(self, group: Sequence[InputFile]) -> list[InputFile]:
        """Those of a group that can be told to be so beforehand: in a run, each would end it, one after the other."""
        opened = try_to_open(group)
        self.unreadable |= opened.unreadable
        self.left += sorted(opened.changed)
        return [file for file in group if file.path not in opened.unreadable.keys() | opened.changed]

    def _submit(self, group: Sequence[InputFile]) -> None:
        """Leave a group to a job, without the files that cannot be opened.

        Raises:
            InputError, RunError: as `submission.submit`.
        """
        files = self._readable(group)
        if files:
            plan, nothing, number = self.plan.with_new_run(files), Finished({}, (), (), 0.0), self.selection.generation
            draft = describe_commit(plan, nothing, self._data_set, KIND, now(), generation=number)
            submit(plan, self.context, draft)
            self.submitted = len(files)

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
            return now is None or (now.size_in_bytes, now.last_updated_in_seconds or None, now.version) != file[1:4]

        with ThreadPoolExecutor(_CHECKERS) as threads:
            return {file.path for file, changed in zip(group, threads.map(is_changed, group), strict=True) if changed}

    def commit(self, plan: Plan, finished: Finished, started: str) -> set[str]:
        """Commit a group, unless another run has listed some of its inputs meanwhile; gives these.

        Raises:
            RunError: if it cannot be committed.
        """
        inputs = {file.path for file in plan.files}
        changed = {file.path for file in self.selection.changed} & inputs
        taken: set[str] = set()
        rewritten: Rewritten = {}

        def decide(state: DataSet) -> Manifest | None:
            scored = self._scored(state)
            taken.update(path for path in inputs if scored.inputs.get(path) not in (None, self._before[path]))
            if taken:
                return None
            self._check(state)
            retired, files, dead_letters = without(state.output, scored, changed, plan.run_id, rewritten)
            return describe_commit(
                plan,
                finished,
                state,
                KIND,
                started,
                generation=self.selection.generation,
                files=(*finished.files, *files),
                dead_letters=(*finished.dead_letters, *dead_letters),
                retired=retired,
                # Their rows went with those of what changed, so they are new until they are scored.
                dropped=tuple(sorted(scored.entangled(changed) - inputs)),
            )

        if commit(plan, self.context, decide):
            self.counts.update(finished.counts)
            self.committed += len(inputs)
        self.taken += sorted(taken)
        return taken

    def _retire(self, paths: Sequence[str]) -> None:
        """Commit that the rows of some inputs are no longer live; not of inputs that another run has dealt with."""
        plan, started = self.plan.with_new_run(()), now()
        register_run(self._data_set.output, plan.run_id)
        rewritten: Rewritten = {}

        def decide(state: DataSet) -> Manifest | None:
            scored = self._scored(state)
            left = {path for path in paths if path in scored.inputs and scored.inputs[path] == self._before[path]}
            if not left:
                return None
            self._check(state)
            left |= scored.entangled(left)
            retired, files, dead_letters = without(state.output, scored, left, plan.run_id, rewritten)
            finished = Finished({}, files, dead_letters, 0.0)
            return describe_commit(plan, finished, state, KIND, started, retired=retired, dropped=tuple(sorted(left)))

        commit(plan, self.context, decide)

    def _scored(self, state: DataSet) -> Generation:
        """What a state has of the generation that this run adds to."""
        return state.generations.get(self.selection.generation, Generation())

    def _check(self, state: DataSet) -> None:
        """Make sure that this run can go on with the data set as another run has left it.

        Raises:
            RunError: if not.
        """
        selection, earlier = self.selection, state.identity
        ours = (selection.generation, selection.promotes)
        with contextlib.suppress(InputError):
            if generation_of(state, self.config, self.plan.model.fingerprint) == ours and not (
                earlier and other_options(self.plan.config, earlier)
            ):
                return
        raise RunError(
            f"another command has written to {state.output} meanwhile, with other options or another model; nothing "
            "more was committed, so run again"
        )

    def _promote(self) -> None:
        """Make the new generation the live one, if it has all inputs of the old one that are still wanted."""
        selection, plan, missing = self.selection, self.plan.with_new_run(()), 0

        def decide(state: DataSet) -> Manifest | None:
            nonlocal missing
            if state.live_generation == selection.generation:
                return None  # another run has done it
            self._check(state)
            missing = len(state.live.inputs.keys() - self._scored(state).inputs.keys() - set(selection.found.vanished))
            if missing:
                return None
            nothing = Finished({}, (), (), 0.0)
            return describe_commit(plan, nothing, state, KIND, now(), generation=selection.generation, promotes=True)

        commit(plan, self.context, decide)
        if missing:
            announce(
                "not_yet_complete",
                f"the old results stay until {missing} more file(s) have been scored with the new model",
                missing=missing,
            )
