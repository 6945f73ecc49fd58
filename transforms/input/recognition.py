"""`recognize`: the form of a file, from its first bytes, its name and the options. Contents win over names."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, NamedTuple

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from transforms.input.archives import members, open_member
from transforms.input.compression import READ_ERRORS, ZIP, Readable, compression_of, decompress, seekable
from transforms.input.delimited import recognize_dialect, recognize_table
from transforms.input.encodings import UTF_8, detect
from transforms.input.forms import FOREIGN, FORMATS, WORDS, Form, FormOptions, guess_format, tells_format
from transforms.input.json_documents import is_document, looks_like_document
from transforms.input.lines import parse_json
from transforms.input.raw_records import DamagedFileError, Record
from transforms.input.source_file import SourceFile, raise_unless_damage

SAMPLE_BYTES = 1 << 16
MAX_LAYERS = 4
_PAGES = {
    "<!doctype html": "a page in HTML", "<html": "a page in HTML", "<?xml": "XML",
    "<error><code>": "an error message of an object store",
}  # fmt: skip
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
    sample = _sample(open_content(source, packed))
    if sample.problem is not None and not sample.content and kind is None:
        raise DamagedFileError(f"cannot be read: {sample.problem}")
    compression = compression_of(sample.content)
    if compression is None and named not in (None, ZIP, *packed.layers) and not sample.is_text:
        compression = named
    if compression is None:
        yield _form_of_plain(source, kind, options, packed, sample)
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


def _form_of_plain(source: SourceFile, kind: str | None, options: FormOptions, packed: Form, sample: _Sample) -> Form:
    beginning, is_whole = sample.content, sample.is_whole
    for magic, what, remedy in FOREIGN:
        if beginning.startswith(magic) and not (sample.is_text and magic in WORDS):
            raise InputError(f"it is {what}: {remedy}")
    if beginning[_TAR[0]] == _TAR[1]:
        raise InputError("it is a tar archive: unpack it, and give the directory")
    kind = options.format or kind
    begun = (name for name, each in FORMATS.items() if each.begins is not None and each.begins(beginning))
    told = kind if sample.is_text else next(begun, kind)
    if told is not None and FORMATS[told].begins is not None:
        if (check := FORMATS[told].check) is not None:
            check(open_content(source, packed))
        return replace(packed, kind=told)
    encoding = detect(beginning, options.encoding)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(beginning, final=is_whole).removeprefix("\ufeff")
    newline = "\r" if "\r" in text[:-1] and "\n" not in text else "\n"
    text = text.replace(newline, "\n")
    may_be_utf_8 = encoding != UTF_8 and sample.is_text and not beginning.isascii()
    form = replace(packed, encoding=encoding, newline=newline, may_be_utf_8=may_be_utf_8)
    first = next((line for line in text.split("\n") if line.strip()), "")
    page = next((what for tag, what in _PAGES.items() if first.lstrip("\ufeff \t")[:20].lower().startswith(tag)), None)
    if page and options.format != "text":
        raise InputError(
            f"it is {page}: if a download failed, repeat it; or write the texts as CSV or JSON lines, or give --format "
            "text for whole lines"
        )
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
    if not (usual := FORMATS[kind].delimiter):
        return replace(form, kind=kind)
    try:
        dialect = recognize_dialect(text, usual, options.delimiter, not options.no_header, options.columns, is_whole)
    except InputError as error:
        is_other = encoding == UTF_8 and "\ufffd" in text
        more = "; it is no UTF-8: name its --encoding, for instance cp1252" if is_other else ""
        raise InputError(f"{error}{more}") from None
    return replace(form, kind=kind, dialect=dialect)


class _Sample(NamedTuple):
    """The first bytes of a file."""

    content: bytes
    is_whole: bool
    """Whether there are no more."""
    is_text: bool
    """Whether they are UTF-8 without NULs; so is nothing."""
    problem: Exception | None = None
    """Why no more can be read."""


def _sample(content: Readable) -> _Sample:
    beginning, is_whole, problem = bytearray(), False, None
    try:
        while len(beginning) < SAMPLE_BYTES and not is_whole:
            piece = content.read1(SAMPLE_BYTES) if hasattr(content, "read1") else content.read(SAMPLE_BYTES)
            beginning += piece
            is_whole = not piece
    except READ_ERRORS as error:
        raise_unless_damage(error)  # reading it whole will say what is wrong
        problem = error
    try:
        is_text = "\0" not in codecs.getincrementaldecoder(UTF_8)().decode(beginning)
    except UnicodeDecodeError:
        is_text = False
    return _Sample(bytes(beginning), is_whole, is_text, problem)
