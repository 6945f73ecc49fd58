"""Any iterable of strings is scored once, in its order; what is none is refused with the call that is right."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError

TEXTS = ["I love my dog :)", "sad", "", "The cat and the dog are home", "sad"]

ITERABLES: dict[str, Callable[[], Any]] = {
    "generator": lambda: (text for text in TEXTS),
    "map": lambda: map(str, TEXTS),
    "iterator": lambda: iter(TEXTS),
    "tuple": lambda: tuple(TEXTS),
    "values of a dict": lambda: dict(enumerate(TEXTS)).values(),
    "numpy": lambda: np.array(TEXTS),
    "numpy, objects": lambda: np.array(TEXTS, object),
    "pandas": lambda: pd.Series(TEXTS, index=[4, 2, 0, 1, 3]),
    "pandas, objects": lambda: pd.Series(TEXTS, dtype=object),
    "pandas, categories": lambda: pd.Series(TEXTS, dtype="category"),
    "column of a DataFrame": lambda: pd.DataFrame({"text": TEXTS})["text"],
    "polars": lambda: pl.Series(TEXTS),
    "polars, categories": lambda: pl.Series(TEXTS, dtype=pl.Categorical),
    "Arrow": lambda: pa.array(TEXTS),
    "Arrow, large": lambda: pa.array(TEXTS, pa.large_string()),
    "Arrow, view": lambda: pa.array(TEXTS, pa.string_view()),
    "Arrow, dictionary": lambda: pa.array(TEXTS).dictionary_encode(),
    "Arrow, chunks": lambda: pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
    "column of a Table": lambda: pa.table({"text": TEXTS})["text"],
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_any_iterable_of_texts_is_scored_in_order(bundle: Bundle, kind: str) -> None:
    scores, expected = bundle.score(ITERABLES[kind]()), bundle.score(TEXTS)
    assert scores.n_tokens.tolist() == expected.n_tokens.tolist()
    np.testing.assert_allclose(scores.probabilities, expected.probabilities, rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[Any, str]] = {
    "text": ("one text", r"give \[text\]"),
    "text of numpy": (np.str_("one text"), r"give \[text\]"),
    "number": (3, r"not int; for one text give \[text\]"),
    "None": (None, "not NoneType"),
    "bytes": (b"one text", r"not bytes; for one text give \[text.decode\(\)\]"),
    "dict": ({1: "good"}, r"not a dict; give its values: list\(texts.values\(\)\)"),
    "set": ({"good", "bad"}, r"in an order, which a set has not; give sorted\(texts\)"),
    "frozenset": (frozenset(["good"]), "a frozenset has not"),
    "pandas": (pd.DataFrame({"text": ["good"]}), r"DataFrame of shape \(1, 1\); give the column: table\['text'\]"),
    "polars": (pl.DataFrame({"text": ["good"]}), r"DataFrame of shape \(1, 1\); give the column"),
    "Table": (pa.table({"text": ["good"]}), r"Table of shape \(1, 1\); give the column"),
    "RecordBatch": (pa.record_batch({"text": ["good"]}), r"RecordBatch of shape \(1, 1\); give the column"),
    "polars, lazy": (pl.LazyFrame({"text": ["good"]}), r"LazyFrame; give the column: table.collect\(\)\['text'\]"),
    "matrix": (np.array([["good"]]), r"ndarray of shape \(1, 1\); give the column: texts\[:, 0\]"),
    "array without rows": (np.array("good"), r"one value of ndarray; for one text give \[text.item\(\)\]"),
    "number of numpy": (np.float64(1), r"one value of float64; for one text give \[text.item\(\)\]"),
    "bytes in it": (
        ["good", b"bytes"],
        r"row 1 \(counted from 0\) is b'bytes', not a text; make it one, as by .decode",
    ),
    "array of bytes": (np.array([b"good"]), r"row 0 .* is .*b'good'.*, not a text; make it one, as by .decode\(\)"),
    "number in it": (["good", "bad", 3], "row 2 .* is 3, not a text; make it one"),
    "list in it": ([["good"]], r"row 0 .* is \['good'\], not a text"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("missing", ["error", "empty"])
def test_what_is_no_iterable_of_texts_is_refused_with_the_right_call(bundle: Bundle, kind: str, missing: str) -> None:
    texts, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message):
        bundle.score(texts, missing=missing)


WITHOUT_TEXTS: dict[str, Any] = {
    "None": ["good", None, "sad", float("nan")],
    "numpy": np.array(["good", None, "sad", np.nan], object),
    "numpy, single precision": ["good", np.float32("nan"), "sad", np.float16("nan")],
    "numpy, times": ["good", np.datetime64("NaT"), "sad", np.timedelta64("NaT")],
    "numpy, masked": np.ma.array(["good", "", "sad", ""], mask=[False, True, False, True]),
    "decimal": ["good", Decimal("NaN"), "sad", Decimal("sNaN")],
    "pandas": pd.Series(["good", None, "sad", None]),
    "pandas, NA": pd.Series(["good", pd.NA, "sad", pd.NaT], dtype=object),
    "polars": pl.Series(["good", None, "sad", None]),
    "Arrow": pa.chunked_array([["good", None], ["sad", None]]),
}


@pytest.mark.parametrize("kind", WITHOUT_TEXTS)
def test_a_missing_text_is_named_or_scored_as_an_empty_one(bundle: Bundle, kind: str) -> None:
    texts = WITHOUT_TEXTS[kind]
    with pytest.raises(
        TypeError, match=r'row 1 .* is (None|<NA>|.*(nan|NaN|NaT).*|masked), not a text; with missing="empty"'
    ):
        bundle.score(texts)
    scores, expected = bundle.score(texts, missing="empty"), bundle.score(["good", "", "sad", ""])
    assert scores.n_tokens.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(scores.probabilities, expected.probabilities)
    assert bundle.scorer().score(texts, missing="empty").n_tokens.tolist() == [1, 0, 1, 0]


def test_what_missing_may_be(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="missing 'drop' is unknown; choose from error, empty"):
        bundle.score(["good"], missing="drop")
