"""The fast engine gives what the readable model gives, and a row's result does not depend on its neighbours."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.core.conftest import GoldenModel
from tests.processors import needs_mkl
from tests.reference.model_oracle import OracleOutput, float64_state, oracle_forward
from torchmoji_core.batching import BatchLimits, plan_batches
from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.inference.engine import Engine
from torchmoji_core.inference.network import Network, Output
from torchmoji_core.model import TorchMoji, dimensions_of, pack_ids

MakeState = Callable[..., dict[str, Tensor]]
Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Probabilities, embedding and attention."""


def run(engine: Engine, rows: Sequence[Sequence[int]]) -> list[Row]:
    """Run one batch of rows in any order; results in that order."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    output = engine.run([rows[index] for index in order])
    results: dict[int, Row] = {}
    for place, index in enumerate(order):
        attention = output.attention[place]
        assert not attention[len(rows[index]) :].any()
        values = (output.probabilities[place], output.embedding[place], attention[: len(rows[index])])
        results[index] = tuple(value.numpy() for value in values)  # type: ignore[assignment]
    return [results[index] for index in range(len(rows))]


def assert_rows_close(rows: Iterable[Row | OracleOutput], expected: Iterable[Row | OracleOutput], atol: float) -> None:
    for row, expected_row in zip(rows, expected, strict=True):
        for value, expected_value in zip(row[-3:], expected_row[-3:], strict=True):
            np.testing.assert_allclose(value, expected_value, rtol=0, atol=atol)


def assert_rows_equal(rows: Iterable[Row], expected: Iterable[Row]) -> None:
    for row, expected_row in zip(rows, expected, strict=True):
        for value, expected_value in zip(row, expected_row, strict=True):
            assert np.array_equal(value, expected_value)


@pytest.fixture(scope="module")
def state(make_state: MakeState) -> dict[str, Tensor]:
    return make_state()


POOL = [
    np.random.default_rng(number).integers(0, 60, length).tolist()
    for number, length in enumerate([1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 8, 9, 12, 13, 17, 30, 30])
]


def test_golden_forward(golden_model: GoldenModel) -> None:
    engine = Engine(golden_model.state, "fp32")
    weights = [row[: len(ids)] for row, ids in zip(golden_model.attention, golden_model.rows, strict=True)]
    expected = list(zip(golden_model.probabilities, golden_model.embedding, weights, strict=True))
    assert_rows_close(run(engine, golden_model.rows), expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp64", 1e-12), ("bf16", 0.02), ("int8", 0.02)])
def test_results_are_those_of_the_formulas(state: dict[str, Tensor], precision: str, atol: float) -> None:
    parameters = float64_state(state)
    assert_rows_close(run(Engine(state, precision), POOL), [oracle_forward(parameters, row) for row in POOL], atol)


@pytest.mark.parametrize(
    "sizes",
    [
        {"embedding": 1, "hidden": 1, "classes": 1},
        {"embedding": 7, "hidden": 3, "classes": 2},
        {"embedding": 16, "hidden": 16, "classes": 7},
        {"embedding": 3, "hidden": 17, "classes": 65},
    ],
    ids=str,
)
def test_results_are_those_of_the_readable_model_at_any_size(make_state: MakeState, sizes: dict[str, int]) -> None:
    state = make_state(**sizes)
    model = TorchMoji(dimensions_of(state))
    model.load_state_dict(state)
    with torch.inference_mode():
        output = model.eval()(pack_ids(POOL))
    attention = [weights[: len(row)] for weights, row in zip(output.attention, POOL, strict=True)]
    expected = list(zip(output.logits.softmax(dim=1), output.embedding, attention, strict=True))
    assert_rows_close(run(Engine(state, "fp32"), POOL), expected, atol=1e-5)


chosen_rows = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=25)
some_limits = st.builds(BatchLimits, max_rows=st.integers(1, 20), max_tokens=st.integers(1, 200))


def in_batches(engine: Engine, chosen: list[int], limits: BatchLimits) -> list[Row]:
    results: dict[int, Row] = {}
    for batch in plan_batches([len(POOL[index]) for index in chosen], limits):
        results |= dict(zip(batch, run(engine, [POOL[chosen[place]] for place in batch]), strict=True))
    return [results[place] for place in range(len(chosen))]


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "int8"])
@given(chosen=chosen_rows, limits=some_limits)
@settings(max_examples=20, deadline=None)
def test_a_row_alone_is_a_row_in_any_batch(
    state: dict[str, Tensor], precision: str, chosen: list[int], limits: BatchLimits
) -> None:
    engine = Engine(state, precision)
    alone = [run(engine, [POOL[index]])[0] for index in chosen]
    assert_rows_close(in_batches(engine, chosen, limits), alone, atol=1e-5)


@needs_mkl
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "int8"])
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 7, 9, 11, 16, 64])
def test_a_row_alone_is_a_row_in_any_batch_to_the_last_bit(make_state: MakeState, classes: int, precision: str) -> None:
    """With a few odd numbers of columns, MKL sums the fourth row of each four in another order."""
    engine = Engine(make_state(classes=classes), precision)
    alone = [run(engine, [row])[0] for row in POOL]
    generator = np.random.default_rng(classes)
    for _ in range(6):
        chosen = generator.integers(0, len(POOL), generator.integers(1, 60)).tolist()
        limits = BatchLimits(max_rows=int(generator.integers(1, 60)))
        assert_rows_equal(in_batches(engine, chosen, limits), [alone[index] for index in chosen])


@needs_mkl
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "int8"])
@pytest.mark.parametrize("hidden", [3, 8, 13, 24, 32, 65])
def test_sizes_do_not_matter_for_that(make_state: MakeState, hidden: int, precision: str) -> None:
    engine = Engine(make_state(hidden=hidden, embedding=hidden + 1, classes=10), precision)
    alone = [run(engine, [row])[0] for row in POOL]
    for count in range(1, len(POOL)):
        assert_rows_equal(run(engine, POOL[count:] + POOL[:count]), alone[count:] + alone[:count])


@pytest.mark.parametrize(("precision", "same", "cosine"), [("bf16", 0.98, 0.9999), ("int8", 0.95, 0.999)])
def test_lower_precisions_say_much_the_same(
    golden_model: GoldenModel, precision: str, same: float, cosine: float
) -> None:
    """At full size, where more is summed; benchmarks/fidelity.py measures it on more texts."""
    rows = run(Engine(golden_model.state, precision), golden_model.rows)
    probabilities, embedding = (np.stack([row[part] for row in rows]) for part in (0, 1))
    expected = golden_model.embedding
    assert (probabilities.argmax(axis=1) == golden_model.probabilities.argmax(axis=1)).mean() >= same
    lengths = np.linalg.norm(embedding, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((embedding * expected).sum(axis=1) / lengths).min() >= cosine


def broken(network: Network) -> Network:
    raise torch.jit.Error("no such operator\nand more")  # type: ignore[attr-defined]  # no RuntimeError, as most are


def wrong(network: Network) -> Callable[..., Output]:
    return lambda *batch: tuple(values + 1 for values in network(*batch))  # type: ignore[return-value]


@needs_mkl
@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "int8"])
@pytest.mark.parametrize(
    ("script", "fault"), [(broken, "no such operator"), (wrong, "wrong results")], ids=["broken", "wrong"]
)
def test_without_torchscript_the_bits_are_the_same(
    state: dict[str, Tensor],
    precision: str,
    script: Callable[[Network], object],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "torchmoji_core"):
        rows = run(Engine(state, precision), POOL)
        assert sys.version_info >= (3, 14) or not caplog.records
        monkeypatch.setattr(torch.jit, "script", script)
        assert_rows_equal(run(Engine(state, precision), POOL), rows)
        assert sys.version_info >= (3, 14) or f"without TorchScript ({fault})" in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torchs_warnings_of_what_it_will_drop_are_not_the_users(state: dict[str, Tensor], precision: str) -> None:
    torch.set_warn_always(True)  # they come once a process else
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(Engine(state, precision), POOL)
    finally:
        torch.set_warn_always(False)


def test_huge_logits_give_numbers(state: dict[str, Tensor]) -> None:
    big = state | {name: 1e8 * state[name] for name in ("attention_layer.attention_vector", "output_layer.0.weight")}
    for row in run(Engine(big), POOL):
        assert all(np.isfinite(value).all() for value in row)
        assert row[0].sum() == pytest.approx(1) and row[2].sum() == pytest.approx(1)


def test_weights_in_half_precision_are_read(state: dict[str, Tensor]) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    expected = run(Engine({name: tensor.float() for name, tensor in half.items()}), POOL)
    assert_rows_equal(run(Engine(half), POOL), expected)


def test_the_weights_are_left_as_they_are(state: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in state.items()}
    run(Engine(state, "fp32"), POOL)
    assert all(torch.equal(before[name], state[name]) for name in state)


def test_threads_may_share_an_engine(state: dict[str, Tensor]) -> None:
    engine = Engine(state)
    expected = run(engine, POOL)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(engine, POOL), range(24)):
            assert_rows_close(result, expected, atol=1e-6)


@pytest.mark.parametrize("index", [-1, 60, 2**40])
def test_ids_outside_the_vocabulary_are_refused(state: dict[str, Tensor], index: int) -> None:
    with pytest.raises(IndexError, match="below 60"):
        Engine(state).run([[12, 13], [index]])


@pytest.mark.parametrize(
    "rows", [[], [[]], [[1], []], [[1], [2, 3]]], ids=["no rows", "empty row", "empty row last", "not sorted"]
)
def test_rows_that_cannot_be_packed_are_refused(state: dict[str, Tensor], rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="longest first"):
        Engine(state).run(rows)


@pytest.mark.parametrize("precision", ["int4", "", "FP32"])
def test_an_unknown_precision_lists_the_valid_ones(state: dict[str, Tensor], precision: str) -> None:
    with pytest.raises(InputError, match=f"{precision!r} is unknown") as error:
        Engine(state, precision)
    assert all(name in str(error.value) for name in PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_listed_precision_works(state: dict[str, Tensor], precision: str) -> None:
    assert Engine(state, precision).precision in PRECISIONS
    assert run(Engine(state, precision), POOL)[0][0].shape == (64,)


def test_weights_of_another_model_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="not the weights"):
        Engine({"weight": torch.zeros(1)})
