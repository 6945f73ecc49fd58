"""WriteScores and WriteDeadLetters: files that appear whole, under unique names, in their own window's directory.

A bundle writes to temporary files, one for each window; only their names are shuffled; then each is renamed to its
final name. So a failed or repeated bundle leaves nothing under a final name, late data and further panes get files
of their own, and rows behind the model are never shuffled. (Beam's own Parquet sink corrupts or mixes files of
several windows, and its generic one overwrites a window's first pane with the next.)
"""

from __future__ import annotations

import base64
import io
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import GlobalWindows, IntervalWindow
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.errors import InputError, RunError
from transforms import metrics
from transforms.options import ROWS_PER_FILE
from transforms.records import DeadLetter

ROWS_PER_GROUP = 4096
BYTES_PER_GROUP = 4 << 20
"""A row group ends with the batch that reaches either; wide rows make groups of fewer, so that memory stays bounded."""
TEMPORARY = "_tmp"
DEAD_LETTERS = "_dead_letters"
"""Names with an underscore are passed over by readers of Parquet directories."""


class WrittenFile(NamedTuple):
    """A closed file under its temporary name, on its way to its final one."""

    temporary: str
    final: str
    rows: int
    bytes_: int


class _Part(ABC):
    """One file being written."""

    def __init__(self, temporary: str, final: str) -> None:
        self.temporary, self.final = temporary, final
        self.rows = 0

    @abstractmethod
    def write(self, element: Any) -> None:
        """Add an element, counting its rows."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


class WriteScores(beam.PTransform):
    """Write record batches of one schema as Parquet: `output/part-<run>-<unique>.parquet`, zstd.

    Data in a fixed or sliding window goes to `output/date=YYYY-MM-DD/hour=HH/` of the window's start.
    Gives the `WrittenFile`s under their final names.
    """

    def __init__(
        self, output: str, run_id: str, rows_per_file: int = ROWS_PER_FILE, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        """Args:
        output: directory on any of Beam's filesystems.
        run_id: part of every file name, so that a run's files can be told from another's.
        rows_per_file: rows at which a new file is begun.
        rows_per_group: rows of a row group; a group is held in memory until it is full.

        Raises:
            InputError: if a number of rows is below 1.
        """
        super().__init__()
        if rows_per_file < 1 or rows_per_group < 1:
            raise InputError(
                f"rows_per_file and rows_per_group must be at least 1, not {rows_per_file}, {rows_per_group}"
            )
        self._do_fn = _WriteParquet(output, run_id, rows_per_file, min(rows_per_group, rows_per_file))

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[WrittenFile]:
        return batches | "WriteParquet" >> beam.ParDo(self._do_fn) | "CommitFiles" >> _CommitFiles(count_rows=True)


class WriteDeadLetters(beam.PTransform):
    """Write dead letters as JSON lines: `output/_dead_letters/part-<run>-<unique>.jsonl`.

    Fields: source, position, reason, raw (the original bytes in base64), text (the same for human eyes).
    """

    def __init__(self, output: str, run_id: str) -> None:
        """Args as in `WriteScores`."""
        super().__init__()
        self._do_fn = _WriteJsonLines(output, run_id)

    def expand(self, letters: beam.PCollection[DeadLetter]) -> beam.PCollection[WrittenFile]:
        return (
            letters
            | "Count" >> beam.Map(_count_dead)
            | "WriteJsonLines" >> beam.ParDo(self._do_fn)
            | "CommitFiles" >> _CommitFiles(count_rows=False)
        )


class _WriteFiles(beam.DoFn):
    """Keeps one open file for each window of a bundle."""

    suffix: str
    directory = ""

    def __init__(self, output: str, run_id: str, rows_per_file: int) -> None:
        self._output, self._run_id, self._rows_per_file = output, run_id, rows_per_file

    def open_part(self, temporary: str, final: str, element: Any) -> _Part:
        raise NotImplementedError

    def split(self, element: Any, rows: int) -> tuple[Any, Any]:
        """An element's first `rows` rows, and the rest or None."""
        raise NotImplementedError

    def start_bundle(self) -> None:
        self._parts: dict[Any, _Part] = {}

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[WrittenFile]:
        while element is not None:
            part = self._parts.get(window)
            if part is None:
                unique = f"{self._run_id}-{uuid.uuid4().hex[:12]}{self.suffix}"
                final = "/".join(
                    name for name in (self._output, self.directory, window_directory(window), f"part-{unique}") if name
                )
                part = self.open_part(f"{self._output}/{TEMPORARY}/{self._run_id}/{unique}", final, element)
                self._parts[window] = part
            first, element = self.split(element, self._rows_per_file - part.rows)
            part.write(first)
            if part.rows >= self._rows_per_file:
                yield self._close(window)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window in list(self._parts):
            yield WindowedValue(self._close(window), window.max_timestamp(), (window,))

    def _close(self, window: Any) -> WrittenFile:
        part = self._parts.pop(window)
        part.close()
        try:
            # Not `match`: it would take brackets in the name of the output for a glob.
            size = FileSystems.get_filesystem(part.temporary).size(part.temporary)
        except (BeamIOError, OSError) as error:
            raise RunError(
                f"{part.temporary} is gone before it could be renamed; was the output removed while running?"
            ) from error
        return WrittenFile(part.temporary, part.final, part.rows, size)


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


