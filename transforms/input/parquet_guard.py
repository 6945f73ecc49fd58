"""What a Parquet file's own headers say, checked before Arrow acts on it: a small reader of Thrift's compact protocol.

Arrow trusts its input with the machine's memory. A footer of a megabyte whose columns are nested 100,000 deep overflows
its stack, one of 7 MB takes 750 MB, a page of 65 kB may be decompressed to 2 GB, and a dictionary's one long value be
copied for each row. All of that stands in headers that Arrow gives no access to, so they are read here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from torchmoji_core.limits import MAX_EXPANSION
from transforms.input.source_file import SourceFile

MAX_FOOTER_BYTES = 16 << 20
"""100,000 row groups of one column, or 1,000 of 100."""
MAX_STRUCTURES = 1_000_000
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
# Kinds of Thrift's fields.
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_ENDS = {_I32: 1 << 31, _I64: 1 << 63}
# Numbers of the Parquet format: page types, an encoding, a type, a repetition, codecs under pyarrow's names.
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DELTA_BYTE_ARRAY = 7
_BYTE_ARRAY = 6
_REPEATED = 2
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class GuardError(ValueError):
    """A header that is damaged, or asks for more than any honest file."""


class _Structure(dict[int, Any]):
    """A Thrift struct by number and kind of its fields; one of another kind is passed over, as Arrow does."""

    def integer(self, number: int, kind: int, default: int | None = None) -> int:
        """A number that is not negative."""
        value = self.get(number << 4 | kind, default)
        if value is None or not 0 <= value < _ENDS[kind]:
            raise GuardError("its headers are damaged")
        return int(value)

    def structure(self, number: int) -> _Structure:
        value = self.get(number << 4 | _STRUCT)
        if value is None:
            raise GuardError("its headers are damaged")
        return value  # type: ignore[no-any-return]

    def structures(self, number: int) -> list[_Structure]:
        values = self.get(number << 4 | _LIST)
        if values is None or not all(isinstance(value, _Structure) for value in values):
            raise GuardError("its headers are damaged")
        return values  # type: ignore[no-any-return]


class _CompactReader:
    """Decodes one struct. What is cut off raises `IndexError`, anything else wrong `GuardError`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0
        self._structures = 0

    def structure(self, depth: int = 0) -> _Structure:
        self._structures += 1
        if self._structures > MAX_STRUCTURES or depth > 32:
            raise GuardError("its headers have too many parts; write it with fewer columns or row groups")
        found = _Structure()
        number = 0
        while header := self._byte():
            before, kind = number, header & 15
            number = number + (header >> 4) if header >> 4 else self._integer()
            if number <= before and any(key >> 4 == number for key in found):  # Arrow would mix the two
                raise GuardError("its headers are damaged")
            found[number << 4 | kind] = True if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):  # in lists a boolean is a byte
            return self._byte()
        if kind in (4, _I32, _I64):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind in (_LIST, 10):
            header = self._byte()
            size = header >> 4 if header >> 4 < 15 else self._unsigned()
            if size > len(self._content) - self.position:
                raise IndexError
            return [self._value(header & 15, depth + 1) for _ in range(size)]
        if kind == _STRUCT:
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


class _Leaf(NamedTuple):
    """A column of values, of which the columns that have names of their own consist."""

    path: str
    is_repeated: bool
    """Whether a row may have many values."""
    fixed_size: int
    """Bytes of each value, where the schema says it."""


class Footer(NamedTuple):
    """What a footer says."""

    leaves: list[_Leaf]
    groups: list[_Structure]
    rows: list[int]
    """Of each row group."""


def read_footer(file: SourceFile) -> Footer:
    """Read a file's footer as far as is needed to let Arrow read it.

    Raises:
        GuardError: saying what is wrong with it.
        SourceError: if the file cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] == b"PARE":
        raise GuardError("it is encrypted; decrypt it first")
    if end[4:] != b"PAR1" or length > size - 12:
        raise GuardError("it does not end with a Parquet footer; is it cut off?")
    if length > MAX_FOOTER_BYTES:
        raise GuardError(f"its footer is larger than {MAX_FOOTER_BYTES >> 20} MiB; write it with fewer row groups")
    file.seek(size - 8 - length)
    return _parse_footer(file.read(length), size)


@lru_cache(maxsize=2)  # each part of a file asks again
def _parse_footer(content: bytes, size: int) -> Footer:
    try:
        footer = _CompactReader(content).structure()
    except IndexError:
        raise GuardError("its footer is damaged") from None
    leaves = list(_leaves(footer.structures(2)))
    groups = footer.structures(4)
    rows = [group.integer(3, _I64) for group in groups]
    claimed = footer.integer(3, _I64)
    if claimed != sum(rows):
        raise GuardError(f"its footer claims {claimed} rows, and {sum(rows)} in its row groups")
    if claimed > max(MAX_ROWS, size * MAX_EXPANSION):
        raise GuardError(f"its footer claims {claimed} rows in {size} bytes")
    return Footer(leaves, groups, rows)


def _leaves(schema: list[_Structure]) -> Iterator[_Leaf]:
    """The leaves of a schema, which lists its elements depth first with their numbers of children."""
    path: list[tuple[int, str, bool]] = []  # of the open elements: children to come, name, whether repeated
    for element in schema:
        while path and path[-1][0] == 0:
            path.pop()
        if path:
            path[-1] = (path[-1][0] - 1, *path[-1][1:])
        name = element.get(4 << 4 | _BINARY)
        children = element.integer(5, _I32, 0)
        is_repeated = element.integer(3, _I32, 0) == _REPEATED
        path.append((children, (name or b"").decode("utf-8", "replace"), is_repeated))
        if len(path) > MAX_DEPTH:
            raise GuardError(f"its columns are nested more than {MAX_DEPTH} deep")
        if children == 0:
            yield _Leaf(
                ".".join(part for _, part, _ in path[1:]),
                any(repeated for _, _, repeated in path),
                element.integer(2, _I32, 0),
            )


# --- pages ---------------------------------------------------------------------------------------------------------


class _Pages(NamedTuple):
    """What the headers of a column's pages in a row group add up to."""

    largest: int
    """Uncompressed bytes of a page."""
    repeatable: int
    """Bytes of a page whose values may be repeated without being there again."""
    values: int


