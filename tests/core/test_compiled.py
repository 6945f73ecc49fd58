"""Compiled loops have the bits of torch's network, and are not needed."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.core.test_engine import MakeState, assert_rows_equal, run
from tests.processors import lacking
from torchmoji_core.bundle import load_bundle
from torchmoji_core.inference import compiled_loops
from torchmoji_core.inference import engine as module
from torchmoji_core.inference.compiled_network import CompiledNetwork
from torchmoji_core.inference.engine import Engine
from torchmoji_core.inference.network import same_bits
from torchmoji_core.processor import has_avx2

pytestmark = pytest.mark.skipif(not has_avx2(), reason="loops need AVX2")

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
needs_our_torch = pytest.mark.skipif(
    not any(fnmatch(f"torch=={torch.__version__}", line) for line in CONSTRAINTS.read_text().splitlines()),
    reason="torch of another version may round elsewhere, and then loops are not used",
)

FOLDER = compiled_loops.run.stats.cache_path
ROWS = [
    np.random.default_rng(number).integers(0, 60, length).tolist()
    for number, length in enumerate([1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 25, 31, 33, 60])
]


@pytest.fixture(params=["int8", "fp32"])
def precision(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if (reason := lacking(name)) is not None:
        pytest.skip(reason)
    return name


RunByLoops = Callable[..., bool]


@pytest.fixture
def of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of floats are by loops as well, which otherwise are where no registers have 512 bits."""
    monkeypatch.setattr("torchmoji_core.inference.compiled.has_avx512", lambda: False)


@pytest.fixture
def run_by_loops(precision: str, of_batches: None, monkeypatch: pytest.MonkeyPatch) -> RunByLoops:
    """Runs rows by themselves and in batches, and says whether loops do it; the bits are those of torch's network."""

    def run_by_loops(state: dict[str, Tensor], multi_label: bool = False) -> bool:
        engine = Engine(state, precision, multi_label)
        expected = run(engine, ROWS)  # which are too few for loops
        with monkeypatch.context() as context:
            context.setattr(module, "ROWS_WORTH_LOADING", 1)
            for row, expected_row in zip(ROWS, expected, strict=True):
                assert_rows_equal(run(engine, [row]), [expected_row])
            for copies in (1, 2, 4):  # of most lengths one row, then several; more rows than are computed at a time
                assert_rows_equal(run(engine, copies * ROWS), copies * expected)
            assert_rows_equal(run(engine, 50 * [ROWS[4]]), 50 * [expected[4]])
        return is_by_loops(engine)

    return run_by_loops


@needs_our_torch
@pytest.mark.parametrize("hidden", [3, 17, 32, 65, 256])
def test_loops_have_the_bits_of_torch(make_state: MakeState, hidden: int, run_by_loops: RunByLoops) -> None:
    assert run_by_loops(make_state(hidden=hidden, embedding=hidden + 1, classes=10))


@needs_our_torch
@pytest.mark.parametrize("embedding", [1, 2])
def test_so_they_have_where_there_is_one_channel_more_than_onednn_adds_up_at_once(
    make_state: MakeState, embedding: int, run_by_loops: RunByLoops
) -> None:
    """Which by itself it is with AVX-512: it rounds its product, and most sums that it is added to hide that."""
    assert run_by_loops(make_state(hidden=128, embedding=embedding, classes=200))


@needs_our_torch
def test_what_torch_makes_of_numbers_by_default_does_not_matter(
    make_state: MakeState, run_by_loops: RunByLoops, request: pytest.FixtureRequest
) -> None:
    state = make_state(hidden=24, classes=11)  # a size of its own: what is known of a size is kept
    request.addfinalizer(partial(torch.set_default_dtype, torch.get_default_dtype()))
    torch.set_default_dtype(torch.float64)
    assert run_by_loops(state)


def test_of_a_single_class_there_are_no_loops(
    make_state: MakeState, run_by_loops: RunByLoops, caplog: pytest.LogCaptureFixture
) -> None:
    """oneDNN has another order for it, and most probabilities hide that."""
    assert not run_by_loops(make_state(classes=1), multi_label=True)
    assert not caplog.records


@needs_our_torch
def test_so_they_have_of_an_odd_number_of_channels(make_state: MakeState, run_by_loops: RunByLoops) -> None:
    """Of which oneDNN may add the last ones by themselves."""
    assert run_by_loops(make_state(hidden=64, embedding=301, classes=10))


@needs_our_torch
@pytest.mark.parametrize("classes", [2, 10, 33])
def test_so_they_have_where_several_classes_may_apply(
    make_state: MakeState, classes: int, run_by_loops: RunByLoops
) -> None:
    assert run_by_loops(make_state(hidden=64, classes=classes), multi_label=True)


