"""A text by itself: compiled loops have the bits that the text has in a batch, and are not needed."""

from __future__ import annotations

import errno
import logging
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest
from torch import Tensor

from tests.core.test_engine import MakeState, assert_rows_equal, run
from tests.processors import lacking
from torchmoji_core.bundle import load_bundle
from torchmoji_core.inference import engine as module
from torchmoji_core.inference import one_row_loops
from torchmoji_core.inference.engine import Engine
from torchmoji_core.inference.one_row_network import OneRowNetwork
from torchmoji_core.processor import has_avx2

pytestmark = pytest.mark.skipif(not has_avx2(), reason="loops need AVX2")

ROWS = [
    np.random.default_rng(number).integers(0, 60, length).tolist()
    for number, length in enumerate([1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 25, 31, 33, 60])
]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops for the first row already."""
    monkeypatch.setattr(module, "ROWS_WORTH_LOADING", 1)


@pytest.fixture(params=["int8", "fp32"])
def precision(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if (reason := lacking(name)) is not None:
        pytest.skip(reason)
    return name


def by_themselves(state: dict[str, Tensor], precision: str, loops: bool = True, multi_label: bool = False) -> Engine:
    """An engine whose rows by themselves are as they are in a batch."""
    engine = Engine(state, precision, multi_label)
    together = run(engine, ROWS)
    assert_rows_equal([run(engine, [row])[0] for row in ROWS], together)
    assert isinstance(engine.of_one_row, OneRowNetwork) == loops
    return engine


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("hidden", [3, 17, 32, 65, 256])
def test_the_bits_are_those_of_a_batch(make_state: MakeState, hidden: int, precision: str) -> None:
    by_themselves(make_state(hidden=hidden, embedding=hidden + 1, classes=10), precision)


@pytest.mark.usefixtures("at_once")
def test_so_they_are_of_an_odd_number_of_channels(make_state: MakeState, precision: str) -> None:
    """Of which oneDNN may add the last ones by themselves."""
    by_themselves(make_state(hidden=64, embedding=301, classes=10), precision)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("classes", [2, 10, 33])
def test_so_they_are_where_several_classes_may_apply(make_state: MakeState, classes: int, precision: str) -> None:
    by_themselves(make_state(hidden=64, classes=classes), precision, multi_label=True)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("factor", [1e-3, 30, 1e4])
def test_so_they_are_at_the_ends_of_all_ranges(make_state: MakeState, factor: float, precision: str) -> None:
    """Of the second, gates are all open or shut, and hidden states at their limits."""
    by_themselves({name: factor * weights for name, weights in make_state(hidden=64).items()}, precision)


@pytest.mark.usefixtures("at_once")
def test_weights_that_are_no_numbers_are_noticed(precision: str) -> None:
    bundle = load_bundle()
    weights = bundle.state["lstm_1.bias_ih_l0"].clone()
    weights[0] = float("nan")
    broken = Engine(bundle.state | {"lstm_1.bias_ih_l0": weights}, precision)
    assert broken.run([[12, 13]]).probabilities.isnan().all()


def broken(*_: object) -> None:
    raise RuntimeError("no such machine\nand more")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/of/numba")


def wrong(
    features: object, weights: object, kept: np.ndarray, output: one_row_loops.FloatWeight
) -> tuple[np.ndarray, np.ndarray]:
    return np.ones([1, len(output.bias)], np.float32), np.ones([1, len(kept)], np.float32)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("conclude", "fault"),
    [(broken, "no such machine"), (full, "No space left on device"), (wrong, "they round otherwise")],
)
def test_loops_that_do_not_fit_are_not_used(
    make_state: MakeState,
    conclude: Callable[..., object],
    fault: str,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torchmoji_core.inference.one_row_loops.conclude", conclude)
    with caplog.at_level(logging.WARNING, "torchmoji_core"):
        by_themselves(make_state(), precision, loops=False)
    (record,) = caplog.records
    assert fault in record.message and "same results" in record.message and "\n" not in record.message


@pytest.mark.usefixtures("at_once")
def test_without_numba_nothing_is_said(
    make_state: MakeState, precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # type: ignore[arg-type]
    by_themselves(make_state(), precision, loops=False)
    assert not caplog.records


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("setting", "value"), [("CPU_NAME", "generic"), ("CPU_FEATURES", "")])
def test_loops_are_for_no_other_processor(
    make_state: MakeState,
    setting: str,
    value: str,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LLVM would end the process."""
    monkeypatch.setattr(numba.core.config, setting, value)
    by_themselves(make_state(), precision, loops=False)
    (record,) = caplog.records
    assert f"NUMBA_{setting}" in record.message and "same results" in record.message


def test_without_a_folder_to_keep_them_in_there_are_loops_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "one_row_loops.py"
    shutil.copy(one_row_loops.__file__, file)
    (tmp_path / "__pycache__").touch()  # a file, in which not even root can write another
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")
    assert callable(runpy.run_path(str(file))["run"])
    (record,) = caplog.records
    assert "NUMBA_CACHE_DIR" in record.message


def test_they_are_loaded_when_many_texts_have_come_alone(make_state: MakeState, precision: str) -> None:
    engine = Engine(make_state(), precision)
    for _ in range(module.ROWS_WORTH_LOADING - 1):
        engine.run([[12, 13]])
    engine.run([[12, 13], [14]])  # as a pipeline has them, in which a single row is a rest
    for _ in range(module.ROWS_WORTH_LOADING):
        assert not isinstance(engine.of_one_row, OneRowNetwork)
        engine.run([[12, 13]])
    assert isinstance(engine.of_one_row, OneRowNetwork)
