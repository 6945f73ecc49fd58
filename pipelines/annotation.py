"""Annotation of a growing corpus: what `pipelines.annotate` and `pipelines.score --resume` do.

An input file is the unit of work: files are scored in groups, each group by one run of the pipeline that
`pipelines.score` runs, and each group is committed by a manifest. What dies is gone on with by the next run.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from pipelines import report
from pipelines.annotate_options import AnnotateConfig
from pipelines.command_line import DONE, FAILED, TOO_MANY_DEAD_LETTERS
from pipelines.data_set import DataSet, announce_run, remove_temporary, tidy
from pipelines.inputs import by_reason, list_inputs, named, try_to_open
from pipelines.logs import announce
from pipelines.manifest import DataFile, identity
from pipelines.plan import ModelFacts, Plan, as_before, check_fields, check_model, check_no_stream, differences, listed
from pipelines.rewrite import Rewriter
from pipelines.run import Finished, clean_up, commit, describe_commit, execute, too_many_dead_letters
from pipelines.selection import Groups, Selection, select
from pipelines.session import Session, open_session
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.files import name_as_text
from transforms import storage
from transforms.read import InputFile, UnreadableInput

_CHECKERS = 16


def run(config: AnnotateConfig, rest: list[str], kind: str) -> int:
    """Take the lease, find out what is to be done, and do it. Returns the exit status.

    Args:
        config: what to do.
        rest: options for Beam.
        kind: name of the command, for the manifests.

    Raises:
        InputError, RunError, LeaseHeldError: as their names say.
    """
    with open_session(config.score, rest, config.lease) as session:
        data_set, figures = session.data_set, session.figures
        to_be_retired = config.on_vanished == "retire"
        found = list_inputs(config.score.inputs, config.score.format, data_set.live.inputs.keys(), to_be_retired)
        model = check_model(config.score)
        selection = select(
            data_set,
            found.files,
            found.vanished,
            config,
            model.fingerprint,
            time.time(),
            found.not_gone,
            found.no_files,
        )
        selection = dataclasses.replace(selection, unlisted=found.unlisted, passed_over=tuple(found.passed_over))
        plan = make_plan(config, data_set, selection, model, kind)
        figures.update(model=model.name, fingerprint=model.fingerprint, **selection.figures)
        said = [*plan.describe(), selection.describe()]
        announce("plan", said, input_files=len(plan.files), input_bytes=plan.input_bytes, **figures)
        if config.score.dry_run:
            announce("dry_run", "dry run: nothing was scored or written")
            return DONE
        annotation = Annotation(config, plan, session, selection, kind)
        try:
            status = figures["exit_status"] = annotation.run()
        finally:
            figures.update(
                annotation.counts, inputs_committed=annotation.committed, inputs_unreadable=len(annotation.unreadable)
            )
        tidy(data_set)
        return status


def make_plan(config: AnnotateConfig, data_set: DataSet, selection: Selection, model: ModelFacts, kind: str) -> Plan:
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
        if kind == "score" and not {*ours["inputs"]} <= {*earlier.get("inputs", ())}:
            changed = sorted([*changed, "inputs"])
        if changed:
            raise InputError(
                f"output {score.output} holds results of another command (other {listed(changed, earlier)}); "
                "give the same options as before, or another --output"
            )
    # One that cannot be opened waits for the next run; a dead letter would count it as done.
    return Plan(score, selection.work, model, passed_over=selection.passed_over, strict=True)


class Annotation:
    """One run over what was selected: group after group, each committed by itself."""

    def __init__(
        self,
        config: AnnotateConfig,
        plan: Plan,
        session: Session,
        selection: Selection,
        kind: str,
        stop: threading.Event | None = None,
    ) -> None:
        """Args:
        config: the policies.
        plan: what to do.
        session: where.
        selection: the inputs to score or retire.
        kind: name of the command, for the manifests.
        stop: ends the run before the next group once it is set; None for none.
        """
        self._stop = stop or threading.Event()
        self._config, self._plan, self._session = config, plan, session
        self._selection, self._kind = selection, kind
        self._data_set = session.data_set
        self.counts: Counter[str] = Counter()
        self.committed = 0
        """Inputs."""
        self.left: list[str] = []
        """Inputs that changed while they were read, and are left to the next run."""
        self.unreadable: dict[str, str] = {}
        """Inputs that could not be opened, with the reason."""

    def run(self) -> int:
        """Score and commit everything. Returns the exit status.

        Raises:
            RunError: if a group fails. What was committed before stays.
        """
        clock = time.monotonic()
        self.score_all()
        if self._selection.is_empty:
            announce("nothing_new", "nothing is new: nothing was scored")
        else:
            seconds = time.monotonic() - clock
            report.announce_summary(self.counts, seconds, self._plan.model.classes, self._session.figures)
        return self.status()

    def score_all(self) -> None:
        """Score and commit everything, in silence.

        Raises:
            RunError: as `run`.
        """
        selection = self._selection
        if selection.retired:
            self._retire(selection.retired)
        groups = Groups(selection.work, self._config.commit_every)
        for group in groups:
            if self._stop.is_set():
                return
            begun = time.monotonic()
            self._score(group)
            groups.took(group, time.monotonic() - begun)
        if selection.promotes:
            self._promote()

    def status(self) -> int:
        """Say what was left, and give the exit status."""
        for path in self.left:
            announce(
                "left", f"left to the next run: {path} changed while it was read", level=logging.WARNING, path=path
            )
        for path, reason in self.unreadable.items():
            said = f"failed: input {path} cannot be opened: {reason}"
            announce("unreadable", said, level=logging.ERROR, path=path)
        selection = self._selection
        for path, reason in selection.unlisted.items():
            said = (
                f"failed: directory {path} cannot be listed: {reason}; nothing of what is in it was scored or retired"
            )
            announce("unlisted", said, level=logging.ERROR, path=path)
        for reason, paths in by_reason(selection.not_gone).items():
            said = f"not retired: the rows of {len(paths):,} input(s), {named(paths)}: {reason}"
            announce("not_retired", said, level=logging.ERROR, inputs=len(paths), reason=reason)
        warning = too_many_dead_letters(self.counts, self._plan.config)
        if warning:
            announce("too_many_dead_letters", warning, level=logging.ERROR)
        has_failed = bool(self.unreadable or selection.unlisted or selection.not_gone)
        return FAILED if has_failed else TOO_MANY_DEAD_LETTERS if warning else DONE

    def _score(self, group: Sequence[InputFile]) -> None:
        """Score and commit a group, without the files that cannot be opened or change while they are read."""
        # Those that can be known beforehand at once: of a run, one ends it, and then the next.
        opened = try_to_open(group)
        self.unreadable |= opened.unreadable
        self.left += sorted(opened.changed)
        group = [file for file in group if file.path not in opened.unreadable.keys() | opened.changed]
        while group:
            plan = self._plan.with_new_run(group)
            started = datetime.now(UTC)
            try:
                finished = execute(plan, self._session)
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
        manifest = describe_commit(plan, finished, self._data_set, self._kind, started)
        inputs = {file.path for file in plan.files}
        changed = {file.path for file in self._selection.changed} & inputs
        retired, files, dead_letters = self._without(changed, plan.run_id)
        manifest = dataclasses.replace(
            manifest,
            generation=self._selection.generation,
            files=(*manifest.files, *files),
            dead_letters=(*manifest.dead_letters, *dead_letters),
            retired=retired,
            # Their rows went with those of what changed, so they are new until they are scored.
            dropped=tuple(sorted(self._entangled(changed) - inputs)),
        )
        commit(plan, manifest, self._session)
        remove_temporary(self._data_set.output, plan.run_id)
        self.counts.update(finished.counts)
        self.committed += len(inputs)

    def _retire(self, paths: Sequence[str]) -> None:
        """Commit that the rows of some inputs are results no longer."""
        plan, started = self._plan.with_new_run(()), datetime.now(UTC)
        announce_run(self._data_set.output, plan.run_id)
        paths = sorted({*paths} | self._entangled(paths))
        retired, files, dead_letters = self._without(paths, plan.run_id)
        finished = Finished({}, files, dead_letters, 0.0)
        manifest = describe_commit(plan, finished, self._data_set, self._kind, started)
        manifest = dataclasses.replace(manifest, retired=retired, dropped=tuple(paths))
        commit(plan, manifest, self._session)
        remove_temporary(self._data_set.output, plan.run_id)

    def _entangled(self, paths: Collection[str]) -> set[str]:
        generation = self._data_set.generations.get(self._selection.generation)
        return generation.entangled(paths) if generation else set()

    def _without(
        self, inputs: Collection[str], run_id: str
    ) -> tuple[tuple[str, ...], tuple[DataFile, ...], tuple[DataFile, ...]]:
        """What takes the rows of some inputs out of the data set: files to retire, and files to put in their place."""
        generation = self._data_set.generations.get(self._selection.generation)
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
        data_set, selection = self._data_set, self._selection
        scored = (
            data_set.generations[selection.generation].inputs if selection.generation in data_set.generations else {}
        )
        missing = data_set.live.inputs.keys() - scored.keys() - set(selection.vanished)
        if missing:
            announce(
                "not_yet_complete",
                f"the old results stay until {len(missing)} more file(s) have been scored with the new model",
                missing=len(missing),
            )
            return
        plan = self._plan.with_new_run(())
        finished = Finished({}, (), (), 0.0)
        manifest = describe_commit(plan, finished, data_set, self._kind, datetime.now(UTC))
        commit(plan, dataclasses.replace(manifest, generation=selection.generation, promotes=True), self._session)
        remove_temporary(data_set.output, plan.run_id)
