"""A file's parts, and the tweets that they hold. Formats are in `formats`, fields in `fields`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from torchmoji_core.errors import ChangedError, Fault, InputError, RunError, fault_of, raise_shortage
from torchmoji_core.files import NotRegularError, name_as_text
from transforms import metrics
from transforms.input import layouts
from transforms.input.fields import FieldMapping, partition_directory, position_id
from transforms.input.formats import read_records
from transforms.input.forms import Form, FormOptions
from transforms.input.inputs import InputFile
from transforms.input.layouts import AUTO, PLAIN, Layout
from transforms.input.posts import PostReader
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import members_passed_over, recognize
from transforms.input.source_file import SourceError, SourceFile
from transforms.records import DeadLetter, Tweet
from transforms.storage import files as storage

PART_BYTES = 4 << 20
PART_ROWS = 16_384
_HEAD_BYTES = 1 << 20
"""The first records of a file are looked for in so much of it."""
PARTS_OF_GROUP = 16
"""At most: each part of a row group decodes what is before it, so a row is decoded eight times on average."""


class Split(NamedTuple):
    """A part of a file that one worker reads: bytes [start, end) of text, rows [start, end) of Parquet."""

    file: InputFile
    form: Form
    start: int
    end: int | None
    bytes_: int
    """Size of the part in the file, for progress; an estimate where parts are rows or members."""
    layout: str | None = None
    """Name of the layout of its records; None if none was recognized, or one was given."""


def first_records(
    file: InputFile, opened: BinaryIO, form: Form, columns: Container[str] | None = None
) -> Iterator[Record]:
    """The whole records at the beginning of a file, in one of its forms.

    Raises:
        SourceError: if reading the file fails.
    """
    end = min(file.bytes_, _HEAD_BYTES) if form.is_splittable and form.format.has_line_records else None
    records = read_records(opened, form, 0, end, columns, file.path)
    return (record for record in records if isinstance(record, Record))


def recognize_layout(records: Iterable[Record], fields: FieldMapping) -> Layout | None:
    """The layout of a file, from its first records; None if it is unknown, or one was given.

    Raises:
        InputError: if several fields could be the text.
    """
    if fields.layout != AUTO:
        return None
    first = (record.value for record in itertools.islice(records, layouts.RECOGNIZED_FROM))
    return layouts.recognize(first, fields.text == (AUTO,))


def split_file(
    file: InputFile,
    options: FormOptions = FormOptions(),  # noqa: B008
    fields: FieldMapping = FieldMapping(),  # noqa: B008
) -> Iterator[Split]:
    """Recognize a file, and cut it into parts that can be read in parallel.

    Args:
        file: as it was listed.
        options: what is said of its form.
        fields: what is said of its layout.

    Raises:
        InputError: if it is in no form that can be read, or a Parquet file's footer is damaged.
        OSError, SourceError: if the file cannot be opened, or reading it fails.
        ChangedError: if it is not what was listed.
    """
    with storage.open_listed(file.place, file.version) as opened:
        forms = recognize(opened, file.path, options)
        if passed_over := members_passed_over(opened, forms):
            metrics.counter(metrics.MEMBERS_PASSED_OVER).inc(passed_over)
        share, rest = divmod(file.bytes_, max(1, len(forms)))
        for number, form in enumerate(forms):
            records = first_records(file, opened, form, layouts.COLUMNS)
            layout = None if form.kind == "text" else recognize_layout(records, fields)
            name = layout.name if layout else None
            yield from _split_form(file, form, opened, share + (rest if number == 0 else 0), name)


def _split_form(file: InputFile, form: Form, opened: BinaryIO, size: int, layout: str | None) -> Iterator[Split]:
    if not form.is_splittable:
        yield Split(file, form, 0, None, size, layout)
    elif form.format.count_rows is not None:
        rows, largest_group = form.format.count_rows(SourceFile(opened))
        step = max(PART_ROWS, largest_group // PARTS_OF_GROUP)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            yield Split(file, form, start, end, size * (end - start) // rows, layout)
    else:
        for start in range(0, size, PART_BYTES):
            end = min(start + PART_BYTES, size)
            yield Split(file, form, start, end, end - start, layout)


class UnreadableInput(RunError):
    """A file of the input cannot be opened or read on; `unreadable_path` finds its name in what a runner says."""

    def __init__(self, path: str, reason: object) -> None:
        self.path, self.reason = path, str(reason)
        super().__init__(f"input {json.dumps(path)} cannot be opened: {reason}")


def unreadable_path(message: str) -> str | None:
    """The file that an `UnreadableInput` was about, from the text of a run's error; None for other errors."""
    found = re.search(r'UnreadableInput: input ("(?:[^"\\]|\\.)*") cannot be opened', message)
    return str(json.loads(found[1])) if found else None


