"""Single files being written, from the first row to the last: Parquet for scores, JSON lines for dead letters."""

from __future__ import annotations

import base64
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from torchmoji_core.inference.scores import valid_unicode
from transforms.columns import MESSAGE_COLUMN, paths_of_repeats, paths_of_vectors
from transforms.options import ENCODING, PARQUET_ENCODINGS
from transforms.records import DeadLetter
from transforms.storage import files as storage

ROWS_PER_GROUP = 4096
BYTES_PER_GROUP = 4 << 20
"""A row group ends with the batch that reaches either. The encoder needs several times the size of a group."""
BYTES_PER_BATCH = 12 << 10
"""What a record batch takes in memory besides its content, however few its rows are. Arrow does not count it: it
counts 0.4 kB for a row in a batch of its own, and 12 are taken."""


class FileWriter(ABC):
    """One file being written. It is opened when there is something to write."""

    def __init__(self, temporary: str, final: str) -> None:
        self.temporary, self.final = temporary, final
        self.rows = 0
        self.waiting_bytes = 0
        """Held in memory until they are written."""
        self.sources: Counter[str] = Counter()
        self.event_times: dict[str, int] = {}
        self.empty = 0
        self.model: dict[str, str] = {}
        self.messages: list[str] = []
        """Position of the message that each row is from, where rows tell it."""
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


class Background:
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


class ParquetFileWriter(FileWriter):
    """A Parquet file being written, one row group at a time."""

    def __init__(
        self, temporary: str, final: str, schema: pa.Schema, rows_per_group: int, background: Background | None = None
    ) -> None:
        super().__init__(temporary, final)
        names = schema.names
        self._schema = schema.remove(names.index(MESSAGE_COLUMN)) if MESSAGE_COLUMN in names else schema
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
        if MESSAGE_COLUMN in element.schema.names:
            self.messages += element.column(MESSAGE_COLUMN).to_pylist()
            element = element.drop_columns([MESSAGE_COLUMN])
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
            # Dictionaries and statistics cost time and space where values differ, as those of ids do.
            schema = self._schema
            encoding = (schema.metadata or {}).get(ENCODING, PARQUET_ENCODINGS[0].encode()).decode()
            vectors, repeats = paths_of_vectors(schema), paths_of_repeats(schema)
            self._writer = pq.ParquetWriter(
                self.file,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[path for path in repeats if encoding == "dictionary" or path not in vectors],
                write_statistics=[field.name for field in schema if not pa.types.is_nested(field.type)],
                use_byte_stream_split=vectors if encoding == "byte_stream_split" else False,
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


class JsonLinesFileWriter(FileWriter):
    """A file of dead letters being written, one line each."""

    def __init__(self, temporary: str, final: str, tells_messages: bool = False) -> None:
        super().__init__(temporary, final)
        self._tells_messages = tells_messages

    def write(self, element: DeadLetter) -> None:
        line = element._asdict() | {
            "raw": base64.b64encode(element.raw).decode(),
            "text": element.raw.decode("utf-8", "replace"),
        }
        # A lone surrogate, in a file's name for instance, is written as JSON's escape for it.
        self.file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self.rows += 1
        if self._tells_messages:
            self.messages.append(element.position)
        self.sources[valid_unicode(element.source)] += 1

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.file.close()
