"""In what form a file has its records: its format, what it is packed in, its encoding, its way of writing CSV."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from torchmoji_core.options import check_options, option
from transforms.input.compression import COMPRESSIONS, ZIP
from transforms.input.delimited import Dialect
from transforms.input.encodings import UTF_8, check_encoding

FORMATS = ("text", "jsonl", "json", "csv", "tsv", "parquet", "arrow")
_FORMAT_OF_SUFFIX = {
    "txt": "text", "text": "text", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
    "csv": "csv", "tsv": "tsv", "tab": "tsv", "parquet": "parquet", "pq": "parquet",
    "arrow": "arrow", "arrows": "arrow", "feather": "arrow", "ipc": "arrow",
}  # fmt: skip
_OF_ARCHIVE = re.compile(r"(tweets?|note-tweet|community-tweet|like)(-part\d+)?\.js", re.ASCII)
"""The files of posts in a Twitter account's archive. Others are about posts, or are programs."""
_ABOUT = frozenset(("readme", "read_me", "license", "licence", "copying", "notice", "changelog"))
"""Texts about the files beside them."""
_NAMES = {
    "text": "text", "jsonl": "JSON lines", "json": "JSON document", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet",
    "arrow": "Arrow",
}  # fmt: skip


_USUAL = Dialect()


@dataclass(frozen=True)
class FormOptions:
    """The user's word on the form of all inputs, instead of what each file shows."""

    format: str | None = option(None, "format of all inputs (default: by their names and contents)", choices=FORMATS)
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
    """One of `FORMATS`; jsonl only where each line is an object, else json."""
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

    @property
    def is_splittable(self) -> bool:
        """Whether parts of a file can be read without reading what is before them."""
        is_as_stored = not self.layers and self.encoding == UTF_8 and self.newline == "\n"
        return (self.kind == "parquet" and not self.layers) or (self.kind in ("text", "jsonl") and is_as_stored)

    def describe(self) -> str:
        """The form in a few words, for the plan.

        >>> Form("csv", ("gz",), encoding="cp1252", dialect=Dialect(";")).describe()
        'CSV, semicolons between columns, cp1252, in gz'
        """
        parts = [_NAMES[self.kind]]
        parts += [self.dialect.describe()] if self.kind in ("csv", "tsv") else []
        parts += [self.encoding] if self.encoding != UTF_8 else []
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
