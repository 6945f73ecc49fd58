"""JSON that is no line for each record: arrays, pretty-printed documents, several of them, the archive's tweets.js.

The records are the elements of an outer array, or the documents themselves if they are objects. They are read one
after the other by Python's own decoder, from a piece of the file that holds one whole, so memory depends on the size of
a record alone, and values are what they are in JSON lines. (A streaming parser such as ijson gives numbers other types,
and ends at the first damage. Here reading goes on at the next line that may begin a record.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from transforms.input import raw_records
from transforms.input.compression import READ_ERRORS, Readable
from transforms.input.encodings import UTF_8, not_decoded
from transforms.input.lines import as_object, cut_off
from transforms.input.raw_records import Damage, Record, damage
from transforms.input.source_file import raise_unless_damage

_PIECE = 1 << 16
_ASSIGNMENT = re.compile(r"(?:(?:var|let|const)\s+)?[A-Za-z_$][\w$.]*\s*=\s*(?=[\[{])")
"""What makes JavaScript of JSON, as the archive of an account has it: window.YTD.tweets.part0 = ["""
_BETWEEN = re.compile(r"[\s,;\ufeff\x1e]*")
_decode = json.JSONDecoder().raw_decode
_CUT = 64
"""An error so near to the end of what has been read may be due to that end."""


def is_document(beginning: str, is_whole: bool) -> bool:
    """Whether JSON is read as documents, and not as lines, of which each is an object.

    Args:
        beginning: the first characters.
        is_whole: whether there are no more.
    """
    lines = [line.strip() for line in beginning.split("\n")]
    lines = [line for line in (lines if is_whole else lines[:-1] or lines) if line]
    before = ""
    for line in lines[:1000]:
        if line.startswith("{") and not before.endswith((",", "[", ":")) and _is_object(line.removeprefix("\ufeff")):
            return False
        before = line
    text = beginning.lstrip("\ufeff \t\r\n")
    if text.startswith("[") or _ASSIGNMENT.match(text):
        return True
    if not text.startswith("{") or len(lines) < 2:
        return False
    # An object that goes on over lines as an object may.
    _, problem, _ = _decode_at(text, 0)
    return problem is None or _is_cut(problem, text.rstrip(), 0 if is_whole else _CUT)


def looks_like_document(text: str) -> bool:
    """Whether a file that is called a text may be a document; many texts begin with a bracket."""
    return _DOCUMENT.match(text.lstrip("\ufeff \t\r\n")) is not None


_DOCUMENT = re.compile(r'\[\s*[{\]]|\{\s*"|' + _ASSIGNMENT.pattern)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _decode_at(text: str, start: int) -> tuple[Any, json.JSONDecodeError | ValueError | RecursionError | None, int]:
    try:
        value, end = _decode(text, start)
        return value, None, end
    except (ValueError, RecursionError) as error:
        return None, error, start


def _is_cut(problem: Exception, text: str, tolerance: int = _CUT) -> bool:
    return isinstance(problem, json.JSONDecodeError) and (
        problem.msg.startswith("Unterminated string") or problem.pos >= len(text) - tolerance
    )


class _Window:
    """The piece of a file in which its next record is."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(UTF_8)("surrogateescape")
        self.text = ""
        self.at = 0
        """Where in the text reading is."""
        self._position, self._counted = 0, 0
        self.indent = 0
        """Characters before what reading is at, on its line."""
        self.is_at_end = False
        self.error: Exception | None = None

    def grow(self) -> None:
        """Read on: as much again as is there, so that a long record takes linear time."""
        self._count()
        self.text, self.at, self._counted = self.text[self.at :], 0, 0
        try:
            piece = self._file.read(max(_PIECE, len(self.text)))
        except READ_ERRORS as error:
            raise_unless_damage(error)
            piece, self.error = b"", error
        self.is_at_end = not piece
        self.text += self._decoder.decode(piece, final=self.is_at_end)

    def between(self) -> str:
        """Pass over what separates records, and tell the next character; "" at the end."""
        while True:
            between = _BETWEEN.match(self.text, self.at)
            assert between is not None  # it may be empty
            self.at, self.indent = between.end(), len(between[0].rpartition("\n")[2])
            if self.at < len(self.text) or self.is_at_end:
                return self.text[self.at : self.at + 1]
            self.grow()

    def position(self) -> int:
        """Byte offset of where reading is."""
        self._count()
        return self._position

    def _count(self) -> None:
        self._position += len(self.text[self._counted : self.at].encode(UTF_8, "surrogateescape"))
        self._counted = self.at


def read_documents(file: Readable, encoding: str = UTF_8) -> Iterator[Record | Damage]:
    """The records of a file.

    Args:
        file: its content as UTF-8.
        encoding: of the file, for messages.
    """
    window = _Window(file)
    is_open = False
    while character := window.between():
        if character in "[]":
            if is_open != (character == "]"):
                yield from _record(window, encoding, is_open)  # an array in the array, or an end without a beginning
                continue
            is_open = not is_open
            window.at += 1
            continue
        if not is_open:
            if len(window.text) - window.at < _PIECE and not window.is_at_end:
                window.grow()
            if assignment := _ASSIGNMENT.match(window.text, window.at):
                window.at = assignment.end()
                continue
        yield from _record(window, encoding, is_open)
    if window.error is not None:
        yield cut_off(window.position(), window.error)
    elif is_open:
        yield Damage(window.position(), "the array has no end: the file is cut off", b"")


def _record(window: _Window, encoding: str, is_open: bool) -> Iterator[Record | Damage]:
    """The record that begins where a window is."""
    longest = raw_records.MAX_RECORD_BYTES
    while True:
        value, problem, end = _decode_at(window.text, window.at)
        # Of a number at the end, more may come.
        may_go_on = problem is None and end == len(window.text) and not isinstance(value, dict | list)
        if window.is_at_end or not (may_go_on or (problem is not None and _is_cut(problem, window.text))):
            break
        if len(window.text) - window.at > longest:
            problem = ValueError(f"record is longer than {longest >> 20} MiB")
            break
        window.grow()
    start = window.position()
    if problem is not None:
        yield _pass_over(window, start, problem)
        return
    raw = window.text[window.at : end].encode(UTF_8, "surrogateescape")
    window.at = end
    if len(raw) > longest:
        yield damage(start, f"record is longer than {longest >> 20} MiB", raw)
        return
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        yield damage(start, not_decoded(encoding, f": {error.reason} at byte {error.start}"), raw)
        return
    yield as_object(start, value, raw)


def _pass_over(window: _Window, start: int, problem: Exception) -> Damage:
    """The damage that begins where a window is; reading goes on at the next line that may begin a record."""
    is_json = isinstance(problem, json.JSONDecodeError)  # whose place would be one in the window
    reason = f"not JSON: {problem.msg if is_json else problem}"  # type: ignore[attr-defined]
    kept = window.text[window.at :].encode(UTF_8, "surrogateescape")
    next_record = re.compile(rf"\n[ \t]{{0,{window.indent}}}(?=[\[\]{{])")
    window.at += 1
    while True:
        found = next_record.search(window.text, window.at)
        if found is not None or window.is_at_end:
            window.at = len(window.text) if found is None else found.start()
            passed = window.position() - start
            more = ", and what is behind it" if found is None else ""
            return damage(start, reason + more, kept[:passed])
        # An indented line may be cut, so a little is looked at again.
        window.at = max(window.at, len(window.text) - 1 - window.indent)
        window.grow()
