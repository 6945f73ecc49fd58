"""A bundle is used in other processes: forked, spawned, of a data loader; with a time limit, since threads that are not
there would be waited for for ever."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tests.core.bundles import assert_same
from torchmoji_core import ArrowScorer, Bundle, load_bundle
from torchmoji_core.bundle_files import CONFIG

SECONDS = 120
TEXTS = [f"I love my {animal}{mark}" for animal in ("cat", "dog", "so", "sad") for mark in ["", "!", "?"]] * 3
PARENTS = ["loaded", "scored"]


@pytest.fixture(params=PARENTS)
def used(request: pytest.FixtureRequest, make_bundle: Callable[..., Bundle]) -> Iterator[Bundle]:
    """A bundle whose process has run torch in two threads, and has scored with it or not."""
    bundle = make_bundle()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1_000_000).tanh()
    if request.param == "scored":
        bundle.score(TEXTS)
    yield bundle
    torch.set_num_threads(before)


def probabilities_of(bundle: Bundle) -> NDArray[np.float32]:
    return bundle.score(TEXTS).probabilities


def load_and_score(_: object) -> int:
    return len(load_bundle().score(TEXTS))


def call(method: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """What a function gives in a process started by a method, within the time limit."""
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply_async(function, (argument,)).get(SECONDS)


_inherited: list[Bundle] = []


def score_inherited(index: int) -> NDArray[np.float32]:
    return probabilities_of(_inherited[index])


def test_a_forked_process_scores_with_what_it_inherits(used: Bundle) -> None:
    _inherited.append(used)
    found = call("fork", score_inherited, len(_inherited) - 1)
    np.testing.assert_array_equal(found, probabilities_of(used))


def test_a_forked_process_loads_a_model_of_full_width(used: Bundle) -> None:
    """Its tensors are large enough for torch to share operations out to threads."""
    assert call("fork", load_and_score, None) == len(TEXTS)


def test_a_forked_process_forks_again_and_ends(used: Bundle) -> None:
    """By `os.fork`, without what multiprocessing does at the end of a process."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(SECONDS)
            probabilities_of(used)
            grandchild = os.fork()
            probabilities_of(used)
            status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) if grandchild else 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(used.score(TEXTS)) == len(TEXTS)  # the parent's own threads are still there


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_bundle_is_sent_to_other_processes(used: Bundle, method: str) -> None:
    np.testing.assert_array_equal(call(method, probabilities_of, used), probabilities_of(used))


COPIES: dict[str, Callable[[Bundle], Bundle]] = {
    **{
        f"pickle {protocol}": lambda bundle, protocol=protocol: pickle.loads(pickle.dumps(bundle, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    # The one written in Python, of which joblib derives its own.
    "pickle in Python": lambda bundle: pickle._loads(pickle._dumps(bundle)),  # type: ignore[attr-defined]
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_the_same_model(used: Bundle, how: str) -> None:
    copied = COPIES[how](used)
    assert_same(copied, used)
    assert_same(COPIES[how](copied), used)  # once more, when the copy has scored
    assert copied.tokenizer is not used.tokenizer


def test_a_copy_takes_no_more_than_the_model(make_bundle: Callable[..., Bundle]) -> None:
    """No cache, no files, nothing of the scorers goes with it."""
    bundle = make_bundle()
    size = len(pickle.dumps(bundle))
    bundle.score(TEXTS)
    assert bundle.fingerprint
    assert len(pickle.dumps(bundle)) <= size + 100


def test_a_copy_keeps_the_fingerprint_of_its_files(directory: Path) -> None:
    """Which are not those that it would be saved as, if another version wrote them."""
    config = directory / CONFIG
    config.write_text(config.read_text() + "\n")
    bundle = load_bundle(directory)
    assert pickle.loads(pickle.dumps(bundle)).fingerprint == copy.deepcopy(bundle).fingerprint == bundle.fingerprint


def test_a_tokenizer_can_be_pickled(bundle: Bundle) -> None:
    assert bundle.tokenizer.ids(TEXTS[0]) == pickle.loads(pickle.dumps(bundle.tokenizer)).ids(TEXTS[0])


def test_a_scorer_says_what_to_pickle_instead(bundle: Bundle) -> None:
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"pickle or copy its bundle, and call bundle\.scorer\(\)"):
            way(bundle.scorer())


class Scored(Dataset[NDArray[np.float32]]):
    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return self._bundle.score([TEXTS[index]]).probabilities[0]


def test_workers_of_a_data_loader_score(used: Bundle) -> None:
    loader = DataLoader(Scored(used), 5, num_workers=2, timeout=SECONDS, multiprocessing_context="fork")
    np.testing.assert_allclose(torch.cat(list(loader)), probabilities_of(used), rtol=0, atol=1e-5)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """An error where this process would wait for ever for others, which are not ours to start."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_processes_of_datasets_score(used: Bundle) -> None:
    datasets = pytest.importorskip("datasets")

    def score(rows: dict[str, Any]) -> dict[str, Any]:
        return {"probabilities": used.score(rows["text"]).probabilities}

    with time_limit():
        scored = datasets.Dataset.from_dict({"text": TEXTS}).map(score, batched=True, num_proc=2)
    np.testing.assert_allclose(scored["probabilities"][:], probabilities_of(used), rtol=0, atol=1e-5)


def test_processes_of_datasets_use_a_scorer(directory: Path) -> None:
    datasets = pytest.importorskip("datasets")
    scorer, table = ArrowScorer(model=directory), datasets.Dataset.from_dict({"text": TEXTS}).with_format("arrow")
    here = scorer(table[:])
    with time_limit():
        assert table.map(scorer, batched=True, num_proc=2)[:].equals(here)
