"""CSV and TSV: recognizes from the first lines how a file is written, and reads its rows.

A quote that is missing its end would make one row of many. So several lines are one row only if they are one by
the strict rules, and if the lines in the quotes do not look like rows themselves. Otherwise the first line is damage,
and reading goes on at the second.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from transforms.input import layouts, raw_records
from transforms.input.compression import Readable
from transforms.input.encodings import UTF_8, is_utf_16_among_utf_8, not_decoded
from transforms.input.lines import TWO_ENCODINGS, read_lines
from transforms.input.raw_records import Damage, Record, damage

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
"""The line that Excel takes a delimiter from."""
_VALUE = re.compile(r"\d{5,}|\d+([.,]\d+)?[eE][+-]?\d+|.*\d\d?:\d\d(:\d\d)?.*|https?://.*", re.DOTALL)
"""What is a value and no name of a column: an id, a time, an address."""
_NUMBER = re.compile(r"[+-]?\d[\d.:,/ TZ+-]*")
"""Ids, numbers and times, by which a row can be known."""
NULL = "\\N"
"""What PostgreSQL, MySQL and Hive write where there is no value."""
RENAME = "name them otherwise, all in order, with --columns"
_REREAD_BYTES = 1 << 20
_SAMPLED_ROWS = 100


@dataclass(frozen=True)
class Dialect:
    """How a file has its rows."""

    delimiter: str = ","
    escapes: bool = False
    """Whether a backslash, and not doubling, makes a quote a character."""
    sep_line: bool = False
    """Whether the first line only names the delimiter."""
    has_header: bool = True
    columns: tuple[str, ...] = ()
    """Names of the columns instead of those of the header."""

    def describe(self) -> str:
        """In a few words, for the plan."""
        parts = [f"{DELIMITERS.get(self.delimiter, shown(self.delimiter))} between columns"]
        parts += ["backslashes before quotes"] if self.escapes else []
        parts += [] if self.has_header else ["no header"]
        return ", ".join(parts)


# --- recognition ---------------------------------------------------------------------------------------------------


def recognize_dialect(
    beginning: str, usual: str, delimiter: str | None, has_header: bool, columns: tuple[str, ...], is_whole: bool
) -> Dialect:
    """What way of writing a file's beginning shows.

    Args:
        beginning: its first characters.
        usual: the delimiter that its name tells.
        delimiter: the one that was given.
        has_header: whether its first row is names.
        columns: names that were given.
        is_whole: whether that is the whole file.

    Raises:
        InputError: if it has a column twice, or values where the names should be.
    """
    sep, lines = _sample(beginning, is_whole)
    delimiter = delimiter or sep
    candidates = [delimiter] if delimiter else [usual, *(each for each in DELIMITERS if each != usual)]
    may_escape = (False, True) if any('\\"' in line for line in lines) else (False,)
    dialect = max(
        (Dialect(each, escapes) for each in candidates for escapes in (may_escape if each != "\t" else (False,))),
        key=lambda dialect: _fitness(lines, dialect),  # of equals the first
    )
    dialect = replace(dialect, sep_line=bool(sep), has_header=has_header, columns=columns)
    if has_header and not columns:
        _check_preamble(lines, dialect, bool(sep))
    first = next(_rows(lines, dialect), None)
    if first is not None:
        _check_first(first, dialect)
        if not dialect.has_header and not columns:
            dialect = replace(dialect, columns=layouts.columns_of(first) or ())
    return dialect


def recognize_table(beginning: str, is_whole: bool) -> str | None:
    """Which format the lines of a file are of that is called one of text; None if they are texts.

    They are rows if the first of them names a text among the columns of a table, and the others have as many fields.

    Raises:
        InputError: if they look like rows without such names, or like names without such rows.
    """
    sep, lines = _sample(beginning, is_whole)
    lines = [line for line in lines if line.strip()][: _SAMPLED_ROWS + 1]
    if len(lines) < 2:
        return None
    for delimiter in [sep] if sep else DELIMITERS:
        cells = [name.strip('"') for name in lines[0].rstrip("\r\n").split(delimiter)]
        names = [name.strip() for name in cells]
        known = sum(name in layouts.COLUMNS for name in names)
        # "Review, please" is a text.
        is_header = known > 1 or (known == 1 and len(names) > 1 and not any(name[:1].isspace() for name in cells))
        if layouts.columns_of(names) or (is_header and _fitness(lines, Dialect(delimiter)) >= _FIT):
            return "tsv" if delimiter == "\t" else "csv"
        if known > 1:
            raise InputError(
                f"its first line names columns, {shown(','.join(names)[:100])}, and other lines have more fields or "
                "fewer; give --format csv, or --format text for whole lines"
            )
    tabs, count = Counter(line.count("\t") for line in lines).most_common(1)[0]
    if tabs and count >= _FIT * len(lines):
        raise InputError(
            f"its lines have {tabs} tab(s) each, as rows of a table have; give --format tsv, with --no_header and "
            "--columns if the first line is no names, or --format text for whole lines"
        )
    return None


_FIT = 0.9
"""The part of the lines that must be rows where the name of a file says that they are texts."""
_NAME = re.compile(r"[\w.#][\w .#-]{0,40}")
"""What a column may be called."""


def _check_preamble(lines: Sequence[str], dialect: Dialect, has_sep_line: bool) -> None:
    """Make sure that no title or the like stands before the names of the columns.

    Raises:
        InputError: naming the line with the names.
    """
    first = next(_rows(lines, dialect), [])
    if any(name.strip() in layouts.COLUMNS for name in first):
        return
    # A title has no delimiter, so that another may be the one of the rows.
    for delimiter in [dialect.delimiter] if len(first) > 1 else DELIMITERS:
        tried = replace(dialect, delimiter=delimiter)
        rows = list(itertools.islice(_rows(lines, tried), _SAMPLED_ROWS))
        for index, row in enumerate(rows[:-1]):
            are_names = all(map(_NAME.fullmatch, row)) and any(map(layouts.is_text_name, row))
            if len(row) <= len(first) or not are_names:
                continue
            rest = rows[index + 1 :]
            if sum(len(each) == len(row) for each in rest) >= _FIT * len(rest):
                number = next(n for n, line in enumerate(lines, 1) if next(_rows([line], tried), None) == row)
                number += has_sep_line
                raise InputError(
                    f"the names of its columns seem to be in line {number}, {shown(','.join(row)[:100])}; leave out "
                    f"the lines before it, for instance with tail -n +{number}"
                )


def _sample(beginning: str, is_whole: bool) -> tuple[str, list[str]]:
    """The delimiter that Excel's line names, "" without one, and the whole lines behind it."""
    beginning = beginning.lstrip("\ufeff")
    sep = _SEP.match(beginning)
    # Not splitlines(), which takes more for line ends.
    lines = re.findall(r"[^\n]*\n|[^\n]+", beginning[sep.end() :] if sep else beginning)
    return sep[1] if sep else "", lines if is_whole else lines[:-1] or lines


