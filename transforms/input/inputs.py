"""The files that paths, globs and URIs match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchmoji_core.errors import InputError
from transforms.input.formats import absolute
from transforms.input.forms import tells_format
from transforms.storage import files as storage
from transforms.storage import listing


class InputFile(NamedTuple):
    """A file as it was listed."""

    path: str
    bytes_: int
    modified: float | None = None
    """Seconds since 1970 of its last change, where the filesystem knows."""
    version: str | None = None
    """As of `listing.FileFacts`: what is read must be of it."""
    spooled: str | None = None
    """The local file that holds what a pipe gave."""

    @property
    def place(self) -> str:
        """Where its content is."""
        return self.spooled or self.path


class Listed(NamedTuple):
    """What a pattern matches."""

    files: list[InputFile]
    """Sorted by path. Among them may be what cannot be read, a pipe for instance; opening it says so."""
    is_named: bool
    """Whether the pattern is the name of one file."""
    links: list[str]
    """Links to directories, which are not followed."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reason; there may be files in them."""


def list_files(pattern: str) -> Listed:
    """The files that a pattern (path, glob, URI) matches; maybe none.

    Raises:
        InputError: if its filesystem cannot be reached.
    """
    pattern = absolute(pattern)
    try:
        if not storage.is_local(pattern) and listing.is_glob(pattern) and (named := _object(pattern)):
            return Listed([_input_file(named)], True, [], {})
        found = storage.find(pattern)
    except OSError as error:
        raise InputError(f"input {pattern}: cannot be listed ({error}); check the address") from None
    # A directory is not a file; but if one is called like a file, the user took it for one.
    directories = [InputFile(path, 0) for path in found.directories if tells_format(path)]
    return Listed(
        sorted([*map(_input_file, found.files), *directories], key=lambda file: file.path),
        not listing.is_glob(pattern),
        found.links,
        {path: str(error) for path, error in found.unlisted.items()},
    )


def _object(path: str) -> listing.FileFacts | None:
    """The object whose name holds characters that would make it a glob, if it is there."""
    if not path.rpartition("/")[2].partition(".")[0].strip("*"):
        return None
    try:
        return storage.metadata(path)
    except PermissionError:  # without the right to read, this is how the store says that it is not there
        return None


def _input_file(file: listing.FileFacts) -> InputFile:
    return InputFile(file.path, file.size_in_bytes, file.last_updated_in_seconds or None, file.version)


def match_files(patterns: Sequence[str]) -> list[InputFile]:
    """The files that patterns match, each once, sorted by path.

    Raises:
        InputError: if a pattern matches nothing, or not all that it matches can be listed.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        listed = list_files(pattern)
        for path, reason in listed.unlisted.items():
            raise InputError(f"input {pattern}: directory {path} cannot be listed ({reason})")
        if not listed.files:
            raise InputError(
                f"input {absolute(pattern)}: no file matches; check the path, and quote globs in the shell"
            )
        found.update({file.path: file for file in listed.files})
    return [found[path] for path in sorted(found)]
