"""Which local files a glob matches, and what could not be listed. No Beam: its own listing passes over errors.

Globs are Beam's: `*` stands for any characters of one name, `**` for any with the directories between them, `?` for one
character, `[abc]` for one of some; names that begin with a dot are matched like others. Links to directories are
followed where the glob spells them out, and not where it only matches them, so a circle of links has no effect.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_MAGIC = re.compile(r"[*?[]")


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """A file as it is listed."""

    path: str
    size_in_bytes: int
    last_updated_in_seconds: float = 0.0
    """Since 1970; 0 where that is not known."""
    version: str | None = None
    """What changes whenever the content does: of local files size, time of the last change and time of the last change
    of the inode, which cannot be set back; the ETag of an object; None where nothing tells."""


@dataclasses.dataclass
class Listing:
    """What a glob matches."""

    files: list[FileFacts] = dataclasses.field(default_factory=list)
    """All but directories. A file that is not a regular one has no version; opening it says what it is."""
    directories: list[str] = dataclasses.field(default_factory=list)
    """Directories that match, where the glob does not go on into them."""
    links: list[str] = dataclasses.field(default_factory=list)
    """Links to directories that were not followed."""
    unlisted: dict[str, OSError] = dataclasses.field(default_factory=dict)
    """Directories that could not be listed."""


def is_glob(pattern: str) -> bool:
    """Whether something in a pattern may stand for something else."""
    return bool(_MAGIC.search(glob_free(pattern)))


def glob_free(pattern: str) -> str:
    """A pattern without its escaped characters."""
    return re.sub(r"\[[*?[]\]", "", pattern)


def unescape(pattern: str) -> str:
    """The name that `glob.escape` was given."""
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


class Glob(str):
    """A glob in which names that are there have been escaped already."""

    __slots__ = ()


def with_names_that_exist(path: str) -> Glob:
    """A local path in which names that exist are escaped, up to the first that does not: they mean themselves.

    A name whose stem is nothing but stars stays a glob, whatever is there: a file called `*.jsonl` must not stand in
    for all the others.
    """
    if isinstance(path, Glob):
        return path
    known, names = "", path.split("/")
    for index, name in enumerate(names):
        is_there = bool(name.partition(".")[0].strip("*")) and os.path.lexists(known + name)
        if is_glob(name) and not is_there:
            return Glob(glob.escape(known) + "/".join(names[index:]))
        known += f"{name if is_there else unescape(name)}/"
    return Glob(glob.escape(known[:-1]))


def translate(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob, for whole paths."""
    expression, position = "", 0
    while position < len(pattern):
        character = pattern[position]
        in_set = re.match(r"\[(!?)(\]?[^]/]*)\]", pattern[position:])
        if pattern.startswith("**", position):
            expression += ".*"
            position += 2
        elif character == "[" and in_set:
            content = re.sub(r"([\\\]^[&~|])", r"\\\1", in_set[2])
            expression += f"[{'^/' if in_set[1] else ''}{content}]"
            position += in_set.end()
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
            position += 1
    try:
        return re.compile(expression, re.DOTALL)
    except re.error:  # [z-a]
        return re.compile(re.escape(pattern))


def facts(path: str, status: os.stat_result) -> FileFacts:
    """What `os.stat` has said of a file."""
    if not stat.S_ISREG(status.st_mode):
        return FileFacts(path, 0, status.st_mtime)
    return FileFacts(path, status.st_size, status.st_mtime, version(status))