def _rows(lines: Sequence[str], dialect: Dialect) -> Iterator[list[str]]:
    """The rows of a sample that can be read."""
    if dialect.delimiter == "\t":
        yield from filter(None, (_split_on_tabs(line.rstrip("\r\n")) for line in lines if line.strip()))
        return
    reader = _reader(iter(lines), dialect)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield []
            continue
        if row:
            yield row


def _fitness(lines: Sequence[str], dialect: Dialect) -> float:
    """The part of the rows that have as many fields as the first; 0 if that is one."""
    rows = [row for row, _ in zip(_rows(lines, dialect), range(_SAMPLED_ROWS), strict=False)]
    width = len(rows[0]) if rows else 0
    return round(sum(len(row) == width for row in rows) / len(rows), 2) if width > 1 else 0.0


def _check_first(row: list[str], dialect: Dialect) -> None:
    if dialect.columns and len(dialect.columns) != len(row):
        raise InputError(
            f"its rows have {len(row)} columns, and --columns names {len(dialect.columns)}; name each, in order"
        )
    values = [name for name in row if _VALUE.fullmatch(name)]
    if not dialect.has_header:
        return
    if values and dialect.columns:
        raise InputError(
            f"its first line has values such as {shown(values[0])}, so it is a row: give --no_header beside --columns"
        )
    if values:
        names = ",".join(layouts.columns_of(row) or ("a", "b", "c"))
        raise InputError(
            f"its first line has values such as {shown(values[0])} where names of columns should be; give the names of "
            f"its {len(row)} columns, --columns {names}, and --no_header if the first line is a row"
        )
    if not dialect.columns:
        check_names(row, RENAME)


