"""The cache of recent results: bounded, and exact for what it holds."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmoji_core.inference.cache import ScoreCache

WIDTH = 49_900
RECORD = np.dtype((np.float32, WIDTH))  # five a megabyte


def vector(number: int) -> np.ndarray:
    return np.full(WIDTH, number, np.float32)


def keep(cache: ScoreCache, *numbers: int) -> None:
    cache.keep([bytes([number]) for number in numbers], np.stack([vector(number) for number in numbers]))


def held(cache: ScoreCache, *numbers: int) -> list[int]:
    keys, vectors = cache.find([bytes([number]) for number in numbers])
    assert vectors.shape == (len(keys), WIDTH)
    for key, found in zip(keys, vectors, strict=True):
        assert np.array_equal(found, vector(key[0]))
    return [key[0] for key in keys]


def test_the_oldest_go_first() -> None:
    cache = ScoreCache(1, RECORD)
    assert cache.capacity == 5
    keep(cache, 1, 2, 3, 4, 5)
    keep(cache, 4, 6, 7)
    assert held(cache, 1, 2, 3, 4, 5, 6, 7) == [3, 4, 5, 6, 7]
    assert len(cache) == 5


def test_records_are_not_in_memory() -> None:
    cache = ScoreCache(20, RECORD)
    tracemalloc.start()
    for number in range(100):
        keep(cache, number)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 100
    assert kept < 100_000


def test_on_a_full_disk_nothing_is_kept_and_nothing_lost(caplog: pytest.LogCaptureFixture) -> None:
    cache = ScoreCache(1, RECORD)
    keep(cache, 1, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * RECORD.itemsize, resource.RLIM_INFINITY))
    try:
        keep(cache, 3, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert held(cache, 1, 2, 3, 4) == []
    keep(cache, 5)
    assert held(cache, 5) == []
    assert "results are not kept" in caplog.text
    assert len(caplog.records) == 1


def test_more_than_fits_keeps_the_last() -> None:
    cache = ScoreCache(1, RECORD)
    keep(cache, *range(9))
    assert held(cache, *range(9)) == [4, 5, 6, 7, 8]


def test_keys_count_too() -> None:
    assert ScoreCache(1, np.dtype(np.float32)).capacity < 4_000


def test_a_forked_process_has_one_of_its_own() -> None:
    cache = ScoreCache(2, RECORD)
    keep(cache, 1)
    both = multiprocessing.get_context("fork").Barrier(2)

    def work() -> None:
        assert held(cache, 1) == []  # what the parent has is not known here
        keep(cache, 2)
        both.wait(60)
        both.wait(60)
        assert held(cache, 2) == [2]

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    both.wait(60)
    keep(cache, 3)
    assert held(cache, 1, 2, 3) == [1, 3]
    both.wait(60)
    child.join()
    assert child.exitcode == 0
    assert held(cache, 1, 2, 3) == [1, 3]


def test_the_file_is_closed_with_the_cache() -> None:
    cache = ScoreCache(1, RECORD)
    keep(cache, 1)
    gc.collect()  # what other tests have left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del cache
        gc.collect()
    assert not [warning for warning in caught if "FileIO" in str(warning.message)]


def test_nothing_found_in_an_empty_one() -> None:
    assert held(ScoreCache(1, RECORD), 1, 2) == []


def test_a_vector_larger_than_the_bound_is_kept_alone() -> None:
    cache = ScoreCache(1, np.dtype((np.float32, 1_000_000)))
    assert cache.capacity == 1


def test_what_is_found_is_a_copy() -> None:
    cache = ScoreCache(1, RECORD)
    keep(cache, 1)
    cache.find([b"\x01"])[1][:] = 9
    assert held(cache, 1) == [1]


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True)), max_size=20)
)
def test_what_is_found_is_what_was_kept(steps: list[tuple[bool, list[int]]]) -> None:
    cache = ScoreCache(1, RECORD)
    for keeping, numbers in steps:
        if keeping:
            before = held(cache, *range(13))
            keep(cache, *numbers)
            new = [number for number in numbers if number not in before]
            assert set(new[-5:]) <= set(held(cache, *range(13)))
        else:
            held(cache, *numbers)
        assert len(cache) <= 5


@pytest.mark.parametrize("threads", [4])
def test_threads_may_share_one(threads: int) -> None:
    cache = ScoreCache(1, RECORD)

    def work(number: int) -> None:
        for step in range(30):
            keep(cache, (number + step) % 13)
            held(cache, *range(13))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert len(cache) == 5
