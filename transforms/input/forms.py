"""In what form a file has its records: its format, what it is packed in, its encoding, its way of writing CSV.

To add a format, add an entry to `FORMATS`, and a reader if no other reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from torchmoji_core.options import check_options, option
from transforms.input.arrow_ipc import check_arrow, is_arrow, read_arrow
from transforms.input.compression import COMPRESSIONS, ZIP, Readable, seekable
from transforms.input.delimited import Dialect, read_delimited
from transforms.input.encodings import UTF_8, check_encoding
from transforms.input.json_documents import read_documents
from transforms.input.lines import parse_lines, read_lines
from transforms.input.parquet import parquet_rows, read_parquet
from transforms.input.raw_records import Damage, Record
from transforms.input.source_file import SourceFile

Read: TypeAlias = Callable[[Readable, "Form", int, int | None, Container[str] | None], Iterator[Record | Damage]]
"""Reads what a file holds, unpacked and, if it is text, as UTF-8; the rest as of `formats.read_records`."""


@dataclass(frozen=True)
class Format:
    """A format of files, one entry in `FORMATS`."""

    name: str
    """For people."""
    suffixes: tuple[str, ...]
    """Of the names of its files."""
    read: Read
    begins: Callable[[bytes], bool] | None = None
    """Whether a file that begins so, and is no text, is of this format; None for formats of text."""
    check: Callable[[Readable], object] | None = None
    """Refuses a file that is cut off, or has a column twice, before it is read.

    Raises:
        InputError: with the reason.
    """
    has_line_records: bool = False
    """Whether each line is a record, so that a file can be read from any byte on."""
    count_rows: Callable[[SourceFile], tuple[int, int]] | None = None
    """Rows of a file, and of the largest group of them, in formats that can be read from any row on; raises as `check`.
    """
    delimiter: str = ""
    """What is usually between columns, in formats whose lines are rows."""


def _read_rows(content: Readable, form: Form, *_: object) -> Iterator[Record | Damage]:
    return read_delimited(content, form.dialect, form.encoding)


def _read_lines(content: Readable, form: Form, start: int, end: int | None, *_: object) -> Iterator[Record | Damage]:
    return parse_lines(read_lines(content, start, end), form.kind, form.encoding)


FORMATS: dict[str, Format] = {
    "text": Format("text", ("txt", "text"), _read_lines, has_line_records=True),
    "jsonl": Format("JSON lines", ("jsonl", "ndjson", "json"), _read_lines, has_line_records=True),
    "json": Format("JSON document", (), lambda content, form, *_: read_documents(content, form.encoding)),
    "csv": Format("CSV", ("csv",), _read_rows, delimiter=","),
    "tsv": Format("TSV", ("tsv", "tab"), _read_rows, delimiter="\t"),
    "parquet": Format(
        "Parquet",
        ("parquet", "pq"),
        lambda content, form, *part: read_parquet(seekable(content), *part),
        begins=lambda beginning: beginning.startswith(b"PAR1"),
        check=lambda content: parquet_rows(seekable(content)),
        count_rows=parquet_rows,
    ),
    "arrow": Format(
        "Arrow",
        ("arrow", "arrows", "feather", "ipc"),
        lambda content, form, start, end, columns: read_arrow(content, columns),
        begins=is_arrow,
        check=check_arrow,
    ),
}
"""By what --format calls them. Which of its formats a text is in is told by `recognition`."""
FOREIGN = (
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV, with a header"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of Microsoft Office", "save it as CSV UTF-8"),
    (b"%PDF-", "a PDF", "give the texts as text, a line each"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it, and give the directory"),
    (b"Rar!\x1a\x07", "an RAR archive", "unpack it, and give the directory"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as Parquet"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4", "decompress it, lz4 -d"),
    (b"version https://git-lfs", "a pointer of Git LFS, and not the file", "fetch that with git lfs pull"),
    (b"FEA1", "Feather of version 1", "in Python, feather.write_feather(feather.read_table(A), B) writes it anew"),
)  # fmt: skip
"""Files that are not read: how they begin, what they are, what to do."""
WORDS = (b"ORC", b"FEA1")
"""How of them a text may begin, too."""
_FORMAT_OF_SUFFIX = {suffix: name for name, each in FORMATS.items() for suffix in each.suffixes}
_OF_ARCHIVE = re.compile(r"(tweets?|note-tweet|community-tweet|like)(-part\d+)?\.js", re.ASCII)
"""The files of posts in a Twitter account's archive. Others are about posts, or are programs."""
_ABOUT = frozenset(("readme", "read_me", "license", "licence", "copying", "notice", "changelog"))
"""Texts about the files beside them."""
_USUAL = Dialect()