def check_names(names: Sequence[str], remedy: str = "rename one of them") -> None:
    """Make sure that no column is there twice, so that none is read for another.

    Raises:
        InputError: naming the column.
    """
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise InputError(", ".join(f"column {shown(name)[1:-1]} is there twice" for name in twice[:5]) + f"; {remedy}")


# --- rows ----------------------------------------------------------------------------------------------------------


def _reader(lines: Iterator[str], dialect: Dialect) -> Iterator[list[str]]:
    if not dialect.escapes:
        return csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    lines = (_ESCAPE.sub(lambda found: found[0] if found[1] else "\\\\", line) for line in lines)
    return csv.reader(lines, delimiter=dialect.delimiter, strict=True, escapechar="\\", doublequote=False)


_ESCAPE = re.compile(r'\\(["\\])|\\')
"""A backslash, with what it makes a character of. Before anything else it is a character, which `csv` would drop."""


def _split_on_tabs(line: str) -> list[str]:
    """The fields of a line of TSV: a quote is a character unless a field is properly quoted on its line."""
    if '"' in line:
        try:
            return next(csv.reader([line], delimiter="\t", strict=True), [])
        except csv.Error:
            pass
    return line.split("\t")


class _Lines:
    """Decoded lines for `csv.reader`, which remember what of them the row being read has taken."""

    def __init__(self, lines: Iterator[Record | Damage]) -> None:
        self._lines = lines
        self._again: deque[Record | Damage] = deque()
        self.taken: list[Record] = []
        self._bytes = 0
        self.damage: Damage | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        if isinstance(line, Damage):
            self.damage = line
            raise StopIteration
        self.taken.append(line)
        self._bytes += len(line.raw)
        if self._bytes > raw_records.MAX_RECORD_BYTES:
            raise csv.Error(f"record is longer than {raw_records.MAX_RECORD_BYTES >> 20} MiB")
        # Bytes that are not UTF-8 become lone surrogates, so that the record's end is found all the same.
        text = line.raw.decode(UTF_8, "surrogateescape")
        return text.lstrip("\ufeff") if len(self.taken) == 1 else text  # files may have been joined

    def start(self) -> None:
        """Forget the row before."""
        self.taken, self._bytes = [], 0

    def give_back(self, lines: Sequence[Record]) -> None:
        """Have lines read again."""
        if self.damage is not None:
            self._again.appendleft(self.damage)
            self.damage = None
        self._again.extendleft(reversed(lines))


def read_delimited(file: Readable, dialect: Dialect, encoding: str = UTF_8) -> Iterator[Record | Damage]:
    """The rows of a file.

    Args:
        file: its content as UTF-8.
        dialect: how it has them.
        encoding: of the file, for messages.
    """
    csv.field_size_limit(raw_records.MAX_RECORD_BYTES)
    source = read_lines(file)
    if dialect.sep_line:
        next(source, None)
    header, first = list(dialect.columns), [""]
    is_awaited = dialect.has_header
    for found in _tab_rows(source) if dialect.delimiter == "\t" else _quoted_rows(source, dialect):
        if isinstance(found, Damage):
            if is_awaited:  # or the next row would be taken for the header
                yield found._replace(reason=f"the header cannot be read, so the file cannot: {found.reason}")
                return
            yield found
            continue
        position, row, raw = found
        if is_awaited:
            is_awaited = False
            header, first = header or [name.strip() for name in row], row
            try:
                check_names(header, RENAME)
            except InputError as error:
                yield damage(position, str(error), raw)
                return
            continue
        header = header or [str(number) for number in range(1, len(row) + 1)]
        raw = raw.rstrip(b"\r\n")
        if len(row) != len(header):
            yield damage(position, f"record has {len(row)} fields, the header {len(header)}", raw)
        elif row == first:
            yield damage(position, "the header again: files were joined", raw)
        elif any("\udc80" <= character <= "\udcff" for field in row if not field.isascii() for character in field):
            yield damage(position, not_decoded(encoding), raw)
        elif is_utf_16_among_utf_8(raw):
            yield damage(position, TWO_ENCODINGS, raw)
        else:
            if NULL in row:
                row = ["" if field == NULL else field for field in row]
            if dialect.escapes:
                row = [field.replace("\\\n", "\n") if "\n" in field else field for field in row]
            yield Record(position, dict(zip(header, row, strict=True)), raw)


