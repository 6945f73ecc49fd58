"""ReadTweets: files of any supported format and filesystem -> tweets. Formats are in `formats`, fields in `fields`."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam

from torchmoji_core.errors import ChangedError, Fault, InputError, RunError, fault_of, raise_shortage
from torchmoji_core.files import NotRegularError, name_as_text
from transforms import metrics
from transforms.input import layouts
from transforms.input.fields import FieldMapping, partition_directory, position_id
from transforms.input.formats import absolute, read_records
from transforms.input.forms import Form, FormOptions, tells_format
from transforms.input.layouts import AUTO, PLAIN, Layout
from transforms.input.posts import PostReader
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import members_passed_over, recognize
from transforms.input.source_file import SourceError, SourceFile
from transforms.records import DeadLetter, Outcome, PartCount, Tweet
from transforms.storage import files as storage
from transforms.storage import listing

DEAD, COUNTS = "dead", "counts"
BESIDE: dict[str, type[Any]] = {DEAD: DeadLetter, COUNTS: PartCount}
"""What comes beside tweets, by its tag."""
PART_BYTES = 4 << 20
PART_ROWS = 16_384
BEAT_RECORDS = 10_000
"""How often reading shows progress, since what is read may never come to be scored."""
_HEAD_BYTES = 1 << 20
"""The first records of a file are looked for in so much of it."""
PARTS_OF_GROUP = 64
"""At most: each part of a row group decodes what is before it."""


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


class InputParts(NamedTuple):
    """What `SplitInputs` gives."""

    parts: beam.PCollection[Split]
    """Shuffled."""
    dead_letters: beam.PCollection[DeadLetter]
    counts: beam.PCollection[PartCount]
    """One of each file."""


class SplitInputs(beam.PTransform):
    """Find files, and cut each into parts. Gives `InputParts`.

    Only the parts' names are shuffled, so reading and all that follows runs in parallel with nothing but file names
    kept in between.
    """

    def __init__(
        self,
        inputs: Sequence[str | InputFile],
        form: FormOptions = FormOptions(),  # noqa: B008
        fields: FieldMapping = FieldMapping(),  # noqa: B008
        strict: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        inputs: paths, globs or URIs that Beam's filesystems know, or files that have been listed already.
        form: what is said of the files' form, which else each file shows.
        fields: where records have their text, id and so on; unused in format text.
        strict: whether a file that is gone or forbidden is an `UnreadableInput`, instead of one dead letter. One that
            the system fails to read always is.
        before: called by a worker before any file is opened; it may raise what ends the run.
        """
        super().__init__()
        self._inputs, self._before = list(inputs), before
        self._split = _SplitFiles(form, strict, fields)

    def expand(self, pbegin: beam.Pipeline) -> InputParts:
        split = (
            pbegin
            # One element, so that a file which several patterns match is read once.
            | "Inputs" >> beam.Create([self._inputs], reshuffle=False)
            | "MatchFiles" >> beam.FlatMap(_match, self._before)
            | "ReshuffleFiles" >> beam.Reshuffle()
            | "SplitFiles"
            >> beam.ParDo(self._split).with_output_types(Any, **BESIDE).with_outputs(*BESIDE, main="parts")
        )
        return InputParts(split["parts"] | "ReshuffleParts" >> beam.Reshuffle(), split[DEAD], split[COUNTS])


class ReadTweets(beam.PTransform):
    """Read tweets from files. Gives an `Outcome` of Tweets and DeadLetters; nothing is skipped."""

    def __init__(
        self,
        inputs: Sequence[str | InputFile],
        form: FormOptions = FormOptions(),  # noqa: B008
        fields: FieldMapping = FieldMapping(),  # noqa: B008
        strict: bool = False,
        progress: str | None = None,
    ) -> None:
        """Args as of `SplitInputs` and `PartReader`."""
        super().__init__()
        self._inputs = SplitInputs(inputs, form, fields, strict)
        self._read = _ReadParts(PartReader(fields, strict, progress))

    def expand(self, pbegin: beam.Pipeline) -> Outcome:
        split = pbegin | "SplitInputs" >> self._inputs
        read = split.parts | "ReadParts" >> beam.ParDo(self._read).with_output_types(Tweet, **BESIDE).with_outputs(
            *BESIDE, main="tweets"
        )
        return Outcome(read["tweets"], (split.dead_letters, read[DEAD]))


def _match(inputs: list[str | InputFile], before: Callable[[], None] | None) -> Iterator[InputFile]:
    if before is not None:
        before()
    found = {file.path: file for file in match_files([pattern for pattern in inputs if isinstance(pattern, str)])}
    found.update({file.path: file for file in inputs if isinstance(file, InputFile)})
    for path in sorted(found):
        metrics.counter(metrics.FILES_READ).inc()
        yield found[path]


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


class _SplitFiles(beam.DoFn):
    def __init__(self, form: FormOptions, strict: bool, fields: FieldMapping = FieldMapping()) -> None:  # noqa: B008
        self._form, self._strict, self._fields = form, strict, fields

    def process(self, file: InputFile) -> Iterator[Split | beam.pvalue.TaggedOutput]:
        parts = dead = 0
        for part in parts_of(file, self._form, self._fields, self._strict):
            if isinstance(part, DeadLetter):
                metrics.counter(metrics.READ).inc()
                dead += 1
            else:
                parts += 1
            yield beside(part)
        yield beside(PartCount(name_as_text(file.path), parts, dead, 0))


class PartReader:
    """Reads parts of files in a worker: counts what it reads, and shows progress."""

    def __init__(self, fields: FieldMapping, strict: bool = False, progress: str | None = None) -> None:
        """Args:
        fields: where records have their text, id and so on.
        strict: see `SplitInputs`.
        progress: directory of `metrics.Progress`, in local runs.
        """
        self._fields, self._strict, self._directory = fields, strict, progress
        self._progress: metrics.Progress | None = None

    def read(self, part: Split) -> Iterator[Tweet | DeadLetter | PartCount]:
        """The tweets of a part, dead letters, and at last how many records there were.

        Raises:
            UnreadableInput, ChangedError: see `raise_unless_gone`.
        """
        if self._progress is None:
            self._progress = metrics.Progress(self._directory)
        reader = reader_of(part, self._fields)
        total: Counter[str] = Counter()
        for number, tweet in enumerate(tweets_of(part, reader, self._strict), 1):
            if number % BEAT_RECORDS == 0:
                self._progress.add()
                total.update(reader.counts)
                metrics.count(reader.counts)
            if tweet is not None:
                yield tweet
        total.update(reader.counts)
        metrics.count(reader.counts)
        metrics.counter(metrics.BYTES_READ).inc(part.bytes_)
        self._progress.add(bytes_read=part.bytes_)
        yield PartCount(name_as_text(part.file.path), -1, total[metrics.READ], total[metrics.NOTICES])


def beside(item: Any) -> Any:
    """An element under the tag of its kind, if it is one of `BESIDE`."""
    for tag, kind in BESIDE.items():
        if isinstance(item, kind):
            return beam.pvalue.TaggedOutput(tag, item)
    return item


class _ReadParts(beam.DoFn):
    def __init__(self, reader: PartReader) -> None:
        self._reader = reader

    def process(self, part: Split) -> Iterator[Tweet | beam.pvalue.TaggedOutput]:
        return map(beside, self._reader.read(part))


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
