"""TorchMojiModelHandler in anybody's RunInference: strings in, predictions out, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference

from tests.tiny import tiny_bundle
from tests.transforms.conftest import WORDS, Run, make_texts
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import Scores
from transforms import metrics
from transforms.records import Tweet
from transforms.scoring.model_handler import TorchMojiModelHandler
from transforms.scoring.tokenize import tokenize

TEXTS = [*make_texts(60), "", "  ", "xyzzy"]


def assert_predicted(results: list[PredictionResult], scores: Scores, top_k: int = 5) -> None:
    """Results are the scores, row by row."""
    for index, (result, top) in enumerate(zip(results, scores.top(top_k), strict=True)):
        assert [label for label, _ in result.inference["top"]] == [label for label, _ in top]
        np.testing.assert_allclose([p for _, p in result.inference["top"]], [p for _, p in top], rtol=0, atol=1e-5)
        for name in ("probabilities", "embedding"):
            np.testing.assert_allclose(result.inference[name], getattr(scores, name)[index], rtol=0, atol=1e-5)


def infer(run: Run, elements: list[Any], handler: Any) -> Any:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"results": pipeline | beam.Create(elements) | RunInference(handler)}

    return run(build)


def test_strings_in_a_stock_run_inference(run: Run, bundle: Bundle, model: str) -> None:
    ran = infer(run, TEXTS, TorchMojiModelHandler(model, min_batch_size=4, max_batch_size=16))
    results = sorted(ran["results"], key=lambda result: TEXTS.index(result.example))
    assert [result.example for result in results] == TEXTS
    assert {result.model_id for result in results} == {bundle.fingerprint}
    assert all(isinstance(result, PredictionResult) for result in results)
    assert_predicted(results, bundle.score(TEXTS))
    assert ran.count("num_inferences") == len(TEXTS)
    sizes = ran.distributions["inference_request_batch_size"]
    assert (sizes.sum, sizes.max) == (len(TEXTS), 16)
    assert ran.distributions["inference_request_batch_byte_size"].sum == sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", ["strings", "tweets", "tokenized", "mixed"])
def test_results_are_in_order(kind: str, bundle: Bundle, model: str) -> None:
    tweets = [Tweet(str(index), text) for index, text in enumerate(TEXTS)]
    tokenized = [tokenize(tweet, bundle.tokenizer, bundle.maxlen) for tweet in tweets]
    kinds: list[list[Any]] = [TEXTS, tweets, tokenized]
    examples = {
        "strings": kinds[0],
        "tweets": kinds[1],
        "tokenized": kinds[2],
        "mixed": [kinds[index % 3][index] for index in range(len(TEXTS))],
    }[kind]
    handler = TorchMojiModelHandler(model, top_k=3)
    results = list(handler.run_inference(examples, handler.load_model()))
    assert [result.example for result in results] == examples
    assert_predicted(results, bundle.score(TEXTS), top_k=3)
    assert handler.get_num_bytes(examples) > 0


def test_a_text_without_tokens(bundle: Bundle, model: str) -> None:
    handler = TorchMojiModelHandler(model)
    empty, full = handler.run_inference(["", "i love rain"], handler.load_model())
    assert empty.inference["top"] == []
    assert np.isnan(empty.inference["probabilities"]).all()
    assert np.isnan(empty.inference["embedding"]).all()
    assert len(full.inference["top"]) == 5
    assert full.inference["embedding"].shape == (bundle.dimensions.channels,)


def test_keys_are_kept(run: Run, bundle: Bundle, model: str) -> None:
    keyed = [(f"key-{index}", text) for index, text in enumerate(TEXTS)]
    ran = infer(run, keyed, KeyedModelHandler(TorchMojiModelHandler(model)))
    results = dict(ran["results"])
    assert results.keys() == dict(keyed).keys()
    assert_predicted([results[key] for key, _ in keyed], bundle.score(TEXTS))
    assert all(results[key].example == text for key, text in keyed)


def test_results_do_not_depend_on_batches(run: Run, model: str) -> None:
    one = infer(run, TEXTS, TorchMojiModelHandler(model, min_batch_size=1, max_batch_size=1))
    all_at_once = infer(run, TEXTS, TorchMojiModelHandler(model, min_batch_size=500, max_batch_size=500))
    by_text = {result.example: result.inference["probabilities"] for result in one["results"]}
    for result in all_at_once["results"]:
        np.testing.assert_array_equal(result.inference["probabilities"], by_text[result.example])


def test_the_model_can_be_swapped(bundle: Bundle, model: str, tmp_path: Path) -> None:
    other = Bundle("other", bundle.classes, bundle.vocabulary, bundle.state, maxlen=5)
    other.save(tmp_path / "other")
    handler = TorchMojiModelHandler(model)
    handler.update_model_path(str(tmp_path / "other"))
    (result,) = handler.run_inference(["i love rain"], handler.load_model())
    assert result.model_id == other.fingerprint != bundle.fingerprint


def test_a_swapped_model_reads_texts_with_its_own_tokens(bundle: Bundle, model: str, tmp_path: Path) -> None:
    """Ids of a TokenizedTweet are those of the first model."""
    other = tiny_bundle(WORDS[::-1], seed=4)
    other.save(tmp_path / "other")
    handler = TorchMojiModelHandler(model)
    examples = ["i love rain", Tweet("1", "i love rain"), tokenize(Tweet("1", "i love rain"), bundle.tokenizer, 30)]
    handler.update_model_path(str(tmp_path / "other"))
    expected = other.score(["i love rain"]).probabilities[0]
    for result in handler.run_inference(examples, handler.load_model()):
        np.testing.assert_array_equal(result.inference["probabilities"], expected)


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(bundle: Bundle, model: str, tmp_path: Path) -> None:
    """RunInference would take it for loaded if this raised."""
    handler = TorchMojiModelHandler(model)
    first = handler.load_model()
    handler.update_model_path(str(tmp_path / "no-such-bundle"))
    assert handler.load_model() is first
    assert first.scorer.fingerprint == bundle.fingerprint


def test_settings_for_beam() -> None:
    handler = TorchMojiModelHandler("unused", min_batch_size=3, max_batch_size=5)
    assert handler.batch_elements_kwargs() == {"min_batch_size": 3, "max_batch_size": 5}
    assert handler.get_metrics_namespace() == metrics.NAMESPACE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_batch_size": 0}, "batch sizes"),
        ({"min_batch_size": 9, "max_batch_size": 8}, "batch sizes"),
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"top_k": 0}, "top_k"),
        ({"threads": -1}, "threads"),
    ],
    ids=str,
)
def test_settings_are_checked_when_the_handler_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TorchMojiModelHandler("unused", **arguments)