def version(status: os.stat_result) -> str:
    """As of `FileFacts`. Not the inode: some networked filesystems give files new ones when memory is short."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def list_local(pattern: str) -> Listing:
    """The files that a glob matches, in no order."""
    found = Listing()
    directory, names = _fixed(pattern)
    _walk(directory, names, pattern, found)
    return found


def has_directory(pattern: str) -> bool:
    """Whether a local pattern is a glob, and the directory that it spells out is there."""
    directory, names = _fixed(pattern)
    return any(map(is_glob, names)) and os.path.isdir(directory or ".")  # noqa: PTH112


def _fixed(pattern: str) -> tuple[str, list[str]]:
    """The directory that a glob spells out, with a slash at its end, "" for the current one; and the names after it."""
    names = pattern.split("/")
    fixed = next((index for index, name in enumerate(names) if is_glob(name)), len(names) - 1)
    return unescape("/".join(names[:fixed])) + "/" if fixed else "", names[fixed:]


def _walk(directory: str, names: list[str], pattern: str, found: Listing, is_matched: bool = False) -> None:
    """List what the rest of a glob matches.

    Args:
        directory: where, with a slash at its end; "" for the current one.
        names: the rest of the glob.
        pattern: all of it.
        found: what was found, to be added to.
        is_matched: whether the glob has only matched the directory, and not spelled it out.
    """
    name, rest = names[0], names[1:]
    if "**" in name:
        _walk_deep(directory, translate(pattern), found)
    elif not is_glob(name):
        path = directory + unescape(name)
        if rest:
            _walk(f"{path}/", rest, pattern, found, is_matched)
        else:
            _take(path, found)
    else:
        matches = translate(name).fullmatch
        for entry in _entries(directory, found, is_matched):
            if not matches(entry.name):
                continue
            path = directory + entry.name
            if not rest:
                _take(path, found)
            elif _is_directory(entry):
                _walk(f"{path}/", rest, pattern, found, True)
            elif entry.is_symlink() and os.path.isdir(path):  # noqa: PTH112
                found.links.append(path)


def _walk_deep(directory: str, expression: re.Pattern[str], found: Listing) -> None:
    waiting = [directory]
    while waiting:
        current = waiting.pop()
        for entry in _entries(current, found, current != directory):
            path = current + entry.name
            if _is_directory(entry):
                waiting.append(f"{path}/")
            elif entry.is_symlink() and os.path.isdir(path):  # noqa: PTH112
                found.links.append(path)
            elif expression.fullmatch(path):
                _take(path, found)


def _entries(directory: str, found: Listing, is_matched: bool) -> Iterator[os.DirEntry[str]]:
    """The entries of a directory: none if it is gone, or if the glob only matched it and it is not a directory."""
    try:
        with os.scandir(directory or ".") as entries:
            yield from list(entries)
    except FileNotFoundError:
        return
    except OSError as error:
        if not (is_matched and isinstance(error, NotADirectoryError)):
            found.unlisted[directory.rstrip("/") or directory] = error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return True  # listing it will say what is the matter


def _take(path: str, found: Listing) -> None:
    """Add a file, if it exists. If nothing can be found out about it, it is added; opening it will say why."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):  # noqa: PTH114
            found.files.append(FileFacts(path, 0))
        return
    except OSError:
        found.files.append(FileFacts(path, 0))
        return
    if stat.S_ISDIR(status.st_mode):
        found.directories.append(path)
    else:
        found.files.append(facts(path, status))


def why_not_gone(path: str) -> str | None:
    """Why a local file that was not listed may not have been deleted; None if it was deleted.

    A filesystem that is not mounted leaves an empty directory. So does deleting all files in it. So an empty directory
    is no proof of deletion, and neither is one that cannot be reached.
    """
    try:
        os.lstat(path)
        return "it is there, and was not listed"
    except FileNotFoundError:
        pass
    except OSError as error:
        return str(error)
    for directory in Path(path).parents:
        try:
            with os.scandir(directory) as entries:
                if next(entries, None) is None:
                    return f"{directory} is empty, as where no filesystem is mounted; delete it if that is meant"
                return None
        except FileNotFoundError:
            if directory.is_symlink():
                return f"{directory} is a link that leads nowhere, as to a filesystem that is not mounted"
        except OSError as error:
            return str(error)
    return None