_Row = tuple[int | str, list[str], bytes]


def _tab_rows(lines: Iterator[Record | Damage]) -> Iterator[_Row | Damage]:
    for line in lines:
        if isinstance(line, Damage):
            yield line
            continue
        text = line.raw.decode(UTF_8, "surrogateescape").lstrip("\ufeff").rstrip("\r\n")
        if text:
            yield line.position, _split_on_tabs(text), line.raw


def _quoted_rows(source: Iterator[Record | Damage], dialect: Dialect) -> Iterator[_Row | Damage]:
    lines = _Lines(source)
    reader = _reader(lines, dialect)
    reread = 0
    while True:
        lines.start()
        problem = None
        try:
            row = next(reader)
        except StopIteration:
            row = []
        except csv.Error as error:
            problem = f"not CSV: {error}"
            reader = _reader(lines, dialect)
        taken = lines.taken
        if problem is None and dialect.escapes and row and _has_bare_quotes(row, taken):
            problem = "not CSV: a quote inside quotes has no backslash before it"
        if problem is None and len(taken) > 1 and _swallows_rows(row, dialect.delimiter):
            problem = "lines in its quotes look like rows of their own: is a quote missing? If not, write it as Parquet"
        if problem is not None and taken:
            yield damage(taken[0].position, problem, taken[0].raw)
            rest = taken[1:]
            reread += sum(len(line.raw) for line in rest)
            assert isinstance(taken[-1].position, int)
            if reread <= _REREAD_BYTES + 4 * taken[-1].position:
                lines.give_back(rest)
            else:  # so many quotes are missing that reading on from each would take for ever
                for line in rest:
                    yield from _alone(line, dialect)
            reader = _reader(lines, dialect)
            if lines.damage is None:
                continue
        elif row:
            yield taken[0].position, row, b"".join(line.raw for line in taken) if len(taken) > 1 else taken[0].raw
            continue
        elif taken:
            continue  # a blank line
        if lines.damage is None:
            return
        yield lines.damage
        lines.damage = None
        reader = _reader(lines, dialect)


def _has_bare_quotes(row: Sequence[str], lines: Sequence[Record]) -> bool:
    """Whether a row has quotes that no backslash has made characters; `csv` takes them, and loses others for them."""
    quotes = sum(field.count('"') for field in row)
    return quotes > 0 and quotes != b"".join(line.raw for line in lines).replace(b"\\\\", b"").count(b'\\"')


def _alone(line: Record, dialect: Dialect) -> Iterator[_Row | Damage]:
    try:
        row = next(_reader(iter([line.raw.decode(UTF_8, "surrogateescape")]), dialect), [])
    except csv.Error as error:
        yield damage(line.position, f"not CSV: {error}", line.raw)
        return
    if row:
        yield line.position, row, line.raw


def _swallows_rows(row: Sequence[str], delimiter: str) -> bool:
    """Whether a field of several lines looks as if a quote without an end had made it of several rows.

    It does if a line in it has a number, such as an id, where the row has one about as long, or if all lines between
    its first and its last have as many fields as the row.
    """
    width = len(row)
    numbers = [(index, len(field)) for index, field in enumerate(row) if _NUMBER.fullmatch(field)]
    for place, field in enumerate(row):
        if "\n" not in field or width < 2:
            continue
        first, *between, last = [line.rstrip("\r").split(delimiter) for line in field.split("\n")]
        if between and all(len(fields) == width for fields in between) and (width > 2 or len(between) > 1):
            return True
        for index, length in numbers:
            # The fields before its place in a row begin the lines of swallowed rows, and the fields behind it end them.
            lines = (
                [fields for fields in (*between, last) if len(fields) > place] if index < place else (first, *between)
            )
            at = index if index < place else index - width
            found = (fields[at].strip('"') for fields in lines if len(fields) >= width - place)
            if any(_NUMBER.fullmatch(each) and abs(len(each) - length) <= 1 for each in found):
                return True
    return False
