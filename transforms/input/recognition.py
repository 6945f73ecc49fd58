"""`recognize`: the form of a file, from its first bytes, its name and the options. Contents win over names."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from transforms.input.archives import members, open_member
from transforms.input.arrow_ipc import FEATHER_1, MAGIC, column_names, is_stream
from transforms.input.compression import READ_ERRORS, ZIP, Readable, compression_of, decompress, seekable
from transforms.input.delimited import check_names, recognize_dialect, recognize_table
from transforms.input.encodings import UTF_8, as_utf_8, detect
from transforms.input.forms import FORMATS, Form, FormOptions, guess_format, tells_format
from transforms.input.json_documents import is_document, looks_like_document
from transforms.input.lines import parse_json
from transforms.input.parquet import parquet_rows
from transforms.input.raw_records import DamagedFileError, Record
from transforms.input.source_file import SourceFile, raise_unless_damage

SAMPLE_BYTES = 1 << 16
MAX_LAYERS = 4
_FOREIGN = (
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
    (FEATHER_1, "Feather of version 1", "in Python, feather.write_feather(feather.read_table(A), B) writes it anew"),
)  # fmt: skip
"""Files that are not read: how they begin, what they are, what to do."""
_WORDS = (b"ORC", FEATHER_1)
"""Those of them that a text may begin with."""
_PAGES = {"<!doctype html": "a page in HTML", "<html": "a page in HTML", "<?xml": "XML"}
"""By their beginnings: files that are read as text only if that is asked for."""
_TAR = slice(257, 262), b"ustar"
_WORKBOOK = "[Content_Types].xml"


def recognize(file: BinaryIO, path: str, options: FormOptions = FormOptions()) -> list[Form]:  # noqa: B008
    """The form of a file; of a .zip file, of each of its members that is read.

    Args:
        file: seekable; as it is stored.
        path: its name.
        options: the user's word on it.

    Raises:
        InputError: if it is in none that can be read, with the remedy.
        SourceError: if reading it fails.
    """
    try:
        return list(_forms(SourceFile(file), path, options, Form("text", long_window=options.long_window)))
    except READ_ERRORS as error:
        raise_unless_damage(error)
        raise DamagedFileError(f"cannot be read: {error}") from None


def members_passed_over(file: BinaryIO, forms: Sequence[Form]) -> int:
    """How many files of a .zip file are in none of the forms that `recognize` has found."""
    if not forms or forms[0].member is None:
        return 0
    packed = replace(forms[0], layers=forms[0].layers[: forms[0].layers.index(ZIP)], member=None)
    return len(members(seekable(open_content(SourceFile(file), packed)))) - len(forms)


def open_content(source: SourceFile, form: Form) -> Readable:
    """What is in a file, unpacked and not decoded.

    Raises:
        InputError: if a .zip file is damaged.
        Exception: of `compression.READ_ERRORS`, if what it is packed in is.
    """
    content: Readable = source
    source.seek(0)
    for layer in form.layers:
        if layer == ZIP:
            content = open_member(seekable(content), form.member or "")
        else:
            content = decompress(content, layer, form.long_window)
    return content


def _forms(source: SourceFile, name: str, options: FormOptions, packed: Form) -> Iterator[Form]:
    """The forms of what is in a file.

    Args:
        source: the file.
        name: of what is in it.
        options: what is said of it.
        packed: what has been unpacked of it already.
    """
    kind, named = guess_format(name)
    beginning, is_whole, problem = _beginning(open_content(source, packed))
    if problem is not None and not beginning and kind is None:
        raise DamagedFileError(f"cannot be read: {problem}")
    compression = compression_of(beginning)
    if compression is None and named not in (None, ZIP, *packed.layers) and not _is_text(beginning) and beginning:
        compression = named
    if compression is None:
        yield _form_of_plain(source, name, kind, options, packed, beginning, is_whole)
        return
    if len(packed.layers) == MAX_LAYERS:
        raise InputError(f"it is compressed more than {MAX_LAYERS} times; decompress it")
    if compression == ZIP:
        yield from _forms_of_members(source, options, packed, kind)
        return
    inner = name.rpartition(".")[0] if named == compression else name
    yield from _forms(source, inner, options, replace(packed, layers=(*packed.layers, compression)))


def _forms_of_members(source: SourceFile, options: FormOptions, packed: Form, kind: str | None) -> Iterator[Form]:
    if packed.member is not None:
        raise InputError(f"its member {shown(packed.member)} is a .zip file itself; unpack it, and give the directory")
    names = members(seekable(open_content(source, packed)))
    if _WORKBOOK in names:
        raise InputError("it is a file of Microsoft Office; save it as CSV UTF-8")
    visible = [name for name in names if not any(part[:1] in (".", "_") for part in name.split("/"))]
    told = [name for name in visible if tells_format(name)]
    if not told and not options.format and not (kind and len(visible) == 1):
        raise InputError(
            f"the names of its members tell no format ({', '.join(map(shown, names[:3])) or 'it has none'}); give "
            f"--format {{{','.join(FORMATS)}}}"
        )
    for name in told or visible:
        inside = replace(packed, layers=(*packed.layers, ZIP), member=name)
        try:
            yield from _forms(source, name if guess_format(name)[0] else f"{name}.{kind or ''}", options, inside)
        except InputError as error:
            raise type(error)(f"its member {shown(name)}: {error}") from None


def _form_of_plain(
    source: SourceFile,
    name: str,
    kind: str | None,
    options: FormOptions,
    packed: Form,
    beginning: bytes,
    is_whole: bool,
) -> Form:
    is_text = _is_text(beginning)
    for magic, what, remedy in _FOREIGN:
        if beginning.startswith(magic) and not (is_text and magic in _WORDS):
            raise InputError(f"it is {what}: {remedy}")
    if beginning[_TAR[0]] == _TAR[1]:
        raise InputError("it is a tar archive: unpack it, and give the directory")
    kind = options.format or kind
    is_arrow = (beginning.startswith(MAGIC) and not is_text) or is_stream(beginning)
    if is_arrow or (beginning.startswith(b"PAR1") and not is_text) or kind in ("arrow", "parquet"):
        form = replace(
            packed, kind="arrow" if is_arrow or (kind == "arrow" and beginning[:4] != b"PAR1") else "parquet"
        )
        _check_columns(source, form)
        return form
    encoding = detect(beginning, options.encoding)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(beginning, final=is_whole).removeprefix("\ufeff")
    newline = "\r" if "\r" in text[:-1] and "\n" not in text else "\n"
    text = text.replace(newline, "\n")
    form = replace(packed, encoding=encoding, newline=newline)
    first = next((line for line in text.split("\n") if line.strip()), "")
    page = next((what for tag, what in _PAGES.items() if first.lstrip("\ufeff \t")[:20].lower().startswith(tag)), None)
    if page and options.format != "text":
        raise InputError(f"it is {page}: write the texts as CSV or JSON lines, or give --format text for whole lines")
    looks_like_json = first.lstrip()[:1] == "{" and isinstance(parse_json(0, first, b""), Record)
    if kind in ("jsonl", "json") or (options.format is None and looks_like_json):
        return replace(form, kind="json" if is_document(text, is_whole) else "jsonl")
    if kind is None:
        if not is_document(text, is_whole):
            raise InputError(f"the name does not tell its format; give --format {{{','.join(FORMATS)}}}")
        return replace(form, kind="json")
    if kind == "text" and options.format is None:
        if looks_like_document(text) and is_document(text, is_whole):
            return replace(form, kind="json")
        is_said = options.delimiter or options.no_header or options.columns
        kind = "csv" if is_said else recognize_table(text, is_whole) or kind
    if kind not in ("csv", "tsv"):
        return replace(form, kind=kind)
    usual = "\t" if kind == "tsv" else ","
    try:
        dialect = recognize_dialect(text, usual, options.delimiter, not options.no_header, options.columns, is_whole)
    except InputError as error:
        more = "; it is no UTF-8: name its --encoding, for instance cp1252" if _is_no_utf_8(text, form) else ""
        raise InputError(f"{error}{more}") from None
    return replace(form, kind=kind, dialect=dialect)


def _check_columns(source: SourceFile, form: Form) -> None:
    """Refuse a file that has a column twice.

    Raises:
        InputError: naming it, or if what tells of the columns cannot be read.
    """
    if form.kind == "parquet":
        parquet_rows(seekable(open_content(source, form)))
    else:
        check_names(column_names(open_content(source, form)))


def _beginning(content: Readable) -> tuple[bytes, bool, Exception | None]:
    """The first bytes of a file, whether they are all, and why there are no more."""
    beginning = bytearray()
    try:
        while len(beginning) < SAMPLE_BYTES:
            piece = content.read1(SAMPLE_BYTES) if hasattr(content, "read1") else content.read(SAMPLE_BYTES)
            if not piece:
                return bytes(beginning), True, None
            beginning += piece
    except READ_ERRORS as error:
        raise_unless_damage(error)  # reading it whole will say what is wrong
        return bytes(beginning), False, error
    return bytes(beginning), False, None


def _is_text(beginning: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder(UTF_8)().decode(beginning)
    except UnicodeDecodeError:
        return False
    return "\0" not in text


def _is_no_utf_8(text: str, form: Form) -> bool:
    return form.encoding == UTF_8 and "\ufffd" in text


def decoded(source: SourceFile, form: Form) -> Readable:
    """What is in a file of text, as UTF-8; raises as `open_content`."""
    return as_utf_8(open_content(source, form), form.encoding, form.newline)
