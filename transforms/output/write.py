"""WriteScores and WriteDeadLetters: files that appear whole, under unique names, in their own window's directory.

A bundle writes to temporary files, one for each window, partition and schema; only their names are shuffled; then each
is put in place (see `commit`). Since names are unique, late data and further panes get files of their own.
(Beam's own Parquet sink corrupts or mixes files of several windows, and its generic one overwrites a window's first
pane with the next.)
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.locations import plain
from transforms import metrics
from transforms.columns import PARTITION_COLUMN
from transforms.options import ROWS_PER_FILE
from transforms.output.commit import (
    DEAD_LETTERS,
    TEMPORARY,
    CommitFiles,
    WrittenFile,
    committed_directory,
    journal_directory,
)
from transforms.output.file_writers import (
    ROWS_PER_GROUP,
    Background,
    FileWriter,
    JsonLinesFileWriter,
    ParquetFileWriter,
)
from transforms.records import DeadLetter
from transforms.storage import files as storage

MAX_OPEN_FILES = 128
MAX_OPEN_UPLOADS = 16
"""Files that a bundle has open at a time; more partitions get more and smaller files. An upload holds megabytes."""
WAITING_BYTES = 32 << 20
"""What waits in memory in all files of a bundle together, before the largest row group is joined or written."""


class WriteScores(beam.PTransform):
    """Write record batches as Parquet: `output/part-<run>-<unique>.parquet`, zstd.

    Data in a fixed or sliding window goes to `output/date=YYYY-MM-DD/hour=HH/` of the window's start, rows with a
    partition to its directory. A file has rows of one window, one partition and one schema, whose metadata name the
    model. Gives the `WrittenFile`s under their final names.
    """

    def __init__(
        self,
        output: str,
        run_id: str,
        rows_per_file: int = ROWS_PER_FILE,
        rows_per_group: int = ROWS_PER_GROUP,
        measure_latency: bool = False,
        journal: bool = False,
    ) -> None:
        """Args:
        output: directory on any of Beam's filesystems.
        run_id: part of every file name, so that a run's files can be told from another's.
        rows_per_file: rows at which a new file is begun.
        rows_per_group: rows of a row group; a group is held in memory until it is full.
        measure_latency: whether the column timestamp is of events that have just happened, as in streaming runs; then
            the time from each to its file being in place goes to the distribution `metrics.LATENCY`.
        journal: whether the records of files go to the journal, to be committed while the run goes on
            (`pipelines.data_set.pending`), since an endless run has no end at which they could be listed.

        Raises:
            InputError: if a number of rows is below 1.
        """
        super().__init__()
        if rows_per_file < 1 or rows_per_group < 1:
            raise InputError(
                f"rows_per_file and rows_per_group must be at least 1, not {rows_per_file}, {rows_per_group}"
            )
        self._commit = CommitFiles(count_rows=True, measure_latency=measure_latency, journal=journal)
        self._do_fn = _Write(partial(ScoreFiles, output, run_id, rows_per_file, rows_per_group, journal))

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[WrittenFile]:
        written = batches | "WriteParquet" >> beam.ParDo(self._do_fn).with_output_types(WrittenFile)
        return written | "CommitFiles" >> self._commit


class WriteDeadLetters(beam.PTransform):
    """Write dead letters as JSON lines: `output/_dead_letters/part-<run>-<unique>.jsonl`.

    Fields: source, position, reason, raw (the original bytes in base64), text (the same for human eyes).
    """

    def __init__(self, output: str, run_id: str, journal: bool = False) -> None:
        """Args as in `WriteScores`."""
        super().__init__()
        self._do_fn = _Write(partial(DeadLetterFiles, output, run_id, journal))
        self._commit = CommitFiles(count_rows=False, journal=journal)

    def expand(
        self, letters: beam.PCollection[DeadLetter] | tuple[beam.PCollection[DeadLetter], ...]
    ) -> beam.PCollection[WrittenFile]:
        # Each collection where it is made: a Flatten of letters, unlike one of names, would keep them all in memory.
        parts = letters if isinstance(letters, tuple | list) else (letters,)
        written = [
            part
            | f"Count{number}" >> beam.Map(_count_dead)
            | f"WriteJsonLines{number}" >> beam.ParDo(self._do_fn).with_output_types(WrittenFile)
            for number, part in enumerate(parts)
        ]
        return written | "Names" >> beam.Flatten() | "CommitFiles" >> self._commit


class _Key(NamedTuple):
    """What all rows of a file have in common."""

    window: Any
    partition: str
    """Directory below that of the window."""
    schema: bytes
    """With all metadata, which differ where models do."""


class _Write(beam.DoFn):
    def __init__(self, begin: Callable[[], Files]) -> None:
        self._begin = begin

    def start_bundle(self) -> None:
        self._files = self._begin()

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> tuple[()]:
        self._files.write(element, window)
        return ()  # all are given on together, at the end of the bundle

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, file in self._files.close():
            yield WindowedValue(file, window.max_timestamp(), (window,))


class Files:
    """The files of a bundle: one for each window, partition and schema, bounded in open files and in memory."""

    suffix: str
    directory = ""

    def __init__(self, output: str, run_id: str, rows_per_file: int, journal: bool = False) -> None:
        output = plain(output)
        self._output, self._run_id, self._rows_per_file = output, run_id, rows_per_file
        self._records = (journal_directory if journal else committed_directory)(output, run_id)
        # In the order of their last use.
        self._writers: dict[_Key, FileWriter] = {}
        self._closed: list[tuple[Any, WrittenFile]] = []
        scheme_has_rename = storage.can_rename(output)
        self._max_open = MAX_OPEN_FILES if scheme_has_rename else MAX_OPEN_UPLOADS
        self._temporary = f"{output}/{TEMPORARY}/{run_id}" if scheme_has_rename else None

    def open_writer(self, temporary: str, final: str, element: Any) -> FileWriter:
        raise NotImplementedError

    def partitions(self, element: Any) -> Iterable[tuple[str, Any]]:
        """An element's rows by their directories."""
        return [("", element)]

    def schema(self, element: Any) -> bytes:
        """What tells elements that can share a file from others."""
        return b""

    def split(self, element: Any, rows: int) -> tuple[Any, Any]:
        """An element's first `rows` rows, and the rest or None."""
        raise NotImplementedError

    @property
    def waiting_bytes(self) -> int:
        """What is held in memory until it is written."""
        return sum(writer.waiting_bytes for writer in self._writers.values())

    def write(self, element: Any, window: Any) -> None:
        """Add an element of a window.

        Raises:
            RunError, OSError: if a file cannot be written.
        """
        schema = self.schema(element)
        for partition, rows in self.partitions(element):
            self._write(_Key(window, partition, schema), rows)
        while self.waiting_bytes > WAITING_BYTES:
            max(self._writers.values(), key=lambda writer: writer.waiting_bytes).shrink()
        opened = [key for key, writer in self._writers.items() if writer.is_open]
        for key in opened[: max(0, len(opened) - self._max_open)]:
            self._close(key)

    def _write(self, key: _Key, element: Any) -> None:
        while element is not None:
            writer = self._writers.pop(key, None)
            if writer is None:
                unique = f"{self._run_id}-{uuid.uuid4().hex[:12]}{self.suffix}"
                directories = (self._output, self.directory, window_directory(key.window), key.partition)
                final = "/".join(name for name in (*directories, f"part-{unique}") if name)
                writer = self.open_writer(f"{self._temporary}/{unique}" if self._temporary else final, final, element)
            self._writers[key] = writer
            first, element = self.split(element, self._rows_per_file - writer.rows)
            writer.write(first)
            if writer.rows >= self._rows_per_file:
                self._close(key)

    def close(self) -> list[tuple[Any, WrittenFile]]:
        """Finish all files. Returns them, each with its window; they are on the disk, under their temporary names.

        Raises:
            RunError, OSError: if a file cannot be written.
        """
        for key in list(self._writers):
            self._close(key)
        # All together, which takes little longer than one, and before any gets its name.
        storage.sync(file.temporary for _, file in self._closed)
        return self._closed

    def _close(self, key: _Key) -> None:
        writer = self._writers.pop(key)
        writer.close()
        written = writer.file.bytes_
        found = storage.metadata(writer.temporary)
        if found is None:
            raise RunError(
                f"{writer.temporary} is gone before it could be renamed; was the output removed while running?"
            )
        if (size := found.size_in_bytes) != written:
            raise RunError(f"{writer.temporary} has {size} bytes, but {written} were written; is the disk full?")
        file = WrittenFile(
            temporary=writer.temporary,
            final=writer.final,
            record=f"{self._records}/{writer.final.rpartition('/')[2]}.json",
            rows=writer.rows,
            bytes_=written,
            sha256=writer.file.sha256,
            sources=dict(writer.sources),
            event_times=writer.event_times,
            empty=writer.empty,
            model=writer.model,
            messages=writer.messages,
        )
        self._closed.append((key.window, file))