@dataclass(frozen=True)
class FormOptions:
    """The user's word on the form of all inputs, instead of what each file shows."""

    format: str | None = option(
        None, "format of all inputs (default: by their names and contents)", choices=tuple(FORMATS)
    )
    encoding: str | None = option(
        None, "of text without a byte order mark, cp1252 for instance (default: utf-8, or UTF-16 or 32 where it shows)",
        metavar="NAME",
    )  # fmt: skip
    delimiter: str | None = option(
        None, "between columns of CSV; tab for a tab (default: what the first rows show)", metavar="CHARACTER"
    )
    no_header: bool = option(False, "CSV has no line of names; without --columns they are 1, 2, 3 ...")
    columns: tuple[str, ...] = option(
        (), "names of the columns of CSV, in order, instead of those in its first line", metavar="NAMES"
    )
    long_window: bool = option(False, "read zstandard with a window of up to 2 GiB, which takes as much memory")

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        check_options(self)
        if self.encoding is not None:
            object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.delimiter is not None:
            delimiter = {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)
            if len(delimiter) != 1 or delimiter in '"\\\r\n':
                raise InputError(f"--delimiter must be one character, or tab, not {shown(self.delimiter)}")
            object.__setattr__(self, "delimiter", delimiter)
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise InputError(f"--columns has {shown(name)} twice")

    @property
    def identity(self) -> dict[str, object]:
        """The options that make it another command, without those that have their defaults."""
        given = {
            "encoding": self.encoding, "delimiter": self.delimiter, "no_header": self.no_header,
            "columns": list(self.columns),
        }  # fmt: skip
        return {"format": self.format} | {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Form:
    """The form of a file, or of a member of a .zip file."""

    kind: str
    """Of `FORMATS`; jsonl only where each line is an object, else json."""
    layers: tuple[str, ...] = ()
    """What it is packed in, of `compression.COMPRESSIONS`, from the outside to the inside."""
    member: str | None = None
    """Its name, where one of the layers is a .zip file."""
    encoding: str = UTF_8
    newline: str = "\n"
    """What ends lines; a carriage return on old machines."""
    dialect: Dialect = _USUAL
    """Of CSV and TSV."""
    long_window: bool = False
    """As of `FormOptions`."""
    may_be_utf_8: bool = False
    """Whether it was said to be in another encoding, and begins like UTF-8."""

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    @property
    def is_splittable(self) -> bool:
        """Whether parts of a file can be read without reading what is before them."""
        is_as_stored = not self.layers and self.encoding == UTF_8 and self.newline == "\n"
        return is_as_stored and (self.format.has_line_records or self.format.count_rows is not None)

    def describe(self) -> str:
        """The form in a few words, for the plan.

        >>> Form("csv", ("gz",), encoding="cp1252", dialect=Dialect(";")).describe()
        'CSV, semicolons between columns, cp1252, in gz'
        """
        doubt = " as --encoding says, although it looks like UTF-8" if self.may_be_utf_8 else ""
        parts = [self.format.name]
        parts += [self.dialect.describe()] if self.format.delimiter else []
        parts += [self.encoding + doubt] if self.encoding != UTF_8 else []
        parts += ["in " + ", in ".join(reversed(self.layers))] if self.layers else []
        return ", ".join(parts)


def guess_format(path: str) -> tuple[str | None, str | None]:
    """Format and compression by the name of a file; None for a format that the name does not tell.

    >>> guess_format("a/tweets.jsonl.gz")
    ('jsonl', 'gz')
    """
    name = path.rsplit("/", 1)[-1].lower()
    parts = name.split(".")
    compression = COMPRESSIONS.get(parts.pop()) if len(parts) > 1 and parts[-1] in COMPRESSIONS else None
    if len(parts) < 2:
        return None, compression
    if _OF_ARCHIVE.fullmatch(".".join(parts)):
        return "jsonl", compression
    return _FORMAT_OF_SUFFIX.get(parts[-1]), compression


def tells_format(path: str) -> bool:
    """Whether the name of a file says that it may have records."""
    kind, compression = guess_format(path)
    is_about = path.rsplit("/", 1)[-1].partition(".")[0].lower() in _ABOUT
    return (kind is not None and not (is_about and kind == "text")) or compression == ZIP


def named_format(path: str, given: str | None) -> str:
    """The format of a file as far as it is known without looking into it."""
    return given or guess_format(path)[0] or guess_format(path)[1] or "by content"
