"""Which files the patterns of a command match, which are passed over, and which inputs of a data set are gone."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torchmoji_core.errors import ChangedError, InputError, raise_shortage
from transforms.input.formats import STANDARD_INPUT, absolute_directory
from transforms.input.forms import FORMATS, tells_format
from transforms.input.inputs import InputFile, list_files
from transforms.storage import files as storage
from transforms.storage.listing import Glob, facts, has_directory, is_glob, translate, why_not_gone

MAX_NAMED = 5
"""Files that a message names of many."""
_OPENERS = 16


@dataclass
class Inputs:
    """What was found."""

    files: dict[str, InputFile] = field(default_factory=dict)
    """By path."""
    named: set[str] = field(default_factory=set)
    """Those of the files that a pattern is the name of."""
    passed_over: list[str] = field(default_factory=list)
    """What directories and globs have beside: names that tell no format or are hidden, and links to directories."""
    unlisted: dict[str, str] = field(default_factory=dict)
    """Directories that could not be listed, with the reason."""
    vanished: list[str] = field(default_factory=list)
    """Inputs of the data set that the patterns would match, and that were not listed."""
    not_gone: dict[str, str] = field(default_factory=dict)
    """Those of the vanished that may not have been deleted, with the reason."""

    @property
    def no_files(self) -> set[str]:
        """Those of the files that are not regular files, or cannot be looked at; opening them will say why."""
        return {path for path, file in self.files.items() if file.version is None and storage.is_local(path)}


def list_inputs(
    patterns: Sequence[str],
    format: str | None,
    live: Collection[str] = (),
    to_be_retired: bool = False,
    may_come: bool = False,
    output: str = "",
) -> Inputs:
    """List what the patterns of a command match.

    Args:
        patterns: paths, directories, globs and URIs.
        format: of all files, if it is given.
        live: paths of the inputs that a data set has already.
        to_be_retired: whether to find out which of those that are not listed are `not_gone`, for one look at each.
        may_come: whether a glob in a directory that is there may match nothing yet.
        output: directory whose files are passed over, since the command writes there.

    Raises:
        InputError: if a pattern matches nothing, and never did, or its filesystem cannot be reached.
    """
    found = Inputs()
    ours_begin = f"{absolute_directory(output)}/" if output else None
    vanished: dict[str, None] = {}
    for pattern in patterns:
        if pattern == STANDARD_INPUT:
            found.files[pattern] = InputFile(pattern, 0)
            found.named.add(pattern)
            continue
        if pattern.endswith("/"):
            pattern += "**"  # of an object store: where there are directories, they have become globs
        matches = translate(pattern).fullmatch
        ours = {path for path in live if matches(path)}
        if pattern in live and not ours - {pattern}:
            # It was the name of a file. That file is gone, so the name looks like a glob.
            pattern, ours = Glob(glob.escape(pattern)), {pattern}
        listed = list_files(pattern)
        files, passed_over = {}, listed.links
        for file in listed.files:
            is_ours = ours_begin is not None and file.path.startswith(ours_begin)
            if listed.is_named or file.path in live or (not is_ours and _is_meant(file.path, pattern, format)):
                files[file.path] = file
            else:
                passed_over.append(file.path)
        if not (files or ours or listed.unlisted or (may_come and _is_awaited(pattern))):
            raise InputError(f"input {pattern}: {_nothing(passed_over)}")
        found.files |= files
        found.named |= files.keys() if listed.is_named else set()
        found.passed_over += passed_over
        found.unlisted |= {path: why for path, why in listed.unlisted.items() if not _is_hidden(path, pattern)}
        vanished |= dict.fromkeys(ours - files.keys())
        if not files and is_glob(pattern):
            reason = f"nothing that {pattern} matches is there; is its filesystem?"
            found.not_gone |= dict.fromkeys(ours, reason)
    if not found.files and not vanished:
        for path, reason in found.unlisted.items():
            raise InputError(f"input {path}: cannot be listed ({reason}); check its permissions and its filesystem")
    found.vanished = sorted(vanished.keys() - found.files.keys())
    found.passed_over = sorted(set(found.passed_over) - found.files.keys())
    if to_be_retired:
        reasons = {path: why_not_gone(path) for path in found.vanished if storage.is_local(path)}
        found.not_gone |= {path: reason for path, reason in reasons.items() if reason}
    found.not_gone = {path: found.not_gone[path] for path in found.vanished if path in found.not_gone}
    return found


def _is_awaited(pattern: str) -> bool:
    """Whether files may come that a pattern matches."""
    return has_directory(pattern) if storage.is_local(pattern) else is_glob(pattern)


def _is_meant(path: str, pattern: str, format: str | None) -> bool:
    """Whether a file is one of those that a directory or a glob is given for: its format is told, or given.

    Names that begin with a dot or an underscore, of files or of directories below, belong to desktops, to files that
    are being written, and to what others have put there. They are read only if the glob begins so too.
    """
    return not _is_hidden(path, pattern) and (tells_format(path) or format is not None)


def _is_hidden(path: str, pattern: str) -> bool:
    asked = pattern.split("/")
    return any(
        name[:1] in (".", "_") and (index >= len(asked) or asked[index][:1] != name[:1])
        for index, name in enumerate(path.split("/"))
    )


def spool_pipes(inputs: Inputs, scratch: str) -> None:
    """Copy to files of our own what can be read only once: standard input, and pipes that were given by name.

    Args:
        inputs: whose files become those.
        scratch: a private local directory, which is removed at the end.

    Raises:
        InputError: if there is no such input.
    """
    for number, path in enumerate(sorted(inputs.named)):
        if path != STANDARD_INPUT and not _is_pipe(path):
            continue
        spooled = Path(scratch, f"input-{number}")
        try:
            source = _standard_input() if path == STANDARD_INPUT else os.open(path, os.O_RDONLY | os.O_NOCTTY)
            with open(source, "rb") as pipe, spooled.open("wb") as file:  # noqa: PTH123 - a descriptor
                shutil.copyfileobj(pipe, file, 1 << 20)
        except OSError as error:
            raise_shortage(error)
            raise InputError(f"input {path}: cannot be read ({error})") from None
        status = spooled.stat()
        known = facts(str(spooled), status)
        inputs.files[path] = InputFile(path, known.size_in_bytes, status.st_mtime, known.version, str(spooled))


def _is_pipe(path: str) -> bool:
    try:
        return storage.is_local(path) and stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False


def _standard_input() -> int:
    """Standard input as a descriptor of its own.

    Raises:
        InputError: if nothing can be read from it.
    """
    try:
        descriptor = os.dup(0)
    except OSError:
        raise InputError("input -: standard input is closed") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) and not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("input -: standard input is neither a pipe nor a file; pipe something into the command")
    return descriptor


def _nothing(passed_over: Sequence[str]) -> str:
    if passed_over:
        return (
            f"all names begin with . or _, or tell no format ({named(passed_over)}); give one file's own name, or for "
            f"all files --format {{{','.join(FORMATS)}}}"
        )
    return "no file matches; check the path, and quote globs in the shell"


def named(paths: Sequence[str]) -> str:
    """Some paths of many, for a message."""
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return f"{', '.join(paths[:MAX_NAMED])}{more}"


@dataclass
class Opened:
    """What trying to open files gave."""

    unreadable: dict[str, str] = field(default_factory=dict)
    """With the reason."""
    changed: set[str] = field(default_factory=set)
    """Since they were listed, or gone."""


def try_to_open(files: Iterable[InputFile]) -> Opened:
    """Find out which local files cannot be opened: not permitted, no regular file, links that lead nowhere.

    Files in object stores are not looked at, which would take a request each: reading will tell.
    """

    def open_it(file: InputFile) -> OSError | ChangedError | None:
        try:
            storage.open_listed(file.place, file.version).close()
        except (OSError, ChangedError) as error:
            raise_shortage(error)  # that of the machine is not the file's
            return error
        return None

    opened = Opened()
    local = [file for file in files if storage.is_local(file.place)]
    with ThreadPoolExecutor(_OPENERS) as threads:
        for file, error in zip(local, threads.map(open_it, local), strict=True):
            # A file without a version was not a regular file when it was listed: perhaps a link that leads nowhere.
            if isinstance(error, ChangedError) or (isinstance(error, FileNotFoundError) and file.version is not None):
                opened.changed.add(file.path)
            elif error is not None:
                opened.unreadable[file.path] = str(error)
    return opened


def check_readable(inputs: Inputs) -> dict[str, str]:
    """The inputs that cannot be opened.

    Raises:
        InputError: if one of them was given by its name, or a directory cannot be listed.
    """
    for path, reason in inputs.unlisted.items():
        raise InputError(
            f"input {path}: cannot be listed ({reason}); check its permissions, or give patterns that leave it out"
        )
    unreadable = try_to_open(inputs.files.values()).unreadable
    for path in sorted(inputs.named & unreadable.keys()):
        raise InputError(f"input {path}: cannot be read ({unreadable[path]})")
    return unreadable


def by_reason(paths: Mapping[str, str]) -> dict[str, list[str]]:
    """Paths with the same reason together."""
    together: dict[str, list[str]] = {}
    for path, reason in paths.items():
        together.setdefault(reason, []).append(path)
    return together