def raise_unless_gone(path: str, error: Exception, strict: bool) -> None:
    """Raise the error that has kept a file from being read, unless the file is gone, forbidden or no regular file.

    If a disk, network or store fails, the file is not at fault: its records would be lost for one dead letter.

    Args:
        path: of the file.
        error: of opening it, or a `SourceError` of reading it.
        strict: whether a file that is gone is an error as well.

    Raises:
        UnreadableInput: about the file.
        ChangedError: if it is not what was listed any more.
        Exception: as it came, if it tells of a shortage, which is of the machine and would be met with every file.
    """
    raise_shortage(error)
    cause = error.__cause__ if isinstance(error, SourceError) and error.__cause__ is not None else error
    if isinstance(cause, ChangedError):
        raise cause
    is_gone = isinstance(cause, OSError) and (
        isinstance(cause, FileNotFoundError | NotRegularError) or fault_of(cause) is Fault.FILE
    )
    if strict or not is_gone:
        reason = f"reading failed: {cause}" if cause is not error else cause
        raise UnreadableInput(path, reason) from error


def parts_of(
    file: InputFile, form: FormOptions, fields: FieldMapping, strict: bool = False
) -> Iterator[Split | DeadLetter]:
    """The parts of a file; or a dead letter, if it cannot be read as a whole: one record met, and dead.

    Raises:
        UnreadableInput, ChangedError: see `raise_unless_gone`.
    """
    try:
        yield from split_file(file, form, fields)
    except (InputError, OSError, SourceError) as error:
        if not isinstance(error, InputError):
            raise_unless_gone(file.path, error, strict)
        yield DeadLetter(name_as_text(file.path), "0", str(error), b"")


def tweets_of(part: Split, reader: PostReader, strict: bool = False) -> Iterator[Tweet | DeadLetter | None]:
    """What a part holds, as of `to_tweets`.

    Raises:
        UnreadableInput, ChangedError: see `raise_unless_gone`.
    """
    file, path = part.file, part.file.path
    try:
        with storage.open_listed(file.place, file.version) as opened:
            records = read_records(opened, part.form, part.start, part.end, reader.columns, path)
            yield from to_tweets(records, path, reader, file.modified)
            storage.check_unchanged(opened, file.place, file.version)
    except (OSError, SourceError) as error:
        raise_unless_gone(path, error, strict)
        # The file was there when it was split and is not now, or access to it was lost.
        reader.counts[metrics.READ] += 1
        yield DeadLetter(name_as_text(path), str(part.start), f"cannot be opened: {error}", b"")


def reader_of(part: Split, fields: FieldMapping) -> PostReader:
    """What reads the records of a part."""
    return PostReader(fields, layouts.named(part.layout or PLAIN.name))


def to_tweets(
    records: Iterable[Record | Damage], source: str, reader: PostReader, modified: float | None = None
) -> Iterator[Tweet | DeadLetter | None]:
    """Records of a file as tweets or dead letters, and None for each notice.

    The reader counts them.
    """
    source_name, fields, counts = name_as_text(source), reader.mapping, reader.counts
    # The record of a line of text has nothing else.
    of_lines = (source_name, partition_directory({}, fields, None, modified) if fields.partition_by else "")
    kept = (None,) * len(fields.keep)
    for record in records:
        if isinstance(record, Damage):
            counts[metrics.READ] += 1
            yield DeadLetter(source_name, str(record.position), record.reason, record.raw)
        elif isinstance(record.value, str):
            counts[metrics.READ] += 1
            yield Tweet(position_id(source, record.position), record.value, None, kept, *of_lines)
        else:
            yield from reader.read(record, source, source_name, modified)
