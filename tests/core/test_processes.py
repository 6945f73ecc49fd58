"""A bundle is used in other processes: forked, spawned, of a data loader; with a time limit, since threads that are not
there would be waited for for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from torchmoji_core import Bundle, load_bundle

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
