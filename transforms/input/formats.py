"""Files of any form as records. Pure functions, no Beam.

A reader yields a `Record` for what could be read and a `Damage` for what could not, and goes on behind the damage
where the format allows.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Container, Iterator
from typing import BinaryIO
from urllib.parse import unquote

from torchmoji_core.errors import InputError
from torchmoji_core.locations import plain
from transforms.input.compression import READ_ERRORS
from transforms.input.encodings import as_utf_8
from transforms.input.fields import HIVE_NULL
from transforms.input.forms import Form
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import open_content
from transforms.input.source_file import SourceFile, raise_unless_damage
from transforms.storage.listing import Glob, with_names_that_exist

STANDARD_INPUT = "-"


def absolute(path: str) -> str:
    """A local path or glob as an absolute one, so that a file has one name, and ids hold, wherever a run is started.

    A directory stands for the files in it and below it. A name that exists is that file or directory, not a glob:
    its characters are escaped, as by `glob.escape`.

    Raises:
        InputError: if it is empty, as a shell's variable is that was not set: the current directory is `.`.
    """
    if not path:
        raise InputError("an input is empty; give a file, a directory or a glob, . for the current directory")
    if isinstance(path, Glob) or path == STANDARD_INPUT:
        return path
    path = plain(path)
    if "://" in path:
        return path
    path = "/" + os.path.abspath(path).lstrip("/")  # noqa: PTH100 - links are to stay as given
    if os.path.isdir(path):  # noqa: PTH112
        return Glob(f"{glob.escape(path.rstrip('/'))}/**")
    return with_names_that_exist(path)


def absolute_directory(path: str) -> str:
    """A local directory as an absolute path without a slash at its end; a URI likewise."""
    path = plain(path)
    return path.rstrip("/") or "/" if "://" in path else os.path.abspath(path)  # noqa: PTH100


def read_records(
    file: BinaryIO,
    form: Form,
    start: int = 0,
    end: int | None = None,
    columns: Container[str] | None = None,
    path: str = "",
) -> Iterator[Record | Damage]:
    """Read one file, or the part of it that starts in [start, end).

    Args:
        file: seekable; as it is stored.
        form: as `recognize` has found it.
        start: byte offset (text, jsonl; see `Form.is_splittable`) or row (Parquet) of the part.
        end: end of the part; None for the end of the file.
        columns: top-level columns to read, where the format can choose (Parquet, Arrow); None for all.
        path: its name, whose directories may be fields: see `directory_fields`.

    Raises:
        SourceError: if reading the file fails.
        Exception: for lack of memory and the like. Neither is damage.
    """
    try:
        content = open_content(SourceFile(file), form)
        if form.format.begins is None:
            content = as_utf_8(content, form.encoding, form.newline)
        records = form.format.read(content, form, start, end, columns)
    except (InputError, *READ_ERRORS) as error:
        if not isinstance(error, InputError):
            raise_unless_damage(error)
        records = iter([Damage(start, f"cannot be read: {error}", b"")])
    if form.member is not None:
        records = (record._replace(position=f"{form.member}:{record.position}") for record in records)
    if fields := directory_fields(path):
        records = (
            record._replace(value=fields | record.value)
            if isinstance(record, Record) and isinstance(record.value, dict)
            else record
            for record in records
        )
    return records


def directory_fields(path: str) -> dict[str, str | None]:
    """The fields that the directories of a file are called by, as Hive and Spark lay out a table.

    >>> directory_fields("/tweets/lang=en/place=Sao%20Paulo/part-0.parquet")
    {'lang': 'en', 'place': 'Sao Paulo'}
    """
    parts = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return {unquote(name): None if value == HIVE_NULL else unquote(value) for name, _, value in parts if name}
