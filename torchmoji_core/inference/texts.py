"""What is scored: any iterable of strings, read once and in order, or refused with the call that is right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from torchmoji_core.names import shown
from torchmoji_core.options import check_choice

MISSING = ("error", "empty")
"""What a missing text (None, NaN, NaT, pandas' NA, what numpy masks) is: an error, or a text without tokens."""

Texts = Iterable[str | float | None]
"""A list, a generator, a Series of pandas or polars, an array of numpy or Arrow."""


def as_texts(texts: Texts, missing: str = "error", caller: str = "score") -> list[str]:
    """The texts of any iterable of strings.

    Args:
        texts: read once, in its order.
        missing: one of `MISSING`.
        caller: what asks for texts, for errors.

    Raises:
        TypeError: for one string, bytes, a mapping, a set or a table; or naming the first row that is no text.
        InputError: for another `missing`.
    """
    check_choice("missing", missing, MISSING)
    result = values_of(texts, caller)
    for row, text in enumerate(result):
        if not isinstance(text, str):
            result[row] = _without_text(row, text, missing)
    return result


def values_of(texts: Iterable[Any], caller: str) -> list[Any]:
    """The values of any iterable that can hold texts, whatever they are.

    Raises:
        TypeError: for one string, bytes, a mapping, a set or a table.
    """
    if isinstance(texts, (set, frozenset)):
        kind = type(texts).__name__
        raise TypeError(f"{caller} takes texts in an order, which a {kind} has not; give sorted(texts)")
    return list(_iterable(texts, caller))


def each_text(texts: Iterable[Any], caller: str) -> Iterator[str]:
    """The texts of any iterable of strings, of a set too, one after another: it may be longer than memory.

    Raises:
        TypeError: as `as_texts`; for a row when it is met.
    """
    for row, text in enumerate(_iterable(texts, caller)):
        if not isinstance(text, str):
            raise TypeError(f"{caller}: row {row} (counted from 0) is {shown(text)}, not a text; leave it out")
        yield text


def _iterable(texts: Iterable[Any], caller: str) -> Iterable[Any]:
    kind = type(texts).__name__
    shape = getattr(texts, "shape", (0,))  # tables have two dimensions, a Series one, a list none to tell
    if isinstance(texts, str):
        raise TypeError(f"{caller} takes a list of texts; for one text give [text]")
    if isinstance(texts, (bytes, bytearray)):
        raise TypeError(f"{caller} takes a list of texts, not {kind}; for one text give [text.decode()]")
    if isinstance(texts, Mapping):
        raise TypeError(f"{caller} takes a list of texts, not a {kind}; give its values: list(texts.values())")
    if shape == ():
        raise TypeError(f"{caller} takes a list of texts, not one value of {kind}; for one text give [text.item()]")
    if isinstance(shape, tuple) and len(shape) != 1:
        column = f"texts[{', '.join([':', *'0' * (len(shape) - 1)])}]" if kind == "ndarray" else "table['text']"
        raise TypeError(f"{caller} takes one column of texts, not a {kind} of shape {shape}; give the column: {column}")
    if kind == "LazyFrame":
        raise TypeError(f"{caller} takes one column of texts, not a {kind}; give the column: table.collect()['text']")
    if not isinstance(texts, Iterable):
        raise TypeError(f"{caller} takes a list of texts, not {kind}; for one text give [text]")
    # Arrow's arrays are iterables of their own kind of values.
    return texts.to_pylist() if hasattr(texts, "to_pylist") else texts


def _without_text(row: int, value: object, missing: str) -> str:
    where = f"row {row} (counted from 0) is {shown(value)}, not a text"
    if not is_missing(value):
        way = ".decode()" if isinstance(value, bytes) else "str()"  # which makes "b'...'" of bytes
        raise TypeError(f"{where}; make it one, as by {way}, or leave it out")
    if missing == "error":
        raise TypeError(f'{where}; with missing="empty" such rows are scored as empty texts')
    return ""


def is_missing(value: object) -> bool:
    """Whether it is what None, or a number that is none, becomes in tables."""
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, (float, np.inexact, np.datetime64, np.timedelta64)):
        return bool(value != value)
    return value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType")
