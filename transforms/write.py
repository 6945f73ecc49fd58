"""WriteScores and WriteDeadLetters: files that appear whole, under unique names, in their own window's directory.

A bundle writes to temporary files, one for each window, partition and schema; only their names are shuffled; then each
is renamed to its final name. So a failed or repeated bundle leaves nothing under a final name, late data and further
panes get files of their own, and rows behind the model are never shuffled. Object stores have no rename, but objects
appear whole: there a file is written under its final name, and what says that it counts is its record. (Beam's own
Parquet sink corrupts or mixes files of several windows, and its generic one overwrites a window's first pane with the
next.)
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import GlobalWindows, IntervalWindow
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.inference.scores import valid_unicode
from transforms import metrics, storage
from transforms.options import PARTITION_COLUMN, ROWS_PER_FILE
from transforms.records import DeadLetter

ROWS_PER_GROUP = 4096
BYTES_PER_GROUP = 4 << 20
"""A row group ends with the batch that reaches either; wide rows make groups of fewer, so that memory stays bounded."""
MAX_OPEN_FILES = 128
MAX_OPEN_UPLOADS = 16
"""Files that a bundle has open at a time; more partitions get more and smaller files. An upload holds megabytes."""
BYTES_PER_BATCH = 12 << 10
"""What a record batch takes in memory besides its content, however few its rows are. Arrow does not count it."""
WAITING_BYTES = 32 << 20
"""What waits in memory in all files of a bundle together, before the largest row group is joined or written."""
TEMPORARY = "_tmp"
DEAD_LETTERS = "_dead_letters"
JOURNAL = "_journal"
"""Names with an underscore are passed over by readers of Parquet directories."""


class WrittenFile(NamedTuple):
    """A closed file under its temporary name, on its way to its final one."""

    temporary: str
    """Equal to `final` on filesystems without a rename: there a file appears whole when it is closed."""
    final: str
    record: str
    """File beside the temporary ones that says, once it is there, that this file is in place."""
    rows: int
    bytes_: int
    sha256: str
    sources: dict[str, int]
    """Rows by the file they are from, where that is known."""
    event_times: dict[str, int] = {}  # noqa: RUF012 - never changed
    """Of rows with a timestamp: how many `rows`, the `earliest`, the `latest` and the `sum`, in milliseconds."""
    empty: int = 0
    """Rows without tokens, which have no scores."""
    model: dict[str, str] = {}  # noqa: RUF012 - never changed
    """Name, fingerprint and arithmetic of what scored the rows, where they have scores."""


class _Part(ABC):
    """One file being written. It is opened when there is something to write."""

    def __init__(self, temporary: str, final: str) -> None:
        self.temporary, self.final = temporary, final
        self.rows = 0
        self.waiting_bytes = 0
        """What is held in memory until it is written."""
        self.sources: Counter[str] = Counter()
        self.event_times: dict[str, int] = {}
        self.empty = 0
        self.model: dict[str, str] = {}
        self._file: HashingFile | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    @property
    def file(self) -> HashingFile:
        """The open file."""
        if self._file is None:
            self._file = HashingFile(storage.create(self.temporary))
        return self._file

    @abstractmethod
    def write(self, element: Any) -> None:
        """Add an element, counting its rows."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is waiting."""

    def shrink(self) -> None:
        """Hold less in memory."""
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


class HashingFile:
    """A file being written from beginning to end that knows its size and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.bytes_ = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: Any) -> int:
        with memoryview(content) as view:
            self._file.write(view)
            self._sha256.update(view)
            self.bytes_ += view.nbytes
            return view.nbytes

    def tell(self) -> int:
        return self.bytes_

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """Close a file that is not complete: an object store must not publish it."""
        storage.discard(self._file)


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
        journal: whether the records of files go to the journal, to be adopted while the run goes on
            (`pipelines.journal`), since an endless run has no end at which they could be listed.

        Raises:
            InputError: if a number of rows is below 1.
        """
        super().__init__()
        if rows_per_file < 1 or rows_per_group < 1:
            raise InputError(
                f"rows_per_file and rows_per_group must be at least 1, not {rows_per_file}, {rows_per_group}"
            )
        self._commit = _CommitFiles(count_rows=True, measure_latency=measure_latency)
        self._do_fn = _WriteParquet(output, run_id, rows_per_file, min(rows_per_group, rows_per_file), journal)

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[WrittenFile]:
        return batches | "WriteParquet" >> beam.ParDo(self._do_fn) | "CommitFiles" >> self._commit


