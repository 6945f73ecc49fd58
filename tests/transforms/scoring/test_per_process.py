"""PerProcess: one value for all copies in a process, as long as one of them is there."""

from __future__ import annotations

import gc
import pickle
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing import test_stream

from tests.transforms.conftest import Run
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.vocabulary import Vocabulary
from transforms import AnnotateTweets, Tweet
from transforms.scoring.per_process import PerProcess


def test_copies_have_one_value() -> None:
    place: PerProcess[list[int]] = PerProcess()
    copy = pickle.loads(pickle.dumps(place))
    value = copy.get(lambda: [1])
    assert place.get(lambda: [2]) is value
    assert PerProcess[list[int]]().get(lambda: [2]) == [2]


def test_the_value_goes_with_the_last_copy() -> None:
    class Value:
        pass

    place: PerProcess[Value] = PerProcess()
    pickled = pickle.dumps(place)
    value = weakref.ref(place.get(Value))
    copy = pickle.loads(pickled)
    del place
    gc.collect()
    assert value() is not None
    del copy
    gc.collect()
    assert value() is None
    later = pickle.loads(pickled)
    assert later.get(lambda: "another process") == "another process"
    is_there = weakref.ref(later)
    del later
    gc.collect()
    assert is_there() is None, "nothing but the copies keeps the place"


def test_threads_wait_for_the_first() -> None:
    place: PerProcess[object] = PerProcess()
    made: list[object] = []
    found: list[object] = []

    def make() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    threads = [threading.Thread(target=lambda: found.append(place.get(make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == made * 8


def test_a_value_that_could_not_be_made_is_tried_again() -> None:
    place: PerProcess[int] = PerProcess()
    with pytest.raises(ZeroDivisionError):
        place.get(lambda: 1 // 0)
    assert place.get(lambda: 1) == 1


def test_a_stream_loads_its_model_once(run: Run, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beam's local streaming runner makes the steps anew for every bundle; it must not read the model every time."""
    loaded = {"models": 0, "vocabularies": 0}
    make_scorer, read_vocabulary = Scorer.__init__, Vocabulary.from_json

    def count_scorer(scorer: Scorer, *arguments: Any) -> None:
        loaded["models"] += 1
        make_scorer(scorer, *arguments)

    def count_vocabulary(*arguments: Any) -> Vocabulary:
        loaded["vocabularies"] += 1
        return read_vocabulary(*arguments)

    monkeypatch.setattr(Scorer, "__init__", count_scorer)
    monkeypatch.setattr(Vocabulary, "from_json", count_vocabulary)
    stream = test_stream.TestStream()
    for index in range(10):
        stream.add_elements([Tweet(str(index), "love")])
    stream.advance_watermark_to_infinity()

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"batches": (pipeline | stream | AnnotateTweets(model)).results}

    assert len(run(build, streaming=True)["batches"]) == 10
    assert loaded == {"models": 1, "vocabularies": 2}  # one to tokenize with, one in the model
