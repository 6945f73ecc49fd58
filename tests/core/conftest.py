"""Small random models, and the golden files where they are at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from torchmoji_core.bundle import Bundle
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

COMMON_WORDS = [
    "the", "i", "you", "a", "to", "and", "it", "is", "this", "that", "my", "me", "of", "love", "good", "happy", "sad",
    "so", "soo", "not", "no", "don't", "i'm", "day", "night", "home", "cat", "dog", "rain", "sun", "#monday", "#sun",
    ":)", ":(", ";)", "<3", "!", "!!", ".", "..", ",", "?", "'", '"', "-", ":",
]  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order; and on a busy machine two threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden files and data, which is not part of the repository."""
    path = Path(__file__).parents[2].parent / "shared"
    if not path.is_dir():
        pytest.skip("the golden files of ../shared are not here")
    return path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary((*SPECIAL_TOKENS, *COMMON_WORDS))


@pytest.fixture(scope="session")
def make_state() -> Callable[..., dict[str, Tensor]]:
    """Random weights: Keras' starting values plus noise, so that no bias is zero and some gates saturate."""

    def make(
        vocabulary: int = 60, embedding: int = 6, hidden: int = 5, classes: int = 64, seed: int = 1
    ) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = TorchMoji(Dimensions(vocabulary, embedding, hidden, classes))
        return {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}

    return make


@pytest.fixture(scope="session")
def make_bundle(vocabulary: Vocabulary, make_state: Callable[..., dict[str, Tensor]]) -> Callable[..., Bundle]:
    def make(classes: int = 64, seed: int = 1, maxlen: int = 30, **sizes: int) -> Bundle:
        return Bundle(
            name="small",
            classes=DEEPMOJI_EMOJIS if classes == 64 else tuple(f"class {index}" for index in range(classes)),
            vocabulary=vocabulary,
            state=make_state(len(vocabulary), classes=classes, seed=seed, **sizes),
            maxlen=maxlen,
            provenance={"made": "for the tests"},
            card="# Small\n",
        )

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


class GoldenModel(NamedTuple):
    """A full-size model and what torchMoji's own forward pass gives with it."""

    state: dict[str, Tensor]
    rows: list[list[int]]
    probabilities: np.ndarray
    embedding: np.ndarray
    attention: np.ndarray


@pytest.fixture(scope="session")
def golden_model(shared: Path) -> Iterator[GoldenModel]:
    spec = importlib.util.spec_from_file_location("reference_weights", shared / "golden" / "make_reference_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.load(shared / "golden" / "model_reference.npz") as file:
        rows = [row[:length].tolist() for row, length in zip(file["ids"], file["lengths"], strict=True)]
        golden = GoldenModel(module.state_dict(), rows, file["probabilities"], file["embedding"], file["attention"])
    yield golden
    golden.state.clear()  # 90 MB


@pytest.fixture
def directory(bundle: Bundle, tmp_path: Path) -> Path:
    """A saved bundle, free to be spoilt."""
    bundle.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def archive(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle as a .zip."""
    path = tmp_path_factory.mktemp("archive") / "saved.zip"
    bundle.save(path)
    return path.read_bytes()
