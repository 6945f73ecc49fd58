"""Arrow's own files: IPC files, which are Feather of version 2, and streams.

A file is a stream with an index behind it, so both are read as streams: from the beginning to the end, a record batch
at a time. Arrow allocates what a message claims, so each is looked at before Arrow gets it.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

from torchmoji_core.errors import InputError, first_line
from torchmoji_core.limits import MAX_EXPANDED_BYTES, MAX_EXPANSION
from transforms.input.arrow_values import conversions, rows_as_records
from transforms.input.compression import READ_ERRORS, Readable
from transforms.input.delimited import check_names
from transforms.input.parquet_guard import MAX_BATCH_BYTES, MAX_LIST_VALUES, MAX_ROW_BYTES, GuardError
from transforms.input.raw_records import Damage, DamagedFileError, Record
from transforms.input.source_file import raise_unless_damage

MAGIC = b"ARROW1"
CONTINUATION = b"\xff\xff\xff\xff"
MAX_METADATA_BYTES = 16 << 20
MAX_MESSAGE_BYTES = 1 << 30
"""Of the data of one record batch, as they are stored and decompressed; some writers make one of all rows."""
BATCH_ROWS = 1024
_PIECE = 1 << 20
_DICTIONARY, _RECORD_BATCH = 2, 3


def is_arrow(beginning: bytes) -> bool:
    """Whether a file begins as an IPC file or a stream does."""
    is_stream = beginning.startswith(CONTINUATION) and len(beginning) >= 8
    return beginning.startswith(MAGIC) or (
        is_stream and 0 < int.from_bytes(beginning[4:8], "little") <= MAX_METADATA_BYTES
    )


def read_arrow(content: Readable, columns: Container[str] | None) -> Iterator[Record | Damage]:
    """The rows of a file; their positions are their numbers.

    Args:
        content: of the file.
        columns: top-level columns to read; None for all.
    """
    import pyarrow as pa

    errors = (pa.ArrowException, *READ_ERRORS, RuntimeError, ValueError)
    position = 0
    try:
        messages = _Messages(content)
        while messages.begin():
            with pa.ipc.open_stream(messages) as reader:
                check_names(reader.schema.names)
                for batch in reader:
                    count = len(batch)
                    yield from _rows(batch, columns, position)
                    position += count
            messages.finish()
    except InputError as error:
        yield Damage(position, str(error), b"")
    except errors as error:
        raise_unless_damage(error)
        yield Damage(position, f"not a readable Arrow file from row {position} on: {first_line(error)}", b"")


def check_arrow(content: Readable) -> None:
    """Refuse a file whose columns cannot be told, or of which one is there twice.

    Raises:
        InputError: with the reason.
    """
    import pyarrow as pa

    try:
        messages = _Messages(content)
        if messages.begin():
            with pa.ipc.open_stream(messages) as reader:
                check_names(reader.schema.names)
    except (pa.ArrowException, *READ_ERRORS, RuntimeError, ValueError) as error:
        raise_unless_damage(error)
        raise DamagedFileError(f"not a readable Arrow file: {first_line(error)}") from None


def _rows(batch: Any, columns: Container[str] | None, position: int) -> Iterator[Record | Damage]:
    """Rows of a batch of which nothing is known but that its buffers are there."""
    import pyarrow as pa

    if columns is not None:
        batch = batch.select([name for name in batch.schema.names if name in columns])
    # One text that is no UTF-8 is to cost its row alone, so they are looked at as bytes; `rows_as_records` decodes.
    plain = [_as_bytes(column) for column in batch.columns]
    schema = pa.schema([field.with_type(column.type) for field, column in zip(batch.schema, plain, strict=True)])
    checked = pa.RecordBatch.from_arrays(plain, schema=schema) if plain else batch
    checked.validate(full=True)
    longest = sum(_longest_value(column) for column in plain)
    if longest > MAX_ROW_BYTES:
        raise GuardError(f"a row may have {longest >> 20} MiB; write it without dictionaries and views")
    rows = max(1, min(BATCH_ROWS, MAX_BATCH_BYTES // max(longest, 1)))
    converted = conversions(batch.schema)
    for start in range(0, len(checked), rows):
        yield from rows_as_records(batch.slice(start, rows), position + start, converted)


def _as_bytes(column: Any) -> Any:
    import pyarrow as pa

    as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    return column.view(as_bytes[column.type]) if column.type in as_bytes else column


def _longest_value(array: Any) -> int:
    """What a value of an array may come to in bytes, when many may share what is stored once."""
    import pyarrow as pa
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        return _longest_value(array.dictionary)
    if types.is_run_end_encoded(kind):
        return _longest_value(array.values)
    if types.is_struct(kind):
        return sum(_longest_value(array.field(index)) for index in range(kind.num_fields))
    if types.is_nested(kind):  # lists and maps: one row may have all the values
        values = array.values if hasattr(array, "values") else None
        return array.get_total_buffer_size() if values is None else len(values) * min(_longest_value(values), 1 << 20)
    try:
        return 8 + (compute.max(compute.binary_length(array)).as_py() or 0)
    except pa.ArrowNotImplementedError:
        is_view = types.is_string_view(kind) or types.is_binary_view(kind)
        return int(array.get_total_buffer_size()) if is_view else 32


# --- messages ------------------------------------------------------------------------------------------------------


class _Messages:
    """What a stream consists of, as a file for Arrow that gives one message at a time, after looking at it."""

    def __init__(self, content: Readable) -> None:
        self._content = content
        self._beginning = content.read(8)
        self._is_file = self._beginning.startswith(MAGIC)
        if self._is_file:
            self._beginning = b""
        self._message = memoryview(b"")
        self._is_ended = False
        self.closed = False
        """For Arrow."""

    def begin(self) -> bool:
        """Whether there is a stream, the first or, where streams were joined, another."""
        if not self._beginning and not (self._is_file and not self._is_ended):
            self._beginning = b"" if self._is_file else self._content.read(8)
            if not self._beginning:
                return False
        self._is_ended = False
        return True

    def finish(self) -> None:
        """Look at what is behind a stream.

        Raises:
            EOFError: if the index is not there that makes a file of it.
        """
        if not self._is_file:
            self._is_ended = True
            return
        end = b""
        while piece := self._content.read(_PIECE):
            end = (end + piece)[-len(MAGIC) :]
        if end != MAGIC:
            raise EOFError("its end is not there; is it cut off?")
        self._is_ended = True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._message and not self._is_ended:
            self._message = memoryview(self._next_message())
        size = len(self._message) if size < 0 else min(size, len(self._message))
        piece, self._message = self._message[:size], self._message[size:]
        return bytes(piece)

    def close(self) -> None:
        """Does nothing."""

    def _next_message(self) -> bytes:
        head, self._beginning = self._beginning or self._content.read(8), b""
        if not head:
            self._is_ended = True
            return b""
        # Before 2019, there was nothing before the length.
        start = 4 if head.startswith(CONTINUATION) else 0
        if len(head) < start + 4:
            raise EOFError("it is cut off")
        length = int.from_bytes(head[start : start + 4], "little", signed=True)
        if length == 0:
            self._is_ended = True
            return head
        if not 0 < length <= MAX_METADATA_BYTES:
            raise GuardError("its headers are damaged")
        metadata = head[start + 4 :] + self._read(length - len(head[start + 4 :]))
        message = _parse_message(metadata)
        body = self._read(message.body)
        _check(message, body)
        return b"".join((head[: start + 4], metadata, body))

    def _read(self, size: int) -> bytes:
        """So many bytes, in pieces: nothing is allocated that is only claimed."""
        pieces = []
        while size > 0 and (piece := self._content.read(min(size, _PIECE))):
            pieces.append(piece)
            size -= len(piece)
        if size > 0:
            raise EOFError("it is cut off")
        return b"".join(pieces)


class _Message(NamedTuple):
    """What a message says of its body."""

    body: int
    """Bytes."""
    lengths: tuple[int, ...] = ()
    """Rows of the batch, and values of each of its arrays."""
    buffers: tuple[tuple[int, int], ...] = ()
    """Offset in the body, and bytes."""
    is_compressed: bool = False


def _parse_message(metadata: bytes) -> _Message:
    """Read the flatbuffer of a message as far as it says how much is behind it.

    Raises:
        GuardError: if it is damaged, or the body is too large.
    """
    try:
        root = _Table(metadata, struct.unpack_from("<I", metadata)[0])
        kind, body = root.number(1, "<B"), root.number(3, "<q")
        if not 0 <= body <= MAX_MESSAGE_BYTES:
            raise GuardError(
                f"a record batch has more than {MAX_MESSAGE_BYTES >> 20} MiB; write smaller ones, or Parquet"
            )
        batch = root.table(2) if kind in (_DICTIONARY, _RECORD_BATCH) else None
        if batch is not None and kind == _DICTIONARY:
            batch = batch.table(1)
        if batch is None:
            return _Message(body)
        lengths = (batch.number(0, "<q"), *(length for length, _ in batch.pairs(1)))
        return _Message(body, lengths, tuple(batch.pairs(2)), batch.table(3) is not None)
    except (struct.error, IndexError):
        raise GuardError("its headers are damaged") from None


def _check(message: _Message, body: bytes) -> None:
    """Make sure that what a message says can be read in bounded memory.

    Raises:
        GuardError: if not.
    """
    for length in message.lengths:
        if not 0 <= length <= max(MAX_LIST_VALUES, MAX_EXPANSION * len(body)):
            raise GuardError(f"a record batch claims {length} values in {len(body)} bytes")
    expanded = 0
    for offset, size in message.buffers:
        if offset < 0 or size < 0 or offset + size > len(body):
            raise GuardError("its headers are damaged")
        if message.is_compressed and size >= 8:
            expanded += max(size, int.from_bytes(body[offset : offset + 8], "little", signed=True))
    if expanded > min(MAX_MESSAGE_BYTES, max(MAX_EXPANDED_BYTES, MAX_EXPANSION * len(body))):
        raise GuardError(f"a record batch of {len(body)} bytes expands to {expanded}; write it with smaller ones")


class _Table:
    """A table of a flatbuffer, whose fields have numbers. What is cut off raises `struct.error`."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._fields = at - self._unpack("<i", at)
        if not 0 <= self._fields < len(content):
            raise IndexError

    def _unpack(self, form: str, at: int) -> int:
        if at < 0:
            raise IndexError
        return struct.unpack_from(form, self._content, at)[0]  # type: ignore[no-any-return]

    def _place(self, number: int) -> int | None:
        at = 4 + 2 * number
        if at + 2 > self._unpack("<H", self._fields):
            return None
        offset = self._unpack("<H", self._fields + at)
        return self._at + offset if offset else None

    def number(self, number: int, form: str) -> int:
        place = self._place(number)
        return 0 if place is None else self._unpack(form, place)

    def table(self, number: int) -> _Table | None:
        place = self._place(number)
        return None if place is None else _Table(self._content, place + self._unpack("<I", place))

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """A vector of structures of two numbers."""
        place = self._place(number)
        if place is None:
            return []
        at = place + self._unpack("<I", place)
        count = self._unpack("<I", at)
        if count * 16 > len(self._content) - at - 4:
            raise IndexError
        return [struct.unpack_from("<qq", self._content, at + 4 + 16 * index) for index in range(count)]
