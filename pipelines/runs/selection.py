"""Which inputs to score: what is listed now against what the data set holds. Pure functions, no Beam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.cli.annotate_options import AnnotateConfig
from pipelines.data_set.snapshot import DataSet, Generation
from pipelines.runs.inputs import Inputs, named
from torchmoji_core.errors import InputError
from transforms.input.inputs import InputFile

FIRST_BYTES_PER_SECOND = 64 << 10
"""The speed of a slow machine with a full-size model; the first group shows how fast this one is."""
MAX_GROWTH = 4.0


@dataclass(frozen=True)
class Selection:
    """What a run has to do."""

    new: tuple[InputFile, ...] = ()
    changed: tuple[InputFile, ...] = ()
    """Scored before, and different now."""
    retired: tuple[str, ...] = ()
    """Vanished inputs whose rows are to go."""
    unchanged: int = 0
    skipped: int = 0
    """Changed inputs that are left as they were scored."""
    unsettled: tuple[str, ...] = ()
    """Too young: left to the next run."""
    not_gone: Mapping[str, str] = field(default_factory=dict)
    """Vanished inputs that are not retired although asked, since they may not have been deleted; with the reason."""
    found: Inputs = field(default_factory=Inputs)
    """What all this was chosen from."""
    generation: int = 0
    """That of the files to be written."""
    promotes: bool = False
    """Whether the generation is a new one, which becomes the live one when all is done."""

    @property
    def work(self) -> tuple[InputFile, ...]:
        """The inputs to be scored, sorted by path."""
        return tuple(sorted((*self.new, *self.changed)))

    @property
    def is_empty(self) -> bool:
        return not (self.work or self.retired or self.promotes)

    @property
    def figures(self) -> dict[str, int]:
        """For the run's report."""
        return {
            "inputs_new": len(self.new),
            "inputs_changed": len(self.changed) + self.skipped,
            "inputs_vanished": len(self.found.vanished),
            "inputs_unsettled": len(self.unsettled),
            "inputs_passed_over": len(self.found.passed_over),
        }

    def describe(self) -> str:
        """What was found, in one line."""
        counts = {
            "new": len(self.new),
            "changed": len(self.changed),
            "changed but left as they are": self.skipped,
            "unchanged": self.unchanged,
            "too young": len(self.unsettled),
            "gone": len(self.found.vanished),
        }
        return "found       " + (", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing")


def select(data_set: DataSet, found: Inputs, config: AnnotateConfig, fingerprint: str, now: float) -> Selection:
    """Compare what is listed with what was scored, and apply the policies.

    Args:
        data_set: what was scored.
        found: what is there, and what is gone.
        config: the policies.
        fingerprint: of the model that is to score.
        now: seconds since 1970.

    Raises:
        InputError: where a policy is to fail.
    """
    number, promotes = generation_of(data_set, config, fingerprint)
    generation = data_set.generations.get(number, Generation())
    listed, vanished, no_files = found.files, found.vanished, found.no_files
    if vanished and config.on_vanished == "fail":
        raise InputError(
            f"inputs {named(vanished)} are gone since scored; put back, or give --on_vanished keep or retire"
        )
    if vanished and config.on_vanished == "retire" and not listed:
        raise InputError("all inputs are gone; check that their filesystem is there before their rows are retired")
    if promotes and vanished and config.on_vanished == "keep":
        raise InputError(
            f"inputs {named(vanished)} are gone, so the new model cannot score them; put them back, or drop their rows "
            "with --on_vanished retire"
        )
    not_gone = found.not_gone if config.on_vanished == "retire" else {}
    for path, reason in not_gone.items() if promotes else ():
        raise InputError(f"input {path} cannot be scored by the new model, and need not have been deleted: {reason}")
    new, changed, unsettled, unchanged, skipped = [], [], [], 0, 0
    for path in sorted(listed):
        file, scored = listed[path], generation.inputs.get(path)
        if scored is not None and scored.is_unchanged(file.bytes_, file.modified):
            unchanged += 1
        # A path that is no file any more, or cannot be looked at, is unreadable, not changed: opening it will say why.
        elif scored is not None and config.on_changed == "skip" and path not in no_files:
            skipped += 1
        # A file from the future is as young as one from the past: one of the two clocks is wrong.
        elif file.modified is not None and abs(now - file.modified) < config.settle:
            unsettled.append(path)
        elif scored is None:
            new.append(file)
        elif config.on_changed == "fail" and path not in no_files:
            raise InputError(
                f"input {path} has changed since it was scored; give --on_changed rescore or skip, or another --output"
            )
        else:
            changed.append(file)
    retired = tuple(path for path in vanished if path not in not_gone)
    retired = retired if config.on_vanished == "retire" and not promotes else ()
    for path in sorted(generation.entangled([*(file.path for file in changed), *retired])):
        if path not in listed:
            raise InputError(
                f"rows of input {path} cannot be told from those of another that has changed or is gone, since names "
                "that are no UTF-8 could have the same source; put it back, or give --on_vanished retire"
            )
        if all(file.path != path for file in (*new, *changed)):
            changed.append(listed[path])
    return Selection(
        new=tuple(new),
        changed=tuple(sorted(changed)),
        retired=retired,
        unchanged=unchanged,
        skipped=skipped,
        unsettled=tuple(unsettled),
        not_gone=not_gone,
        found=found,
        generation=number,
        promotes=promotes,
    )


def generation_of(data_set: DataSet, config: AnnotateConfig, fingerprint: str) -> tuple[int, bool]:
    """The generation to write to, and whether it is a new one that is yet to be completed.

    Raises:
        InputError: if it is not to be written with that model.
    """
    live = data_set.live
    if live.fingerprint in (None, fingerprint):
        return data_set.live_generation, False
    if not config.rescore_with_new_model:
        raise InputError(
            f"output {data_set.output} was scored by model {str(live.fingerprint)[:12]}, and this one is "
            f"{fingerprint[:12]}; score everything again with pipelines.annotate --rescore_with_new_model, or give "
            "another --output"
        )
    for number, generation in data_set.generations.items():
        if number != data_set.live_generation and generation.fingerprint == fingerprint:
            return number, True
    return max(data_set.generations) + 1, True


class Groups:
    """Cuts work into groups of files that are scored and committed together, each of about as much time.

    How fast files are scored is known only from the groups before, so the first is small. With 30 seconds a group:

        the first has 30 s * 64 kB/s = 1.9 MB, and takes 3 s: in 30 s there would have been 19 MB
        the second has 7.7 MB, four times as much at most; it takes 12 s
        the third has the 19 MB
    """

    def __init__(self, work: Sequence[InputFile], seconds: float) -> None:
        """Args:
        work: files to be scored.
        seconds: time that a group should take; 0 for one group of all.
        """
        self._work = list(work)
        self._seconds = seconds
        self._bytes = seconds * FIRST_BYTES_PER_SECOND

    def __iter__(self) -> Iterator[tuple[InputFile, ...]]:
        while self._work:
            count, size = 0, 0
            while count < len(self._work) and (not count or not self._seconds or size < self._bytes):
                size += self._work[count].bytes_
                count += 1
            group, self._work = tuple(self._work[:count]), self._work[count:]
            yield group

    def took(self, group: Sequence[InputFile], seconds: float) -> None:
        """Learn from a group that has been scored."""
        size = sum(file.bytes_ for file in group)
        wanted = size * self._seconds / max(seconds, 1e-3)
        self._bytes = max(1.0, min(wanted, size * MAX_GROWTH, self._bytes * MAX_GROWTH))
