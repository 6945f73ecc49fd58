"""Models and checkpoints small enough to be made by each test run."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from torchmoji_core.bundle import Bundle
from torchmoji_core.initialization import initialize_like_keras
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

SMALL = Dimensions(vocabulary=60, embedding=6, hidden=4, classes=64)
State = dict[str, Tensor]


def make_state(dimensions: Dimensions = SMALL, seed: int = 1) -> State:
    torch.manual_seed(seed)
    model = TorchMoji(dimensions)
    initialize_like_keras(model)
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def torch_file(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def tiny_bundle(words: Sequence[str], seed: int, embedding: int = 6, hidden: int = 4) -> Bundle:
    """DeepMoji's classes, and random weights large enough that no two texts score alike."""
    vocabulary = Vocabulary([*SPECIAL_TOKENS, *words])
    torch.manual_seed(seed)
    model = TorchMoji(Dimensions(vocabulary=len(vocabulary), embedding=embedding, hidden=hidden, classes=64))
    initialize_like_keras(model)
    return Bundle("tiny", DEEPMOJI_EMOJIS, vocabulary, model.state_dict())
