"""What a Parquet file's own headers say, checked before Arrow acts on it: a small reader of Thrift's compact protocol.

Arrow trusts its input with the machine's memory. A footer of a megabyte whose columns are nested 100,000 deep overflows
its stack, one of 7 MB takes 750 MB, a page of 65 kB may be decompressed to 2 GB, and a dictionary's one long value be
copied for each row. All of that stands in headers that Arrow gives no access to, so they are read here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from transforms.compression import MAX_EXPANSION

MAX_FOOTER_BYTES = 16 << 20
"""100,000 row groups of one column, or 1,000 of 100."""
MAX_STRUCTURES = 2_000_000
"""Of a footer, each of which takes up to 700 bytes in memory; a column has about eight in each row group."""
MAX_DEPTH = 100
"""Of nested columns; Arrow needs stack for each level."""
MAX_PAGE_BYTES = 128 << 20
"""Uncompressed. Writers aim at 1 MiB, but some look at the size only every thousand rows."""
MAX_BATCH_BYTES = 128 << 20
"""What a batch may come to if each of its rows has the longest values that can be there ..."""
MAX_ROW_BYTES = 1 << 30
"""... and one row, which is a batch by itself if need be."""
MAX_ROWS = 1 << 32
"""A file may have more rows only if they are less than `MAX_EXPANSION` for each of its bytes."""
MAX_LIST_VALUES = 1 << 24
"""Likewise the values of a column of lists in a row group, all of which may belong to one row."""
MAX_LIST_BYTES = 1 << 30
"""What a column of lists may come to in a row group if all of its values are the longest in its dictionary."""
_MAX_PAGE_HEADER_BYTES = 64 << 10
_PADDING = 100
"""Old writers left a dictionary's header out of the size of a column; Arrow allows for this much."""
_DELTA_BYTE_ARRAY = 7
_DICTIONARY_PAGE = 2


class GuardError(ValueError):
    """A header that is damaged, or asks for more than any honest file."""


class _Structure(dict[int, Any]):
    """A Thrift struct: field number -> int, bytes, bool, list or struct."""

    def integer(self, number: int) -> int:
        value = self.get(number)
        if type(value) is not int or value < 0:
            raise GuardError("its headers are damaged")
        return value

    def structure(self, number: int) -> _Structure | None:
        value = self.get(number)
        return value if isinstance(value, _Structure) else None


class _CompactReader:
    """Decodes one struct. Anything that is cut off raises `IndexError`, anything else wrong `GuardError`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0
        self._structures = 0

    def structure(self, depth: int = 0) -> _Structure:
        self._structures += 1
        if self._structures > MAX_STRUCTURES or depth > 32:
            raise GuardError("its headers have too many parts")
        found = _Structure()
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._integer()
            kind = header & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # in lists a boolean is a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            header = self._byte()
            size = header >> 4 if header >> 4 < 15 else self._unsigned()
            if size > len(self._content) - self.position:
                raise IndexError
            return [self._value(header & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.structure(depth + 1)
        raise GuardError("its headers are damaged")

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _bytes(self, size: int) -> bytes:
        if size > len(self._content) - self.position:
            raise IndexError
        self.position += size
        return self._content[self.position - size : self.position]

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise GuardError("its headers are damaged")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


# --- footer --------------------------------------------------------------------------------------------------------


def check_footer(file: BinaryIO) -> None:
    """Read a file's footer as far as is needed to let Arrow read it.

    What is no Parquet at all, or encrypted, is left to Arrow to name.

    Raises:
        GuardError: saying what is wrong with the footer.
        OSError: if the file cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    if size < 12:
        return
    file.seek(size - 8)
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > size - 12:
        return
    if length > MAX_FOOTER_BYTES:
        raise GuardError(f"its footer is larger than {MAX_FOOTER_BYTES >> 20} MiB; write it with fewer row groups")
    file.seek(size - 8 - length)
    _check_footer(file.read(length), size)


@lru_cache(maxsize=4)
def _check_footer(content: bytes, size: int) -> None:
    try:
        footer = _CompactReader(content).structure()
        depth = max(_depths([element.get(5) or 0 for element in footer[2]]), default=0)
        rows = footer[3]
        rows_of_groups = [group[3] for group in footer.get(4, [])]
    except (IndexError, KeyError, AttributeError, TypeError):
        raise GuardError("its footer is damaged") from None
    if depth > MAX_DEPTH:
        raise GuardError(f"its columns are nested more than {MAX_DEPTH} deep")
    if min([rows, *rows_of_groups]) < 0 or rows != sum(rows_of_groups):
        raise GuardError(f"its footer claims {rows} rows, and {sum(rows_of_groups)} in its row groups")
    if rows > max(MAX_ROWS, size * MAX_EXPANSION):
        raise GuardError(f"its footer claims {rows} rows in {size} bytes")


