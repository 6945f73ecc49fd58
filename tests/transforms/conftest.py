"""A small random model, made-up posts, and pipelines on Beam's in-process runners whose outputs come back as lists."""

from __future__ import annotations

import pickle
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.runs.runners import OptionsReadOnce
from tests.tiny import tiny_bundle
from torchmoji_core.bundle import Bundle
from transforms import ReadTweets, metrics
from transforms.annotate_files import AnnotateFiles

WORDS = [
    "i",
    "you",
    "he",
    "she",
    "it",
    "we",
    "they",
    "me",
    "my",
    "your",
    "this",
    "that",
    "the",
    "a",
    "an",
    "is",
    "was",
    "are",
    "be",
    "have",
    "had",
    "do",
    "did",
    "not",
    "no",
    "yes",
    "so",
    "very",
    "too",
    "really",
    "just",
    "still",
    "never",
    "always",
    "today",
    "tonight",
    "tomorrow",
    "morning",
    "night",
    "week",
    "day",
    "time",
    "love",
    "hate",
    "like",
    "want",
    "need",
    "miss",
    "know",
    "think",
    "feel",
    "see",
    "hear",
    "go",
    "come",
    "back",
    "home",
    "work",
    "school",
    "bus",
    "train",
    "rain",
    "sun",
    "snow",
    "coffee",
    "tea",
    "bread",
    "cake",
    "dog",
    "cat",
    "friend",
    "mother",
    "song",
    "game",
    "film",
    "book",
    "phone",
    "happy",
    "sad",
    "tired",
    "angry",
    "bored",
    "excited",
    "hungry",
    "sick",
    "late",
    "early",
    "good",
    "bad",
    "best",
    "worst",
    "great",
    "awful",
    "funny",
    "cold",
    "warm",
    "new",
    "old",
    "why",
    "what",
    "when",
    "who",
    "how",
    "and",
    "but",
    "or",
    "because",
    "of",
    "to",
    "in",
    "on",
    "at",
    "for",
    "with",
    ".",
    ",",
    "!",
    "?",
]

Build = Callable[[beam.Pipeline], Mapping[str, beam.PCollection[Any]]]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return tiny_bundle(WORDS, seed=20)


@pytest.fixture(scope="session")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the bundle is."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    bundle.save(path)
    return str(path)


def make_texts(n: int, seed: int = 0) -> list[str]:
    """Different texts of 1 to 45 words, some of them unknown: longer than the model reads, too."""
    generator = random.Random(seed)
    words = [*WORDS, "zyxwv", "☕"]
    return [" ".join([f"{index:04}", *generator.choices(words, k=generator.randrange(45))]) for index in range(n)]


@dataclass(frozen=True)
class Ran:
    """What a finished pipeline gave."""

    outputs: dict[str, list[Any]]
    counters: dict[str, int]
    """Of our namespace, summed over steps."""
    distributions: dict[str, Any]

    def __getitem__(self, name: str) -> list[Any]:
        return self.outputs[name]

    def count(self, name: str) -> int:
        return self.counters.get(name, 0)


def keep(element: Any, directory: str) -> None:
    """Store an element where the test finds it, whichever process this runs in."""
    Path(directory, uuid.uuid4().hex).write_bytes(pickle.dumps(element))


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs what a function builds; its named outputs come back as lists, in no order."""

    def run_pipeline(build: Build, streaming: bool = False) -> Ran:
        directory = tmp_path_factory.mktemp("outputs")
        runner = BundleBasedDirectRunner() if streaming else FnApiRunner()
        options = OptionsReadOnce(["--streaming"] if streaming else [])
        pipeline = beam.Pipeline(runner=runner, options=options)
        outputs = dict(build(pipeline))
        for name, collection in outputs.items():
            (directory / name).mkdir()
            collection | f"Keep {name}" >> beam.Map(keep, str(directory / name))
        result = pipeline.run()
        result.wait_until_finish()
        found = result.metrics().query()
        counters: dict[str, int] = {}
        for counter in found["counters"]:
            if counter.key.metric.namespace == metrics.NAMESPACE:
                name = counter.key.metric.name
                counters[name] = counters.get(name, 0) + counter.result
        return Ran(
            {name: [pickle.loads(path.read_bytes()) for path in (directory / name).iterdir()] for name in outputs},
            counters,
            {metric.key.metric.name: metric.result for metric in found["distributions"]},
        )

    return run_pipeline


def functions_of(transform: beam.Pipeline | beam.PTransform, *steps: str) -> list[Any]:
    """The functions that Beam calls in some steps of a pipeline, or of a transform that is applied nowhere else."""
    pipeline = transform
    if isinstance(transform, beam.PTransform):
        pipeline = beam.Pipeline()
        _ = (pipeline if isinstance(transform, ReadTweets | AnnotateFiles) else pipeline | beam.Create([])) | transform
    found: dict[str, Any] = {}

    class Visitor(PipelineVisitor):
        def visit_transform(self, transform_node: Any) -> None:
            if isinstance(transform_node.transform, beam.ParDo):
                found.update(dict.fromkeys(transform_node.full_label.split("/"), transform_node.transform.fn))

    pipeline.visit(Visitor())
    return [found[step] for step in steps]


def assert_scores(
    rows: list[dict[str, Any]],
    texts: Mapping[str, str],
    bundle: Bundle,
    outputs: Sequence[str],
    embedding_type: str = "float32",
    top_k: int = 5,
    precision: str = "auto",
) -> None:
    """Rows of output, in any order, are what the bundle itself gives for the texts by their ids."""
    assert sorted(row["id"] for row in rows) == sorted(texts)
    scores = bundle.score([texts[row["id"]] for row in rows], precision)
    for index, (row, top) in enumerate(zip(rows, scores.top(top_k), strict=True)):
        text, n_tokens = texts[row["id"]], int(scores.n_tokens[index])
        assert row["n_tokens"] == n_tokens
        assert row["n_unknown"] == scores.n_unknown[index]
        assert row["truncated"] == scores.truncated[index]
        assert row["status"] == ("scored" if n_tokens else "empty")
        found: dict[str, Any] = {name: row.get(name) for name in ("probabilities", "embedding", "attention")}
        if "text" in outputs:
            assert row["text"] == text
        if "fingerprint" in outputs:
            assert row["fingerprint"] == bundle.fingerprint
        if n_tokens == 0:
            assert all(value is None for value in (*found.values(), row.get("top_emojis")))
            continue
        if "top" in outputs:
            assert [item["emoji"] for item in row["top_emojis"]] == [label for label, _ in top]
            probabilities = [item["probability"] for item in row["top_emojis"]]
            np.testing.assert_allclose(probabilities, [value for _, value in top], rtol=0, atol=1e-5)
        if "probabilities" in outputs:
            np.testing.assert_allclose(found["probabilities"], scores.probabilities[index], rtol=0, atol=1e-5)
        if "embedding" in outputs:
            tolerance = 1.3e-4 if embedding_type == "float32" else 2.6e-4
            np.testing.assert_allclose(found["embedding"], scores.embedding[index], rtol=0, atol=tolerance)
        if "attention" in outputs:
            tokens = bundle.tokenizer.tokens(text, bundle.maxlen)
            assert [item["token"] for item in found["attention"]] == tokens
            weights = [item["weight"] for item in found["attention"]]
            np.testing.assert_allclose(weights, scores.attention[index, :n_tokens], rtol=0, atol=1e-5)