# --- Parquet -------------------------------------------------------------------------------------------------------


class _WriteParquet(_WriteFiles):
    suffix = ".parquet"

    def __init__(self, output: str, run_id: str, rows_per_file: int, rows_per_group: int) -> None:
        super().__init__(output, run_id, rows_per_file)
        self._rows_per_group = rows_per_group

    def open_part(self, temporary: str, final: str, element: pa.RecordBatch) -> _Part:
        return _ParquetPart(temporary, final, element.schema, self._rows_per_group)

    def split(self, element: pa.RecordBatch, rows: int) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        return element.slice(0, rows), element.slice(rows) if len(element) > rows else None


class _ParquetPart(_Part):
    def __init__(self, temporary: str, final: str, schema: pa.Schema, rows_per_group: int) -> None:
        super().__init__(temporary, final)
        self._rows_per_group = rows_per_group
        # One thread, and one row group at most in it: rows stay in order, and memory bounded.
        self._background = ThreadPoolExecutor(1, "parquet")
        self._writing: Future[None] | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._file = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
        # Dictionaries and statistics cost time and space on vectors and ids, and pay on short repeated strings.
        plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
        words = [name for name in plain if pa.types.is_string(schema.field(name).type) and name not in ("id", "text")]
        words += [f"{name}.list.element.{item}" for name, item in (("top_emojis", "emoji"), ("top_classes", "class"))]
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", compression_level=1, use_dictionary=words, write_statistics=plain
        )

    def write(self, element: pa.RecordBatch) -> None:
        self._waiting.append(element)
        self._waiting_rows += len(element)
        self._waiting_bytes += element.nbytes
        self.rows += len(element)
        if self._waiting_rows >= self._rows_per_group or self._waiting_bytes >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        """Hand the waiting rows to the background, where Arrow encodes and writes them without holding up scoring."""
        if self._waiting:
            table = pa.Table.from_batches(self._waiting)
            self._wait()
            self._writing = self._background.submit(self._writer.write_table, table, row_group_size=len(table))
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        try:
            self._flush()
            self._wait()
            self._writer.close()
        finally:
            self._background.shutdown()
            self._file.close()


# --- dead letters --------------------------------------------------------------------------------------------------


def _count_dead(letter: DeadLetter) -> DeadLetter:
    metrics.counter(metrics.DEAD).inc()
    return letter


class _WriteJsonLines(_WriteFiles):
    suffix = ".jsonl"
    directory = DEAD_LETTERS

    def __init__(self, output: str, run_id: str) -> None:
        super().__init__(output, run_id, ROWS_PER_FILE)

    def open_part(self, temporary: str, final: str, element: DeadLetter) -> _Part:
        return _JsonLinesPart(temporary, final)

    def split(self, element: DeadLetter, rows: int) -> tuple[DeadLetter, None]:
        return element, None


class _JsonLinesPart(_Part):
    def __init__(self, temporary: str, final: str) -> None:
        super().__init__(temporary, final)
        file = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
        # A lone surrogate, in a file's name for instance, is written as JSON's escape for it.
        self._file = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, element: DeadLetter) -> None:
        line = element._asdict() | {
            "raw": base64.b64encode(element.raw).decode(),
            "text": element.raw.decode("utf-8", "replace"),
        }
        json.dump(line, self._file, ensure_ascii=False)
        self._file.write("\n")
        self.rows += 1

    def close(self) -> None:
        self._file.close()


# --- commit --------------------------------------------------------------------------------------------------------


class _CommitFiles(beam.PTransform):
    def __init__(self, count_rows: bool) -> None:
        super().__init__()
        self._count_rows = count_rows

    def expand(self, files: beam.PCollection[WrittenFile]) -> beam.PCollection[WrittenFile]:
        # In the global window with a trigger that fires at once: a late window's file must not be dropped here.
        window = beam.WindowInto(
            GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
        )
        return (
            files
            | "Rewindow" >> window
            | "ReshuffleNames" >> beam.Reshuffle()
            | "Rename" >> beam.Map(commit, self._count_rows)
        )


def commit(file: WrittenFile, count_rows: bool = True) -> WrittenFile:
    """Give a closed file its final name. Done again after a retry, it finds the work done.

    Raises:
        RunError: if the file is under neither name.
    """
    directory = file.final.rpartition("/")[0]
    try:
        if FileSystems.exists(file.temporary):
            make_directory(directory)
            FileSystems.rename([file.temporary], [file.final])
        elif not FileSystems.exists(file.final):
            raise RunError(
                f"{file.temporary} is gone before it could be renamed; was the output removed while running?"
            )
    except (BeamIOError, OSError) as error:
        raise RunError(f"{file.final} cannot be put in place: {error}") from error
    metrics.counter(metrics.FILES_WRITTEN).inc()
    metrics.counter(metrics.BYTES_WRITTEN).inc(file.bytes_)
    if count_rows:
        metrics.counter(metrics.ROWS_WRITTEN).inc(file.rows)
    return file


def make_directory(directory: str) -> None:
    """Make a directory with its parents, where filesystems have them; another worker may be making it just now."""
    try:
        if not FileSystems.exists(directory):
            FileSystems.mkdirs(directory)
    except OSError:
        if not FileSystems.exists(directory):
            raise