@needs_our_torch
@pytest.mark.parametrize("factor", [1e-3, 30, 1e4])
def test_so_they_have_at_the_ends_of_all_ranges(make_state: MakeState, factor: float, run_by_loops: RunByLoops) -> None:
    """Of the second, gates are all open or shut, and hidden states at their limits."""
    assert run_by_loops({name: factor * weights for name, weights in make_state(hidden=64).items()})


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_sum_overflows(make_state: MakeState, sign: int, run_by_loops: RunByLoops) -> None:
    """All weights are as large as can be, and activations too, or as small."""
    state = {name: torch.full_like(weights, sign * 10) for name, weights in make_state(hidden=64).items()}
    assert run_by_loops(state | {name: abs(state[name]) for name in state if "embed" in name or "bias" in name})


def test_weights_that_are_no_numbers_are_noticed(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_WORTH_LOADING", 1)
    bundle = load_bundle()
    weights = bundle.state["lstm_1.bias_ih_l0"].clone()
    weights[0] = float("nan")
    broken = Engine(bundle.state | {"lstm_1.bias_ih_l0": weights}, precision)
    assert broken.run([[12, 13]]).probabilities.isnan().all()


def broken(*_: object) -> None:
    raise RuntimeError("no such machine\nand more")


def damaged(*_: object) -> None:
    pickle.loads(pickle.dumps("loops")[:-3])


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/of/numba")


def wrong(
    features: object, weights: np.ndarray, batch_sizes: np.ndarray, kept: np.ndarray, output: compiled_loops.FloatWeight
) -> tuple[np.ndarray, ...]:
    shapes = len(output.bias), len(kept), len(batch_sizes)
    return tuple(np.ones([batch_sizes[0], columns], np.float32) for columns in shapes)


@pytest.mark.parametrize(
    ("conclude", "fault"),
    [
        (broken, "no such machine"),
        (damaged, f"pickle data was truncated: a file that keeps them is damaged, delete {FOLDER}"),
        (full, "No space left on device"),
        (wrong, "they round otherwise"),
    ],
)
def test_loops_that_do_not_fit_are_not_used(
    make_state: MakeState,
    conclude: Callable[..., object],
    fault: str,
    run_by_loops: RunByLoops,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torchmoji_core.inference.compiled_loops.conclude", conclude)
    with caplog.at_level(logging.WARNING, "torchmoji_core"):
        assert not run_by_loops(make_state())
    (record,) = caplog.records
    assert fault in record.message and "same results" in record.message and "\n" not in record.message


def test_without_numba_nothing_is_said(
    make_state: MakeState,
    run_by_loops: RunByLoops,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # type: ignore[arg-type]
    assert not run_by_loops(make_state())
    assert not caplog.records


@pytest.mark.parametrize(("setting", "value"), [("CPU_FEATURES", "+avx,+fma"), ("ENABLE_AVX", 0), ("DISABLE_JIT", 1)])
def test_settings_with_which_loops_cannot_run_are_named(
    make_state: MakeState,
    setting: str,
    value: object,
    run_by_loops: RunByLoops,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a processor without the loops' instructions, LLVM would end the process."""
    monkeypatch.setattr(numba.core.config, setting, value)
    assert not run_by_loops(make_state())
    (record,) = caplog.records
    assert f"NUMBA_{setting}" in record.message and "same results" in record.message


def test_without_a_folder_to_keep_them_in_there_are_loops_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "compiled_loops.py"
    shutil.copy(compiled_loops.__file__, file)
    (tmp_path / "__pycache__").touch()  # a file, in which not even root can write another
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")
    assert callable(runpy.run_path(str(file))["run"])
    (record,) = caplog.records
    assert "NUMBA_CACHE_DIR" in record.message


def is_by_loops(engine: Engine) -> bool:
    return isinstance(engine.of_few_rows, CompiledNetwork)


@needs_our_torch
def test_they_are_loaded_when_many_texts_have_come_alone(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmoji_core.inference.compiled.has_avx512", lambda: True)
    engine = Engine(make_state(), "fp32")
    for _ in range(31):
        engine.run([[12, 13]])
    engine.run([[12, 13], [14]])  # as a pipeline has them, in which a single row is a rest
    for _ in range(32):
        assert not is_by_loops(engine)
        engine.run([[12, 13]])
    assert is_by_loops(engine)


@needs_our_torch
def test_they_are_loaded_by_one_of_many_threads_when_there_are_many_batches(
    make_state: MakeState, precision: str, of_batches: None
) -> None:
    engine = Engine(make_state(), precision)
    batch = 1000 * [[12, 13], [14]]
    batch.sort(key=len, reverse=True)
    expected = engine.run(batch)
    for _ in range(8):
        engine.run(batch)
        assert not is_by_loops(engine)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(engine.run, 10 * [batch]))
    assert is_by_loops(engine)
    assert all(same_bits(result, expected) for result in results)