class WriteDeadLetters(beam.PTransform):
    """Write dead letters as JSON lines: `output/_dead_letters/part-<run>-<unique>.jsonl`.

    Fields: source, position, reason, raw (the original bytes in base64), text (the same for human eyes).
    """

    def __init__(self, output: str, run_id: str, journal: bool = False) -> None:
        """Args as in `WriteScores`."""
        super().__init__()
        self._do_fn = _WriteJsonLines(output, run_id, journal)

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
        return written | "Names" >> beam.Flatten() | "CommitFiles" >> _CommitFiles(count_rows=False)


class _Key(NamedTuple):
    """What all rows of a file have in common."""

    window: Any
    partition: str
    """Directory below that of the window."""
    schema: bytes
    """With all metadata, which differ where models do."""


class _WriteFiles(beam.DoFn):
    """Keeps a file for each window, partition and schema of a bundle, bounded in open files and in memory."""

    suffix: str
    directory = ""

    def __init__(self, output: str, run_id: str, rows_per_file: int, journal: bool = False) -> None:
        self._output, self._run_id, self._rows_per_file = output, run_id, rows_per_file
        self._records = (journal_directory if journal else committed_directory)(output, run_id)

    def open_part(self, temporary: str, final: str, element: Any) -> _Part:
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

    def start_bundle(self) -> None:
        # In the order of their last use.
        self._parts: dict[_Key, _Part] = {}
        scheme_has_rename = storage.can_rename(self._output)
        self._max_open = MAX_OPEN_FILES if scheme_has_rename else MAX_OPEN_UPLOADS
        self._temporary = f"{self._output}/{TEMPORARY}/{self._run_id}" if scheme_has_rename else None

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[WrittenFile | WindowedValue]:
        schema = self.schema(element)
        for partition, rows in self.partitions(element):
            yield from self._write(_Key(window, partition, schema), rows)
        while sum(part.waiting_bytes for part in self._parts.values()) > WAITING_BYTES:
            max(self._parts.values(), key=lambda part: part.waiting_bytes).shrink()
        opened = [key for key, part in self._parts.items() if part.is_open]
        for key in opened[: max(0, len(opened) - self._max_open)]:
            yield WindowedValue(self._close(key), key.window.max_timestamp(), (key.window,))

    def _write(self, key: _Key, element: Any) -> Iterator[WrittenFile]:
        while element is not None:
            part = self._parts.pop(key, None)
            if part is None:
                unique = f"{self._run_id}-{uuid.uuid4().hex[:12]}{self.suffix}"
                directories = (self._output, self.directory, window_directory(key.window), key.partition)
                final = "/".join(name for name in (*directories, f"part-{unique}") if name)
                part = self.open_part(f"{self._temporary}/{unique}" if self._temporary else final, final, element)
            self._parts[key] = part
            first, element = self.split(element, self._rows_per_file - part.rows)
            part.write(first)
            if part.rows >= self._rows_per_file:
                yield self._close(key)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for key in list(self._parts):
            yield WindowedValue(self._close(key), key.window.max_timestamp(), (key.window,))

    def _close(self, key: _Key) -> WrittenFile:
        part = self._parts.pop(key)
        part.close()
        written = part.file.bytes_
        try:
            size = storage.size(part.temporary)
        except OSError as error:
            raise RunError(
                f"{part.temporary} is gone before it could be renamed; was the output removed while running?"
            ) from error
        if size != written:
            raise RunError(f"{part.temporary} has {size} bytes, but {written} were written; is the disk full?")
        return WrittenFile(
            temporary=part.temporary,
            final=part.final,
            record=f"{self._records}/{part.final.rpartition('/')[2]}.json",
            rows=part.rows,
            bytes_=written,
            sha256=part.file.sha256,
            sources=dict(part.sources),
            event_times=part.event_times,
            empty=part.empty,
            model=part.model,
        )


def committed_directory(output: str, run_id: str) -> str:
    """Where a run has a record of every file that it has put in place."""
    return f"{output}/{TEMPORARY}/{run_id}/committed"


def journal_directory(output: str, run_id: str) -> str:
    """Where an endless run has the records of the files that it has put in place and that no manifest lists yet."""
    return f"{output}/{JOURNAL}/{run_id}"