def batch_rows(file: SourceFile, footer: Footer, group: int, names: list[str] | None, at_most: int) -> int:
    """How many rows of a row group can be decoded at a time, whatever is in its pages.

    Args:
        file: the Parquet file.
        footer: its footer.
        group: index of the row group.
        names: of the columns to be read; None for all.
        at_most: the answer for files of the usual kind.

    Raises:
        GuardError: if its pages cannot be decoded in bounded memory.
        SourceError: if the file cannot be read.
    """
    chunks = footer.groups[group].structures(1)
    if len(chunks) != len(footer.leaves):
        raise GuardError("its footer is damaged")
    row = 0
    for leaf, chunk in zip(footer.leaves, chunks, strict=True):
        if names is not None and not any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in names):
            continue
        column = chunk.structure(3)
        pages = _read_page_headers(file, column)
        if pages.largest > MAX_PAGE_BYTES:
            raise GuardError(f"a page is larger than {MAX_PAGE_BYTES >> 20} MiB; write it with smaller pages")
        longest = max(pages.repeatable, leaf.fixed_size)
        if not leaf.is_repeated:
            row += longest
            continue
        # One row may have all the values.
        if pages.values > max(MAX_LIST_VALUES, MAX_EXPANSION * column.integer(7, _I64)):
            raise GuardError(f"its lists have {pages.values} values in {column.integer(7, _I64)} bytes")
        if pages.values * longest > MAX_LIST_BYTES and longest == pages.repeatable:
            longest = _longest_in_dictionary(file, column)
        if pages.values * longest > MAX_LIST_BYTES:
            raise GuardError(
                f"its lists may have {pages.values} values of {longest} bytes each; write it with smaller row groups"
            )
    if row > MAX_ROW_BYTES:
        raise GuardError(f"a row may have {row >> 20} MiB; write it without dictionaries")
    return max(1, min(at_most, MAX_BATCH_BYTES // max(row, 1)))


def _read_page_headers(file: SourceFile, column: _Structure) -> _Pages:
    position, left = _start(column), column.integer(7, _I64)
    claimed = column.integer(5, _I64)
    largest = repeatable = values = 0
    # As Arrow does: pages until there are the values that the footer claims, and not beyond the column.
    while left > 0 and values < claimed:
        header, size = _read_page_header(file, position, left)
        compressed, uncompressed, kind = header.integer(3, _I32), header.integer(2, _I32), header.integer(1, _I32)
        if compressed > left - size + _PADDING:
            raise GuardError("a page is larger than its column")
        largest = max(largest, uncompressed)
        is_repeatable = kind == _DICTIONARY_PAGE
        if kind in (_DATA_PAGE, _DATA_PAGE_V2):
            data = header.structure(5 if kind == _DATA_PAGE else 8)
            values += data.integer(1, _I32)
            is_repeatable = data.integer(2 if kind == _DATA_PAGE else 4, _I32) == _DELTA_BYTE_ARRAY
        if is_repeatable:
            repeatable = max(repeatable, uncompressed)
        position, left = position + size + compressed, left - size - compressed
    return _Pages(largest, repeatable, values)


def _start(column: _Structure) -> int:
    start, dictionary = column.integer(9, _I64), column.integer(11, _I64, 0)
    return dictionary if 0 < dictionary < start else start


def _longest_in_dictionary(file: SourceFile, column: _Structure) -> int:
    """Bytes of the longest string in a column's dictionary; of the first page where that cannot be told."""
    import pyarrow as pa

    header, size = _read_page_header(file, _start(column), column.integer(7, _I64))
    uncompressed, codec = header.integer(2, _I32), column.integer(4, _I32)
    is_dictionary = header.integer(1, _I32) == _DICTIONARY_PAGE and column.integer(1, _I32) == _BYTE_ARRAY
    if not is_dictionary or (codec and codec not in _CODECS):
        return uncompressed
    file.seek(_start(column) + size)
    content = file.read(header.integer(3, _I32))
    if codec:
        content = pa.Codec(_CODECS[codec]).decompress(content, uncompressed).to_pybytes()
    longest = position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        longest, position = max(longest, length), position + 4 + length
    return longest


def _read_page_header(file: SourceFile, position: int, left: int) -> tuple[_Structure, int]:
    for length in (512, _MAX_PAGE_HEADER_BYTES):
        file.seek(position)
        reader = _CompactReader(file.read(min(length, left)))
        try:
            return reader.structure(), reader.position
        except IndexError:
            continue
    raise GuardError("a page's header is damaged")