def _depths(children: list[int]) -> Iterator[int]:
    """How deep each element of a schema stands, which lists elements depth first with their numbers of children."""
    open_: list[int] = []
    for count in children:
        while open_ and open_[-1] == 0:
            open_.pop()
        if open_:
            open_[-1] -= 1
        yield len(open_)
        open_.append(count)


# --- pages ---------------------------------------------------------------------------------------------------------


class _Pages(NamedTuple):
    """What the headers of a column's pages in a row group add up to."""

    largest: int
    """Uncompressed bytes of a page."""
    repeatable: int
    """Bytes of a page whose values may be repeated without being there again."""
    values: int


def batch_rows(file: BinaryIO, group: Any, columns: list[tuple[int, Any]], at_most: int) -> int:
    """How many rows of a row group can be decoded at a time, whatever is in its pages.

    Args:
        file: the Parquet file.
        group: pyarrow's metadata of the row group.
        columns: indices of the columns to be read and pyarrow's schema of each.
        at_most: the answer for files of the usual kind.

    Raises:
        GuardError: if its pages cannot be decoded in bounded memory.
        OSError: if the file cannot be read.
    """
    row = 0
    for index, schema in columns:
        chunk = group.column(index)
        pages = _read_page_headers(file, chunk)
        if pages.largest > MAX_PAGE_BYTES:
            raise GuardError(f"a page is larger than {MAX_PAGE_BYTES >> 20} MiB; write it with smaller pages")
        longest = max(pages.repeatable, schema.length or 0)
        if not schema.max_repetition_level:
            row += longest
            continue
        # One row may have all the values.
        if pages.values > max(MAX_LIST_VALUES, MAX_EXPANSION * chunk.total_compressed_size):
            raise GuardError(f"its lists have {pages.values} values in {chunk.total_compressed_size} bytes")
        if pages.values * longest > MAX_LIST_BYTES and longest == pages.repeatable:
            longest = _longest_in_dictionary(file, chunk)
        if pages.values * longest > MAX_LIST_BYTES:
            raise GuardError(
                f"its lists may have {pages.values} values of {longest} bytes each; write it with smaller row groups"
            )
    if row > MAX_ROW_BYTES:
        raise GuardError(f"a row may have {row >> 20} MiB; write it without dictionaries")
    return max(1, min(at_most, MAX_BATCH_BYTES // max(row, 1)))


def _read_page_headers(file: BinaryIO, chunk: Any) -> _Pages:
    position, left = _start(chunk), chunk.total_compressed_size
    largest = repeatable = values = 0
    # As Arrow does: pages until there are the values that the footer claims, and not beyond the chunk.
    while left > 0 and values < chunk.num_values:
        header, size = _read_page_header(file, position, left)
        compressed, uncompressed = header.integer(3), header.integer(2)
        if compressed > left - size + _PADDING:
            raise GuardError("a page is larger than its column")
        largest = max(largest, uncompressed)
        data = header.structure(5) or header.structure(8)
        values += data.integer(1) if data else 0
        is_dictionary = header.integer(1) == _DICTIONARY_PAGE
        if is_dictionary or (data and _DELTA_BYTE_ARRAY in (data.get(2), data.get(4))):
            repeatable = max(repeatable, uncompressed)
        position, left = position + size + compressed, left - size - compressed
    return _Pages(largest, repeatable, values)


def _start(chunk: Any) -> int:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    if start < 0 or chunk.total_compressed_size < 0:
        raise GuardError("its footer is damaged")
    return int(start)


def _longest_in_dictionary(file: BinaryIO, chunk: Any) -> int:
    """Bytes of the longest string that a chunk's dictionary has; of the whole dictionary where it has no strings."""
    import pyarrow as pa

    header, size = _read_page_header(file, _start(chunk), chunk.total_compressed_size)
    uncompressed = header.integer(2)
    if header.integer(1) != _DICTIONARY_PAGE or chunk.physical_type != "BYTE_ARRAY":
        return uncompressed
    file.seek(_start(chunk) + size)
    content = file.read(header.integer(3))
    if chunk.compression != "UNCOMPRESSED":
        content = pa.Codec(chunk.compression.lower()).decompress(content, uncompressed).to_pybytes()
    longest = position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        longest, position = max(longest, length), position + 4 + length
    return longest


def _read_page_header(file: BinaryIO, position: int, left: int) -> tuple[_Structure, int]:
    for length in (512, _MAX_PAGE_HEADER_BYTES):
        file.seek(position)
        reader = _CompactReader(file.read(min(length, left)))
        try:
            return reader.structure(), reader.position
        except IndexError:
            continue
    raise GuardError("a page's header is damaged")
