"""Texts in, scores out, in the same order; texts without tokens are rows of NaN."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.processors import needs_mkl
from tests.reference.model_oracle import float64_state, oracle_forward
from tests.reference.tokenizer_oracle import oracle_ids
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.inference.scorer import Scorer, rounded
from torchmoji_core.inference.scores import EMBEDDING_TYPES, Scores
from torchmoji_core.model import pack_ids
from torchmoji_core.vocabulary import UNKNOWN

TEXTS = [
    "I love my dog :)",
    "",
    "sooooo happy!!!",
    "sad",
    " \n ",
    "The cat and the dog are home. Good night! <3 #monday",
    "unheard of wordings",
    "rain rain rain rain, no sun",
    "😀\ud800",
    "day",
    "night" + " and day" * 40,
]
EMPTY = [1, 4]


def row_of(scores: Scores, index: int) -> tuple[Any, ...]:
    return (
        scores.probabilities[index],
        scores.embedding[index],
        np.trim_zeros(scores.attention[index], "b"),
        scores.n_tokens[index],
        scores.n_unknown[index],
        scores.truncated[index],
    )


@pytest.fixture(scope="module")
def alone(bundle: Bundle) -> list[tuple[Any, ...]]:
    return [row_of(bundle.score([text]), 0) for text in TEXTS]


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp64", 1e-6), ("bf16", 0.02), ("int8", 0.02)])
def test_scores_are_those_of_the_formulas(bundle: Bundle, precision: str, atol: float) -> None:
    scores = bundle.score(TEXTS, precision)
    parameters = float64_state(bundle.state)
    assert len(scores) == len(TEXTS)
    for index, text in enumerate(TEXTS):
        ids = oracle_ids(text, bundle.vocabulary)
        if not ids:
            assert index in EMPTY
            continue
        read = ids[: bundle.maxlen]
        expected = oracle_forward(parameters, read)
        np.testing.assert_allclose(scores.probabilities[index], expected.probabilities, rtol=0, atol=atol)
        np.testing.assert_allclose(scores.embedding[index], expected.embedding, rtol=0, atol=atol)
        np.testing.assert_allclose(scores.attention[index, : len(read)], expected.attention, rtol=0, atol=atol)
        assert not scores.attention[index, len(read) :].any()
        assert scores.n_tokens[index] == len(read)
        assert scores.n_unknown[index] == read.count(UNKNOWN)
        assert scores.truncated[index] == (len(ids) > bundle.maxlen)


def test_scores_are_those_of_the_readable_model(bundle: Bundle) -> None:
    rows = [[11, 12, 13], [14], [15, 16]]
    scores = bundle.scorer("fp32").score_ids(rows)
    with torch.inference_mode():
        output = bundle.model()(pack_ids(rows))
    np.testing.assert_allclose(scores.probabilities, output.logits.softmax(dim=1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores.embedding, output.embedding, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores.attention, output.attention, rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, len(TEXTS) - 1), max_size=25))
@settings(max_examples=60, deadline=None)
def test_a_text_alone_is_a_text_among_others(bundle: Bundle, alone: list[tuple[Any, ...]], chosen: list[int]) -> None:
    """Any subset, in any order, with any repetition; texts without tokens among them."""
    scores = bundle.score([TEXTS[index] for index in chosen])
    assert len(scores) == len(chosen)
    for place, index in enumerate(chosen):
        for value, expected in zip(row_of(scores, place), alone[index], strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)  # NaN equals NaN here


@needs_mkl
def test_a_text_alone_is_a_text_among_others_to_the_last_bit(bundle: Bundle, alone: list[tuple[Any, ...]]) -> None:
    generator = np.random.default_rng(1)
    for count in (2, 3, 5, 30, 700):  # the last needs more than one batch
        chosen = generator.integers(0, len(TEXTS), count).tolist()
        scores = bundle.score([TEXTS[index] for index in chosen])
        for place, index in enumerate(chosen):
            for value, expected in zip(row_of(scores, place), alone[index], strict=True):
                np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_does_not_matter(bundle: Bundle, threads: int) -> None:
    texts = TEXTS * 20
    expected = bundle.score(texts)
    scores = Scorer(bundle, threads=threads).score(texts)
    for index in range(len(texts)):
        for value, expected_value in zip(row_of(scores, index), row_of(expected, index), strict=True):
            np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 200])
def test_the_callers_number_of_threads_is_left_as_it_is(bundle: Bundle, count: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Scorer(bundle, threads=2, cache_mb=0).score(["rain", *TEXTS] * count)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cache_mb", [0, 1])
@given(calls=st.lists(st.lists(st.integers(0, len(TEXTS) - 1), max_size=12), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_what_was_scored_before_does_not_matter(
    bundle: Bundle, alone: list[tuple[Any, ...]], calls: list[list[int]], cache_mb: int
) -> None:
    scorer = Scorer(bundle, threads=1, cache_mb=cache_mb)
    seen: set[int] = set(EMPTY)
    for chosen in calls:
        scores = scorer.score([TEXTS[index] for index in chosen])
        for place, index in enumerate(chosen):
            for value, expected in zip(row_of(scores, place), alone[index], strict=True):
                np.testing.assert_array_equal(value, expected)
            assert scores.reused[place] == (cache_mb > 0 and index in seen and index not in EMPTY)
            seen.add(index)


@pytest.mark.parametrize("cache_mb", [0, 1])
@pytest.mark.parametrize("embedding_type", EMBEDDING_TYPES)
def test_embeddings_are_rounded_as_asked(bundle: Bundle, embedding_type: str, cache_mb: int) -> None:
    exact = bundle.score(TEXTS).embedding
    expected = np.rint(exact * 4096) / 4096 if embedding_type == "float32" else exact.astype(np.float16)
    scorer = Scorer(bundle, cache_mb=cache_mb, embedding_type=embedding_type)
    for _ in range(2):
        embedding = scorer.score(TEXTS).embedding
        assert embedding.dtype == embedding_type
        np.testing.assert_array_equal(embedding, expected)


@pytest.mark.parametrize("embedding_type", EMBEDDING_TYPES)
def test_the_cache_holds_as_many_results_of_either_type(bundle: Bundle, embedding_type: str) -> None:
    """What is rounded takes two bytes a component."""
    assert rounded(torch.zeros(1), embedding_type).element_size() == 2


@given(st.floats(-1, 1, width=32))
@example(0.5 / 4096)
@example(-1.5 / 4096)
@settings(max_examples=200, deadline=None)
def test_rounding_changes_a_component_by_what_is_said(value: float) -> None:
    """Half to even, as np.rint does."""
    step = rounded(torch.tensor([value]), "float32").item()
    assert step == np.rint(value * 4096)
    assert abs(step / 4096 - value) <= 1 / 8192


def test_texts_without_tokens_are_rows_of_nan(bundle: Bundle) -> None:
    scores = bundle.score(TEXTS)
    for index in range(len(TEXTS)):
        assert np.isnan(scores.probabilities[index]).all() == (index in EMPTY)
        assert np.isnan(scores.embedding[index]).all() == (index in EMPTY)
        assert (scores.n_tokens[index] == 0) == (index in EMPTY)
    assert not scores.attention[EMPTY].any()


@pytest.mark.parametrize("texts", [[], [""], ["", " "]], ids=repr)
def test_nothing_to_score(bundle: Bundle, texts: list[str]) -> None:
    scores = bundle.score(texts)
    assert len(scores) == len(texts)
    assert scores.probabilities.shape == (len(texts), 64)
    assert scores.embedding.shape == (len(texts), 26)
    assert scores.attention.shape == (len(texts), 0)
    assert scores.top() == [[] for _ in texts]


@pytest.mark.parametrize("maxlen", [1, 3])
def test_what_is_behind_maxlen_has_no_influence(make_bundle: Callable[..., Bundle], maxlen: int) -> None:
    bundle = make_bundle(maxlen=maxlen)
    words = ["love", "my", "dog", "wordings", "cat"]
    scores = bundle.score([" ".join(words[:count]) for count in range(1, 6)])
    assert scores.n_tokens.tolist() == [min(count, maxlen) for count in range(1, 6)]
    assert scores.truncated.tolist() == [count > maxlen for count in range(1, 6)]
    assert scores.n_unknown.tolist() == [0] * 5
    for count in range(maxlen, 6):
        np.testing.assert_allclose(scores.probabilities[count - 1], scores.probabilities[maxlen - 1], atol=1e-5)


def test_ids_may_be_numpy_arrays(bundle: Bundle) -> None:
    rows = [[11, 1, 13], [], [14]]
    scores = bundle.scorer().score_ids([np.array(row, np.int32) for row in rows])
    expected = bundle.scorer().score_ids(rows)
    np.testing.assert_array_equal(scores.probabilities, expected.probabilities)
    assert scores.n_unknown.tolist() == [1, 0, 0]


@pytest.mark.parametrize("index", [-1, 10_000])
def test_ids_outside_the_vocabulary_are_refused(bundle: Bundle, index: int) -> None:
    with pytest.raises(IndexError, match="below"):
        bundle.scorer().score_ids([[11], [12, index]])


def test_an_unknown_precision_lists_the_valid_ones(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="'fp8' is unknown") as error:
        bundle.score(["good"], precision="fp8")
    assert all(name in str(error.value) for name in PRECISIONS)


def test_a_scorer_tells_what_it_is(bundle: Bundle) -> None:
    scorer = bundle.scorer()
    assert scorer.precision in ("fp32", "bf16", "int8")
    assert scorer.precision in scorer.arithmetic
    assert bundle.scorer("fp64").precision == "fp64"
    assert (scorer.dimension, scorer.maxlen, scorer.classes) == (26, 30, bundle.classes)
    assert scorer.fingerprint == bundle.fingerprint


def test_threads_may_share_a_scorer(bundle: Bundle) -> None:
    scorer = bundle.scorer()
    expected = scorer.score(TEXTS).probabilities
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: scorer.score(TEXTS), range(12)):
            np.testing.assert_allclose(scores.probabilities, expected, rtol=0, atol=1e-6)
