"""Manifests: the record that every commit leaves, one JSON file each. They say which files are results.

A file that no manifest lists is not part of the data set. Manifests are numbered, and read in that order. A number is
claimed: its file is put where none is, so of two commits at once one gets it, and the other has to look again. A
manifest that is a checkpoint holds all that those before it say. `snapshot` makes of them what is live.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines.data_set import coverage
from pipelines.data_set.coverage import Covers
from torchmoji_core.errors import InputError, RunError, may_pass
from torchmoji_core.files import name_as_text
from transforms.output.commit import TEMPORARY
from transforms.storage import files as storage

DIRECTORY = "_manifests"
VERSION = 3
_READABLE = (2, VERSION)
"""The form before has the same content. Its files are named `00000017-<run>.json`, since numbers were not claimed, and
`00000017-<run>.checkpoint.json`. Versions that write it do not read this one, and so leave the data set alone."""
_NAME = re.compile(r"(\d+)(-.*)?\.json")
_READERS = 16
_BATCH = 64
_TRIES = 3


@dataclass(frozen=True)
class Input:
    """A file that was read."""

    path: str
    """Absolute path or URI."""
    bytes: int
    modified: float | None
    """Seconds since 1970 of its last change."""
    format: str
    rows: int | None = None
    """Rows written for it; None where rows do not tell their file."""
    dead_letters: int | None = None

    def is_unchanged(self, size: int, modified: float | None) -> bool:
        """Whether a file of that size and time of change is the one that was read."""
        return (self.bytes, self.modified) == (size, modified)


@dataclass(frozen=True)
class DataFile:
    """A file that was written."""

    path: str
    """Relative to the output."""
    rows: int
    bytes: int
    sha256: str
    sources: dict[str, int] = field(default_factory=dict)
    """Rows by the file they are from, where rows tell it."""
    fingerprint: str = ""
    """Of the model that scored it, where a data set may hold files of several; "" for that of the manifest."""


@dataclass(frozen=True)
class Model:
    """What scored."""

    name: str
    fingerprint: str
    arithmetic: str


TOO_MANY_DEAD = "too many dead letters"
"""Status of a manifest whose run had more than it was allowed."""


@dataclass(frozen=True)
class Manifest:
    """What one commit changed."""

    sequence: int
    run_id: str
    kind: str
    """Name of the command: score, annotate, compact; stream for pending files of one; fence
    for one that changes nothing, see `recovery.delete_unlisted`."""
    status: str
    started: str
    """ISO 8601, as is `finished`."""
    finished: str
    code_version: str
    identity: dict[str, Any]
    model: Model
    inputs: tuple[Input, ...] = ()
    files: tuple[DataFile, ...] = ()
    dead_letters: tuple[DataFile, ...] = ()
    retired: tuple[str, ...] = ()
    """Paths of files that are results no longer; they are deleted later."""
    retired_since: dict[str, str] = field(default_factory=dict)
    """When, in ISO 8601, of those files of `retired` that were retired by an earlier commit already."""
    dropped: tuple[str, ...] = ()
    """Paths of inputs whose rows are results no longer."""
    generation: int = 0
    """Files of a generation behind the live one, scored with a new model, are no results until it is complete."""
    promotes: bool = False
    """Whether this commit completes its generation, and so retires all files of the others."""
    checkpoint: bool = False
    """Whether `inputs`, `files` and `dead_letters` are the whole live data set."""
    counts: dict[str, int] = field(default_factory=dict)
    covers: Covers = field(default_factory=dict)
    """Which messages the files of a stream are made from, where that tells what to read next; of a checkpoint, which
    ones all of them are made from."""

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"{self.sequence:08}.json"


def now() -> str:
    """This moment as manifests and locks have it: ISO 8601 in UTC, of whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_run_id() -> str:
    """What tells a run from all others: twelve hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def names(output: str) -> list[str]:
    """Names of all manifests below an output directory, in the order of their numbers.

    Raises:
        InputError, RunError: if they cannot be listed, since then it is unknown which files are results.
    """
    return [name for _, name, _ in _listed(output)]


def _listed(output: str) -> list[tuple[int, str, float]]:
    """Number, name and time of the last change (seconds since 1970) of each.

    If a number is missing, perhaps a person has moved its manifest away. Or 17 and 18 appeared while the directory was
    listed, and 18 alone was. So it is listed again until the answer is the same.
    """
    before = None
    while True:
        try:
            found = storage.match([f"{output}/{DIRECTORY}/*.json"])
        except OSError as error:
            raise cannot_read(f"output {output}/{DIRECTORY}", error) from error
        named = [(number(file.path), file.path.rpartition("/")[2], file.last_updated_in_seconds) for file in found]
        numbers = {sequence for sequence, _, _ in named}
        if not numbers or len(numbers) == max(numbers) - min(numbers) + 1 or named == before:
            return sorted(named)
        before = named


def number(path: str) -> int:
    """The number of a manifest, by its name.

    Raises:
        InputError: if it is not named like one.
    """
    name = _NAME.fullmatch(path.rpartition("/")[2])
    if name is None:
        raise InputError(f"{path}: not the name of a manifest; move it away")
    return int(name[1])


def cannot_read(what: str, error: OSError) -> InputError | RunError:
    """The error of a command that needs what cannot be read: another try may help, or a person must."""
    kind = RunError if may_pass(error) else InputError
    return kind(f"{what}: cannot be read ({error})")


def superseded(output: str, checkpoint: int, before: float | None = None) -> list[str]:
    """Names of the manifests that a later checkpoint has made superfluous.

    Args:
        output: the directory.
        checkpoint: number of the checkpoint.
        before: seconds since 1970; only those that were written before. None for all.

    Raises:
        InputError, RunError: if they cannot be listed.
    """
    older = [found for found in _listed(output) if found[0] < checkpoint]
    return [name for _, name, written in older if before is None or 0 < written < before]


def read_all(output: str, wanted: Sequence[str] | None = None) -> list[Manifest]:
    """Read manifests below an output directory: of those that are wanted, the ones from the last checkpoint on.

    The last ones are read first, so that no name needs to tell which is a checkpoint. One before it may be gone.

    Args:
        output: the directory.
        wanted: names in the order of their numbers; None for all.

    Raises:
        InputError, RunError: if one cannot be read.
    """
    left = [f"{output}/{DIRECTORY}/{name}" for name in (names(output) if wanted is None else wanted)][::-1]
    found: list[Manifest] = []
    with ThreadPoolExecutor(_READERS) as threads:
        for first in range(0, len(left), _BATCH):
            for reading in [threads.submit(read, path) for path in left[first : first + _BATCH]]:
                found.append(reading.result())
                if found[-1].checkpoint:
                    return found[::-1]
    return found[::-1]


def read(path: str) -> Manifest:
    """Read one manifest.

    Raises:
        InputError: if it is not a manifest.
        InputError, RunError: from an OSError, if it cannot be read.
    """
    try:
        values = json.loads(storage.read_bytes(path))
        if values.pop("version") not in _READABLE:
            raise ValueError(f"of another version than {VERSION}, as a later version of this program may write")
        manifest = of_values(values)
        _check(manifest, number(path))
        return manifest
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a manifest ({error}); restore it from a copy, or move it away: the inputs that it listed are "
            "then scored again"
        ) from None


def of_values(values: dict[str, Any]) -> Manifest:
    """The manifest that `dataclasses.asdict` has made values of.

    Raises:
        KeyError, TypeError: if they are another's.
    """
    return Manifest(
        **values
        | {
            "model": Model(**values["model"]),
            "inputs": tuple(Input(**entry) for entry in values["inputs"]),
            "files": tuple(DataFile(**entry) for entry in values["files"]),
            "dead_letters": tuple(DataFile(**entry) for entry in values["dead_letters"]),
            "retired": tuple(values["retired"]),
            "dropped": tuple(values["dropped"]),
        }
    )


def with_rows(inputs: Iterable[Input], files: Iterable[DataFile], dead_letters: Iterable[DataFile]) -> Iterator[Input]:
    """Inputs with the rows and dead letters that files have of them.

    Args:
        inputs: those whose rows are None keep that.
        files: with rows.
        dead_letters: files with these.
    """
    rows: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    for file in files:
        rows.update(file.sources)
    for file in dead_letters:
        letters.update(file.sources)
    for entry in inputs:
        name = name_as_text(entry.path)
        of_rows = None if entry.rows is None else rows[name]
        yield dataclasses.replace(entry, rows=of_rows, dead_letters=letters[name])


def _check(manifest: Manifest, number: int) -> None:
    """Manifests name files that may be deleted, so their paths must stay below the output.

    Raises:
        ValueError: naming what is wrong.
    """
    if manifest.sequence != number or not isinstance(manifest.identity, dict):
        raise ValueError("sequence of another file, or identity of another type")
    for path in (*manifest.retired, *(file.path for file in (*manifest.files, *manifest.dead_letters))):
        # An empty part is an absolute path, a URI, or the output itself.
        if {"", ".", ".."} & set(path.split("/")):
            raise ValueError(f"path {path!r} leaves the output")
    for time in (manifest.finished, *manifest.retired_since.values()):
        # These times decide when files are deleted.
        if datetime.fromisoformat(time).tzinfo is None:
            raise ValueError(f"time {time!r} without a zone")
    coverage.check(manifest.covers)


def claim(output: str, manifest: Manifest) -> bool:
    """Publish a manifest, unless its number is taken: it is there whole or not at all.

    Returns:
        Whether it is there.

    Raises:
        OSError: if that cannot be known.
    """
    values = {"version": VERSION} | dataclasses.asdict(manifest)
    # A lone surrogate, in a file's name for instance, is written as JSON's escape for it.
    content = (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
    temporary = f"{output}/{TEMPORARY}/{manifest.run_id}/{manifest.name}"
    path = f"{output}/{DIRECTORY}/{manifest.name}"
    for _ in range(_TRIES):
        # A command that tidies up after dead runs may delete the temporary file as one of theirs.
        with contextlib.suppress(FileNotFoundError):
            return storage.create_if_absent(path, content, temporary)
    return storage.create_if_absent(path, content, temporary)


def names_of_runs(output: str) -> Iterator[str]:
    """The ids of runs that have left something under temporary names."""
    prefix = f"{output}/{TEMPORARY}/"
    seen: dict[str, None] = {}
    for file in storage.match([f"{prefix}**"]):
        path = file.path[file.path.find(prefix) + len(prefix) :]
        seen[path.partition("/")[0]] = None
    yield from seen