def committed_files(output: str, run_id: str) -> list[WrittenFile]:
    """The files that a run has put in place, sorted by name.

    Raises:
        OSError: if their records cannot be read.
    """
    records = storage.match([f"{committed_directory(output, run_id)}/*.json"])
    return [WrittenFile(**json.loads(storage.read_bytes(record.path))) for record in records]


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

    def __init__(
        self, output: str, run_id: str, rows_per_file: int, rows_per_group: int, journal: bool = False
    ) -> None:
        super().__init__(output, run_id, rows_per_file, journal)
        self._rows_per_group = rows_per_group

    def start_bundle(self) -> None:
        super().start_bundle()
        self._background = _Background()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        try:
            yield from super().finish_bundle()
        finally:
            self._background.shutdown()

    def open_part(self, temporary: str, final: str, element: pa.RecordBatch) -> _Part:
        return ParquetPart(temporary, final, element.schema, self._rows_per_group, self._background)

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


class _Background:
    """A thread in which Arrow encodes and writes one row group, without holding up scoring.

    One group at most, so that rows stay in order, and memory bounded.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "parquet")
        self._writing: Future[None] | None = None

    def submit(self, function: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Begin a call once the one before has ended, whose error is raised here."""
        self.wait()
        self._writing = self._thread.submit(function, *arguments, **named)

    def wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def shutdown(self) -> None:
        self._thread.shutdown()


class ParquetPart(_Part):
    """A Parquet file being written, one row group at a time."""

    def __init__(
        self, temporary: str, final: str, schema: pa.Schema, rows_per_group: int, background: _Background | None = None
    ) -> None:
        super().__init__(temporary, final)
        self._schema = schema
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        self.model = {
            name: metadata.get(f"torchmoji.{key}", "")
            for name, key in (("name", "bundle"), ("fingerprint", "fingerprint"), ("arithmetic", "arithmetic"))
        }
        self._rows_per_group = rows_per_group
        self._background = background
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, element: pa.RecordBatch) -> None:
        self._waiting.append(element)
        self._waiting_rows += len(element)
        self.waiting_bytes += element.nbytes + BYTES_PER_BATCH
        self.rows += len(element)
        if "source" in element.schema.names:
            for item in element.column("source").value_counts().to_pylist():
                self.sources[item["values"]] += item["counts"]
        if "timestamp" in element.schema.names:
            self.event_times = _add_event_times(self.event_times, element.column("timestamp"))
        if "n_tokens" in element.schema.names:
            self.empty += pc.sum(pc.equal(element.column("n_tokens"), 0)).as_py() or 0
        if self._waiting_rows >= self._rows_per_group or self.waiting_bytes >= BYTES_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        write = self._open().write_table
        if self._background is None:
            write(table, row_group_size=len(table))
        else:
            self._background.submit(write, table, row_group_size=len(table))
        self._waiting, self._waiting_rows, self.waiting_bytes = [], 0, 0

    def shrink(self) -> None:
        """Join batches of a few rows into one; write them only if that would not free a quarter of what they take."""
        joined = pa.Table.from_batches(self._waiting).combine_chunks()
        joined_bytes = joined.nbytes + BYTES_PER_BATCH
        if joined_bytes > 0.75 * self.waiting_bytes:
            self.flush()
        else:
            self._waiting, self.waiting_bytes = joined.to_batches(), joined_bytes

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            # Dictionaries and statistics cost time and space on vectors and ids, and pay on short repeated strings.
            schema = self._schema
            plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
            words = [
                name for name in plain if pa.types.is_string(schema.field(name).type) and name not in ("id", "text")
            ]
            words += [
                f"{name}.list.element.{item}" for name, item in (("top_emojis", "emoji"), ("top_classes", "class"))
            ]
            self._writer = pq.ParquetWriter(
                self.file, schema, compression="zstd", compression_level=1, use_dictionary=words, write_statistics=plain
            )
        return self._writer

    def close(self) -> None:
        try:
            self.flush()
            if self._background is not None:
                self._background.wait()
            self._open().close()
        except BaseException:
            self.file.discard()
            raise
        self.file.close()


def _add_event_times(event_times: dict[str, int], column: pa.Array) -> dict[str, int]:
    """A file's event times with those of a column of timestamps in microseconds."""
    milliseconds = column.drop_null().cast(pa.int64()).to_numpy() // 1000
    if not len(milliseconds):
        return event_times
    earliest, latest = int(milliseconds.min()), int(milliseconds.max())
    return {
        "rows": event_times.get("rows", 0) + len(milliseconds),
        "earliest": min(event_times.get("earliest", earliest), earliest),
        "latest": max(event_times.get("latest", latest), latest),
        "sum": event_times.get("sum", 0) + int(milliseconds.sum()),
    }


# --- dead letters --------------------------------------------------------------------------------------------------


