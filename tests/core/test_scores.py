"""Scores as lists and as Arrow columns."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.inference.scores import (
    EMBEDDING_TYPES,
    SCORE_OUTPUTS,
    Scores,
    chosen,
    schema_of,
    score_columns,
    valid_unicode,
)

EMOJIS = ("😂", "😒", "❤", "😭")


def make_scores(rows: list[list[float] | None], classes: tuple[str, ...] = EMOJIS) -> Scores:
    """Made-up scores; None is a text without tokens. Row i of the others has i + 1 tokens."""
    n, width = len(rows), len(classes)
    probabilities = np.full((n, width), np.nan, np.float32)
    embedding = np.full((n, 3), np.nan, np.float32)
    n_tokens = np.array([0 if row is None else index + 1 for index, row in enumerate(rows)], np.int32)
    attention = np.zeros((n, max(n_tokens, default=0)), np.float32)
    for index, row in enumerate(rows):
        if row is not None:
            probabilities[index] = row
            embedding[index] = [index, -0.1, 0.123456]
            attention[index, : index + 1] = np.arange(1, index + 2) / sum(range(index + 2))
    return Scores(classes, probabilities, embedding, attention, n_tokens, n_tokens // 2, n_tokens > 2, n_tokens < 0)


SCORES = make_scores([[0.1, 0.2, 0.3, 0.4], None, [0.4, 0.1, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]])
TOKENS = [["a"], [], ["b", "c", "d"], ["e", "f", "g", "h", "cut off"]]


def test_top_is_most_probable_first_and_equal_ones_in_class_order() -> None:
    top = SCORES.top(3)
    assert [[label for label, _ in row] for row in top] == [
        ["😭", "❤", "😒"],
        [],
        ["😂", "❤", "😒"],
        ["😂", "😒", "❤"],
    ]
    assert [value for _, value in top[0]] == pytest.approx([0.4, 0.3, 0.2])
    assert all(type(value) is float for row in top for _, value in row)


def test_many_equal_ones_are_in_class_order_too() -> None:
    probabilities = [2.0, 1.0, 1.0, 1.0] * 16
    classes = tuple(f"class {index}" for index in range(64))
    labels = [label for label, _ in make_scores([probabilities], classes).top(64)[0]]
    assert labels == sorted(classes, key=lambda label: -probabilities[classes.index(label)])


@pytest.mark.parametrize(("k", "expected"), [(1, 1), (4, 4), (9, 4)])
def test_top_gives_no_more_classes_than_there_are(k: int, expected: int) -> None:
    assert [len(row) for row in SCORES.top(k)] == [expected, 0, expected, expected]
    column = SCORES.to_arrow(["top"], top_k=k)["top_emojis"]
    assert [row and len(row) for row in column.to_pylist()] == [expected, None, expected, expected]


@pytest.mark.parametrize("k", [0, -1])
def test_top_gives_at_least_one_class(k: int) -> None:
    for top in (SCORES.top, SCORES[0].top, SCORES[1].top):
        with pytest.raises(InputError, match=f"k must be at least 1, not {k}"):
            top(k)


# --- rows, and other forms ----------------------------------------------------------------------------------------


def test_a_row_is_the_score_of_one_text() -> None:
    for index, score in enumerate(SCORES):
        np.testing.assert_array_equal(score.probabilities, SCORES.probabilities[index])
        np.testing.assert_array_equal(score.embedding, SCORES.embedding[index])
        np.testing.assert_array_equal(score.attention, SCORES.attention[index, : SCORES.n_tokens[index]])
        assert (score.n_tokens, score.n_unknown) == (SCORES.n_tokens[index], SCORES.n_unknown[index])
        assert type(score.n_tokens) is int and type(score.truncated) is bool
        assert score.top(3) == SCORES.top(3)[index]
    assert index == 3
    assert SCORES[-1].n_tokens == SCORES[np.int64(3)].n_tokens == 4
    with pytest.raises(IndexError):
        SCORES[4]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([3, 0], [3, 0]),
        ([], []),
        (~SCORES.is_empty, [0, 2, 3]),
        (pd.Series([True, False, False, True], index=list("abcd")), [0, 3]),
    ],
)
def test_some_rows_are_scores(rows: Any, expected: list[int]) -> None:
    chosen = SCORES[rows]
    assert len(chosen) == len(expected)
    for place, index in enumerate(expected):
        assert repr(chosen[place]) == repr(SCORES[index])
        np.testing.assert_array_equal(chosen.embedding[place], SCORES.embedding[index])
    assert chosen.to_arrow().to_pylist() == [SCORES.to_arrow().to_pylist()[index] for index in expected]


@pytest.mark.parametrize("rows", [True, np.True_, (0, 1), (slice(None), 0), [[0, 1]], np.eye(4) > 0, None, "first"])
def test_what_are_no_rows_is_refused(rows: Any) -> None:
    with pytest.raises(TypeError, match="by the number of a row, or by a slice, a mask or a list of rows, not by a"):
        SCORES[rows]


def test_scores_can_be_compared_and_be_keys() -> None:
    score = SCORES[0]
    assert score == score and score != SCORES[0] and SCORES == SCORES
    assert len({score, SCORES[0], score}) == 2


def root(array: np.ndarray) -> np.ndarray:
    """The array that a view keeps in memory."""
    while array.base is not None:
        array = array.base
    return array


def test_what_is_kept_of_scores_keeps_nothing_far_larger_in_memory(bundle: Bundle) -> None:
    scores = bundle.score(["I love my dog", "", "so sad"] * 100)
    kept: list[np.ndarray] = [scores.probabilities, scores.embedding, scores.attention]
    for some in (scores[2], scores[:2]):
        kept += [some.probabilities, some.embedding, some.attention]
    for scorer in (Scorer(bundle, embedding_type=kind) for kind in EMBEDDING_TYPES):
        kept.append(scorer.score(["I love my dog"]).probabilities)
    for array in kept[:1] + kept[2:]:
        assert root(array).nbytes <= array.nbytes + 8
    row = sum(array[0].nbytes for array in kept[:2]) + 4 * bundle.maxlen
    assert root(scores.embedding).nbytes <= row * len(scores)


def test_without_nan_for_what_takes_none() -> None:
    filled = SCORES.fillna()
    assert not filled.embedding[1].any() and not filled.probabilities[1].any()
    assert np.isfinite(filled.embedding).all() and filled.embedding.dtype == SCORES.embedding.dtype
    assert (SCORES.fillna(-1).embedding[1] == -1).all()
    assert np.isnan(SCORES.embedding[1]).all()
    assert filled.is_empty.tolist() == [False, True, False, False]
    assert filled.to_arrow().equals(SCORES.to_arrow())  # empty all the same
    np.testing.assert_array_equal(filled.embedding[~filled.is_empty], SCORES[~SCORES.is_empty].embedding)


def test_predictions() -> None:
    assert SCORES.predict().tolist() == ["😭", None, "😂", "😂"]
    assert make_scores([]).predict().shape == (0,)
    thresholds = dict(zip(EMOJIS, (0.2, 0.2, 0.35, 0.9), strict=True))
    for wanted, expected in (
        (0.25, [[0, 0, 1, 1], [0] * 4, [1, 0, 1, 0], [1, 1, 1, 1]]),
        (thresholds, [[0, 1, 0, 0], [0] * 4, [1, 0, 1, 0], [1, 1, 0, 0]]),
    ):
        predicted = SCORES.predict(wanted)
        assert predicted.dtype == bool and predicted.astype(int).tolist() == expected
    with pytest.raises(KeyError):
        SCORES.predict({"😂": 0.5})


def test_a_data_frame_has_a_column_of_each_class() -> None:
    frame = SCORES.to_pandas(index=list("abcd"))
    assert frame.columns.tolist() == list(EMOJIS) and frame.index.tolist() == list("abcd")
    np.testing.assert_array_equal(frame.to_numpy(), SCORES.probabilities)
    assert SCORES.to_pandas().index.tolist() == [0, 1, 2, 3]


def test_without_pandas_another_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="needs pandas; install it, or take to_arrow"):
        SCORES.to_pandas()


def test_what_is_printed_is_one_short_line(bundle: Bundle) -> None:
    assert repr(SCORES) == "Scores(4 texts, 1 of them empty; 4 classes, embedding of 3)"
    assert repr(SCORES[0]) == "Score(😭 0.40, ❤ 0.30, 😒 0.20; n_tokens=1)"
    assert repr(SCORES[1]) == "Score(empty; n_tokens=0)"
    assert repr(bundle) == "Bundle('small': 64 classes, 56 tokens, embedding of 26, maxlen 30)"


# --- Arrow --------------------------------------------------------------------------------------------------------


def test_arrow_columns_hold_the_scores() -> None:
    batch = SCORES.to_arrow(SCORE_OUTPUTS, top_k=2, tokens=TOKENS)
    batch.validate(full=True)
    assert batch.schema.equals(schema_of(score_columns(EMOJIS)))
    columns = batch.to_pydict()
    assert list(columns) == [
        "top_emojis",
        "probabilities",
        "embedding",
        "attention",
        "n_tokens",
        "n_unknown",
        "truncated",
        "status",
    ]
    assert columns["status"] == ["scored", "empty", "scored", "scored"]
    assert columns["n_tokens"] == [1, 0, 3, 4]
    assert columns["n_unknown"] == [0, 0, 1, 2]
    assert columns["truncated"] == [False, False, True, True]
    for name in ("top_emojis", "probabilities", "embedding", "attention"):
        assert [value is None for value in columns[name]] == [False, True, False, False], name
    for index in (0, 2, 3):
        assert columns["probabilities"][index] == SCORES.probabilities[index].tolist()
        assert columns["embedding"][index] == SCORES.embedding[index].tolist()
        assert [(item["emoji"], item["probability"]) for item in columns["top_emojis"][index]] == SCORES.top(2)[index]


def test_attention_is_aligned_with_the_tokens() -> None:
    column = SCORES.to_arrow(["attention"], tokens=TOKENS)["attention"].to_pylist()
    assert column[1] is None
    for index in (0, 2, 3):
        assert [item["token"] for item in column[index]] == TOKENS[index][: index + 1]
        weights = [item["weight"] for item in column[index]]
        assert weights == SCORES.attention[index, : index + 1].tolist()
        assert sum(weights) == pytest.approx(1)


def test_attention_of_real_texts_is_aligned_with_their_tokens(bundle: Bundle) -> None:
    texts = ["love", "", "I love my dog!!! \ud800", "so sad"]
    scores = bundle.score(texts)
    tokens = [bundle.tokenizer.tokens(text, bundle.maxlen) for text in texts]
    column = scores.to_arrow(["attention"], tokens=tokens)["attention"].to_pylist()
    assert [row and [item["token"] for item in row] for row in column] == [
        ["love"],
        None,
        ["i", "love", "my", "dog", "!!", "\ufffd"],
        ["so", "sad"],
    ]


def test_attention_needs_tokens_of_every_text() -> None:
    with pytest.raises(ValueError, match="needs the tokens"):
        SCORES.to_arrow(["attention"])
    with pytest.raises(ValueError):
        SCORES.to_arrow(["attention"], tokens=TOKENS[:-1])
    with pytest.raises(ValueError):
        SCORES.to_arrow(["attention"], tokens=[["a"], [], ["b"], ["e", "f", "g", "h"]])


@pytest.mark.parametrize("embedding_type", EMBEDDING_TYPES)
def test_embedding_types(bundle: Bundle, embedding_type: str) -> None:
    scores = bundle.score(["I love my dog", "", "sad cat"])
    batch = scores.to_arrow(["embedding"], embedding_type=embedding_type)
    kind = pa.float16() if embedding_type == "float16" else pa.float32()
    assert batch.schema.field("embedding").type.value_type == kind
    column = batch["embedding"].to_pylist()
    assert column[1] is None
    for index in (0, 2):
        difference = np.abs(np.array(column[index], np.float64) - scores.embedding[index])
        assert difference.max() <= (2.5e-4 if embedding_type == "float16" else 0)
        assert np.abs(scores.embedding[index]).max() <= 1


@given(st.floats(-1, 1, width=32))
@settings(max_examples=200, deadline=None)
def test_float16_rounds_by_what_is_said(value: float) -> None:
    assert abs(float(np.float16(value)) - value) <= 2.5e-4


@pytest.mark.parametrize("rows", [[], [None], [None, None]], ids=["no rows", "an empty row", "empty rows"])
def test_columns_of_nothing(rows: list[None]) -> None:
    batch = make_scores(list(rows)).to_arrow(SCORE_OUTPUTS, tokens=[[] for _ in rows])
    batch.validate(full=True)
    assert batch.num_rows == len(rows)
    assert batch["probabilities"].null_count == len(rows)


@pytest.mark.parametrize("embedding_type", EMBEDDING_TYPES)
def test_parquet_gives_the_columns_back(embedding_type: str) -> None:
    batch = SCORES.to_arrow(SCORE_OUTPUTS, embedding_type=embedding_type, tokens=TOKENS)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_batches([batch]), file)
    table = pq.read_table(file)
    assert table.schema.equals(batch.schema)
    assert table.to_pylist() == batch.to_pylist()


@pytest.mark.parametrize("output", SCORE_OUTPUTS)
def test_each_output_is_one_column(output: str) -> None:
    names = [column.name for column in chosen(score_columns(EMOJIS), [output])]
    assert len(names) == 5 and names[1:] == ["n_tokens", "n_unknown", "truncated", "status"]
    assert SCORES.to_arrow([output], tokens=TOKENS).schema.names == names


def test_other_classes_have_another_column() -> None:
    scores = make_scores([[0.1, 0.9]], classes=("joy", "anger"))
    item = scores.to_arrow(["top"], top_k=1)["top_classes"].to_pylist()[0][0]
    assert item == {"class": "anger", "probability": pytest.approx(0.9)}


def test_more_values_than_a_column_can_count_are_refused() -> None:
    """A million full-size embeddings: offsets of 32 bits would wrap around without a word."""
    scores = make_scores([[0.1, 0.2, 0.3, 0.4]])
    million = 1_000_000
    many = replace(
        scores,
        probabilities=np.broadcast_to(scores.probabilities, (million, 4)),
        embedding=np.broadcast_to(np.float32(0), (million, 2304)),
        n_tokens=np.ones(million, np.int32),
    )
    with pytest.raises(ValueError, match="fewer texts at a time"):
        many.to_arrow(["embedding"])


def test_unknown_options_list_the_valid_ones() -> None:
    with pytest.raises(InputError, match="'logits' is unknown; choose from top, probabilities, embedding, attention"):
        SCORES.to_arrow(["top", "logits"])
    with pytest.raises(InputError, match="'bfloat16' is unknown; choose from float32, float16"):
        SCORES.to_arrow(["embedding"], embedding_type="bfloat16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("naïve 😀\x00", "naïve 😀\x00"),
        ("a\ud800b", "a\ufffdb"),
        ("a\udc00b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\udfff\ud800", "\ufffd\ufffd"),
        ("😀\ud83d", "😀\ufffd"),
    ],
    ids=ascii,
)
def test_lone_surrogates_become_valid(text: str, expected: str) -> None:
    assert valid_unicode(text) == expected


lone_surrogates = st.text(st.one_of(st.sampled_from("\ud83d\udbff"), st.characters(max_codepoint=0xD7FF)), max_size=12)


@given(lone_surrogates)
@settings(max_examples=100, deadline=None)
def test_making_a_text_valid_does_not_change_its_ids(bundle: Bundle, text: str) -> None:
    valid = valid_unicode(text)
    valid.encode()
    assert bundle.tokenizer.ids(valid) == bundle.tokenizer.ids(text)
