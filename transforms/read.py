"""ReadTweets: files of any supported format and filesystem -> tweets. Formats are in `formats`, fields in `fields`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems

from torchmoji_core.errors import InputError
from transforms import metrics
from transforms.fields import (
    FieldError,
    FieldMapping,
    convert_kept,
    find_id,
    find_text,
    find_timestamp,
    look_up,
    position_id,
)
from transforms.formats import (
    RAW_KEPT,
    Damage,
    Record,
    absolute,
    is_splittable,
    parquet_rows,
    read_records,
    resolve_format,
)
from transforms.records import DeadLetter, Outcome, Tweet

DEAD = "dead"
PART_BYTES = 4 << 20
PART_ROWS = 16_384
PARTS_OF_GROUP = 64
"""At most: each part of a row group decodes what is before it."""


class FilePart(NamedTuple):
    """A part of a file that one worker reads: bytes [start, end) of text, rows [start, end) of Parquet."""

    path: str
    kind: str
    start: int
    end: int | None
    bytes_: int
    """Size of the part in the file, for progress; an estimate where parts are rows."""


def open_raw(path: str) -> BinaryIO:
    """Open a file on any of Beam's filesystems for reading, without decompression."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)  # type: ignore[no-any-return]


def match_files(patterns: list[str]) -> list[FileMetadata]:
    """The files that patterns (paths, globs, URIs) match, each once, sorted by path.

    Raises:
        InputError: if a pattern matches nothing, or its filesystem cannot be reached.
    """
    found: dict[str, FileMetadata] = {}
    for pattern in map(absolute, patterns):
        try:
            (result,) = FileSystems.match([pattern])
        except (BeamIOError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"input {pattern}: cannot be listed ({reason}); check the address, and this package's extras"
            ) from None
        if not result.metadata_list:
            raise InputError(f"input {pattern}: no file matches; check the path, and quote globs in the shell")
        found.update({metadata.path: metadata for metadata in result.metadata_list})
    return [found[path] for path in sorted(found)]


def split_file(path: str, size: int, kind: str) -> Iterator[FilePart]:
    """Cut a file into parts that can be read in parallel.

    Raises:
        InputError: if a Parquet file's footer cannot be read.
    """
    if kind == "parquet":
        with open_raw(path) as file:
            rows, largest_group = parquet_rows(file)
        step = max(PART_ROWS, largest_group // PARTS_OF_GROUP)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            yield FilePart(path, kind, start, end, size * (end - start) // rows)
    elif is_splittable(path, kind):
        for start in range(0, size, PART_BYTES):
            end = min(start + PART_BYTES, size)
            yield FilePart(path, kind, start, end, end - start)
    else:
        yield FilePart(path, kind, 0, None, size)


class ReadTweets(beam.PTransform):
    """Read tweets from files. Gives an `Outcome` of Tweets and DeadLetters; nothing is skipped.

    Each file is cut into parts, and only the parts' names are shuffled, so reading and all that follows runs in
    parallel with nothing but file names kept in between.
    """

    def __init__(
        self,
        patterns: list[str],
        format: str | None = None,
        fields: FieldMapping = FieldMapping(),  # noqa: B008
        progress: str | None = None,
    ) -> None:
        """Args:
        patterns: paths, globs or URIs that Beam's filesystems know.
        format: one of `formats.FORMATS`; None to go by each file's name.
        fields: where records have their text, id and so on; unused in format text.
        progress: directory of `metrics.Progress`, in local runs.
        """
        super().__init__()
        self._patterns, self._format, self._fields, self._progress = patterns, format, fields, progress

    def expand(self, pbegin: beam.Pipeline) -> Outcome:
        split = (
            pbegin
            # One element, so that a file which several patterns match is read once.
            | "Patterns" >> beam.Create([self._patterns], reshuffle=False)
            | "MatchFiles" >> beam.FlatMap(_match)
            | "ReshuffleFiles" >> beam.Reshuffle()
            | "SplitFiles"
            >> beam.ParDo(_SplitFiles(self._format))
            .with_output_types(Any, dead=DeadLetter)
            .with_outputs(DEAD, main="parts")
        )
        read = (
            split["parts"]
            | "ReshuffleParts" >> beam.Reshuffle()
            | "ReadParts"
            >> beam.ParDo(_ReadParts(self._fields, self._progress))
            .with_output_types(Tweet, dead=DeadLetter)
            .with_outputs(DEAD, main="tweets")
        )
        dead = (split[DEAD], read[DEAD]) | "DeadLetters" >> beam.Flatten()
        return Outcome(read["tweets"], dead)


def _match(patterns: list[str]) -> Iterator[tuple[str, int]]:
    for metadata in match_files(patterns):
        metrics.counter(metrics.FILES_READ).inc()
        yield metadata.path, metadata.size_in_bytes


class _SplitFiles(beam.DoFn):
    def __init__(self, format: str | None) -> None:
        self._format = format

    def process(self, file: tuple[str, int]) -> Iterator[FilePart | beam.pvalue.TaggedOutput]:
        path, size = file
        try:
            yield from split_file(path, size, resolve_format(path, self._format))
        except (InputError, OSError, BeamIOError) as error:
            # Unreadable as a whole: one record met, and dead.
            metrics.counter(metrics.READ).inc()
            yield beam.pvalue.TaggedOutput(DEAD, DeadLetter(path, "0", str(error), b""))


class _ReadParts(beam.DoFn):
    def __init__(self, fields: FieldMapping, progress: str | None) -> None:
        self._fields = fields
        self._progress_directory = progress

    def setup(self) -> None:
        self._progress = metrics.Progress(self._progress_directory)

    def process(self, part: FilePart) -> Iterator[Tweet | beam.pvalue.TaggedOutput]:
        read = metrics.counter(metrics.READ)
        try:
            with open_raw(part.path) as file:
                records = read_records(file, part.path, part.kind, part.start, part.end, self._fields.columns)
                for tweet in to_tweets(records, part.path, self._fields):
                    read.inc()
                    if isinstance(tweet, DeadLetter):
                        yield beam.pvalue.TaggedOutput(DEAD, tweet)
                    else:
                        yield tweet
        except (OSError, BeamIOError) as error:
            # The file was there when it was split and is not now, or access to it was lost.
            read.inc()
            yield beam.pvalue.TaggedOutput(
                DEAD, DeadLetter(part.path, str(part.start), f"cannot be opened: {error}", b"")
            )
        metrics.counter(metrics.BYTES_READ).inc(part.bytes_)
        self._progress.add(bytes_read=part.bytes_)


def to_tweets(records: Iterator[Record | Damage], source: str, fields: FieldMapping) -> Iterator[Tweet | DeadLetter]:
    """Records of a file as tweets; those that are none as dead letters."""
    for record in records:
        if isinstance(record, Damage):
            yield DeadLetter(source, str(record.position), record.reason, record.raw)
            continue
        try:
            yield _to_tweet(record, source, fields)
        except FieldError as error:
            raw = record.raw or json.dumps(record.value, ensure_ascii=False, default=str).encode("utf-8", "replace")
            yield DeadLetter(source, str(record.position), str(error), raw[:RAW_KEPT])


def _to_tweet(record: Record, source: str, fields: FieldMapping) -> Tweet:
    value = record.value
    if isinstance(value, str):
        return Tweet(position_id(source, record.position), value)
    return Tweet(
        find_id(value, fields, source, record.position),
        find_text(value, fields),
        find_timestamp(value, fields),
        tuple(convert_kept(look_up(value, field.name), field) for field in fields.keep),
    )