def _count_dead(letter: DeadLetter) -> DeadLetter:
    metrics.counter(metrics.DEAD).inc()
    return letter


class _WriteJsonLines(_WriteFiles):
    suffix = ".jsonl"
    directory = DEAD_LETTERS

    def __init__(self, output: str, run_id: str, journal: bool = False) -> None:
        super().__init__(output, run_id, ROWS_PER_FILE, journal)

    def open_part(self, temporary: str, final: str, element: DeadLetter) -> _Part:
        return _JsonLinesPart(temporary, final)

    def split(self, element: DeadLetter, rows: int) -> tuple[DeadLetter, None]:
        return element, None


class _JsonLinesPart(_Part):
    def write(self, element: DeadLetter) -> None:
        line = element._asdict() | {
            "raw": base64.b64encode(element.raw).decode(),
            "text": element.raw.decode("utf-8", "replace"),
        }
        # A lone surrogate, in a file's name for instance, is written as JSON's escape for it.
        self.file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self.rows += 1
        self.sources[valid_unicode(element.source)] += 1

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.file.close()


# --- commit --------------------------------------------------------------------------------------------------------


_COMMIT_KEYS = 64
"""Bounds how many workers rename files at the same time."""


class _CommitFiles(beam.PTransform):
    def __init__(self, count_rows: bool, measure_latency: bool = False) -> None:
        super().__init__()
        self._count_rows, self._measure_latency = count_rows, measure_latency

    def expand(self, files: beam.PCollection[WrittenFile]) -> beam.PCollection[WrittenFile]:
        # In the global window with a trigger that fires at once: a late window's file must not be dropped here. Nor one
        # that is written when the input has ended, as held tweets are: the local runner's watermark has by then passed
        # the global window, hence the lateness. Beam's Reshuffle has none, and keys of which that runner forgets none.
        window = beam.WindowInto(
            GlobalWindows(),
            trigger=Repeatedly(AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            allowed_lateness=2 * 24 * 3600,
        )
        return (
            files
            | "Rewindow" >> window
            | "Key" >> beam.Map(_commit_key).with_output_types(tuple[int, WrittenFile])
            | "GroupNames" >> beam.GroupByKey()
            | "Names" >> beam.FlatMap(_names).with_output_types(WrittenFile)
            | "Rename" >> beam.Map(commit, self._count_rows, self._measure_latency)
        )


def _commit_key(file: WrittenFile) -> tuple[int, WrittenFile]:
    return zlib.crc32(file.final.encode("utf-8", "surrogatepass")) % _COMMIT_KEYS, file


def _names(group: tuple[int, Iterable[WrittenFile]]) -> Iterable[WrittenFile]:
    return group[1]


def commit(file: WrittenFile, count_rows: bool = True, measure_latency: bool = False) -> WrittenFile:
    """Give a closed file its final name. Done again after a retry, it finds the work done.

    Raises:
        RunError: if the file is under neither name.
    """
    try:
        if file.temporary != file.final and storage.exists(file.temporary):
            storage.rename(file.temporary, file.final)
        elif not storage.exists(file.final):
            raise RunError(
                f"{file.temporary} is gone before it could be renamed; was the output removed while running?"
            )
        storage.publish(file.record, json.dumps(file._asdict()).encode(), f"{file.record}.tmp")
    except OSError as error:
        raise RunError(f"{file.final} cannot be put in place: {error}") from error
    metrics.counter(metrics.FILES_WRITTEN).inc()
    metrics.counter(metrics.BYTES_WRITTEN).inc(file.bytes_)
    if count_rows:
        metrics.counter(metrics.ROWS_WRITTEN).inc(file.rows)
    if measure_latency:
        distribution = metrics.distribution(metrics.LATENCY)
        for latency in latencies(file.event_times, round(1000 * time.time())):
            distribution.update(latency)
    return file


def latencies(event_times: dict[str, int], now: int) -> Iterator[int]:
    """One latency for each row of a file: with the number, smallest, largest and sum that the rows' own have.

    That is all that a distribution of Beam's keeps of them, and it need not be kept row by row.

    >>> list(latencies({"rows": 4, "earliest": 10, "latest": 50, "sum": 10 + 20 + 45 + 50}, now=100))
    [90, 50, 68, 67]
    """
    rows = event_times.get("rows", 0)
    if rows == 0:
        return
    ends = [now - event_times["earliest"], now - event_times["latest"]][:rows]
    yield from ends
    if rows > 2:
        each, ones = divmod(rows * now - event_times["sum"] - sum(ends), rows - 2)
        yield from (each + (index < ones) for index in range(rows - 2))