def window_directory(window: Any) -> str:
    """Directory of a window's files below the output; none for the global window, or one before all dates.

    >>> window_directory(IntervalWindow(0, 3600))
    'date=1970-01-01/hour=00'
    """
    if not isinstance(window, IntervalWindow):
        return ""
    try:
        start = datetime.fromtimestamp(float(window.start), UTC)
    except (ValueError, OverflowError, OSError):
        return ""  # elements that were given no timestamp are in a window before all dates
    return f"date={start:%Y-%m-%d}/hour={start:%H}"


class ScoreFiles(Files):
    """Files of record batches, in Parquet."""

    suffix = ".parquet"

    def __init__(
        self,
        output: str,
        run_id: str,
        rows_per_file: int,
        rows_per_group: int = ROWS_PER_GROUP,
        journal: bool = False,
    ) -> None:
        super().__init__(output, run_id, rows_per_file, journal)
        self._rows_per_group = min(rows_per_group, rows_per_file)
        self._background = Background()

    def close(self) -> list[tuple[Any, WrittenFile]]:
        try:
            return super().close()
        finally:
            self._background.shutdown()

    def open_writer(self, temporary: str, final: str, element: pa.RecordBatch) -> FileWriter:
        return ParquetFileWriter(temporary, final, element.schema, self._rows_per_group, self._background)

    def partitions(self, element: pa.RecordBatch) -> Iterable[tuple[str, pa.RecordBatch]]:
        if PARTITION_COLUMN not in element.schema.names:
            return [("", element)]
        column = element.column(PARTITION_COLUMN)
        rows = element.drop_columns([PARTITION_COLUMN])
        names = column.unique().to_pylist()
        if len(names) == 1:
            return [(names[0], rows)]
        return [(name, rows.filter(pc.equal(column, name))) for name in names]

    def schema(self, element: pa.RecordBatch) -> bytes:
        return element.schema.serialize().to_pybytes()

    def split(self, element: pa.RecordBatch, rows: int) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        return element.slice(0, rows), element.slice(rows) if len(element) > rows else None


def _count_dead(letter: DeadLetter) -> DeadLetter:
    metrics.counter(metrics.DEAD).inc()
    return letter


class DeadLetterFiles(Files):
    """Files of dead letters, in JSON lines."""

    suffix = ".jsonl"
    directory = DEAD_LETTERS

    def __init__(self, output: str, run_id: str, journal: bool = False, tells_messages: bool = False) -> None:
        super().__init__(output, run_id, ROWS_PER_FILE, journal)
        self._tells_messages = tells_messages

    def open_writer(self, temporary: str, final: str, element: DeadLetter) -> FileWriter:
        return JsonLinesFileWriter(temporary, final, self._tells_messages)

    def split(self, element: DeadLetter, rows: int) -> tuple[DeadLetter, None]:
        return element, None
