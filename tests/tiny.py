"""Models and checkpoints small enough to be made by each test run."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from torchmoji_core.bundle import Bundle
from torchmoji_core.bundle_files import CONFIG, WEIGHTS
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

SMALL = Dimensions(vocabulary=60, embedding=6, hidden=4, classes=64)
State = dict[str, Tensor]


def make_state(dimensions: Dimensions = SMALL, seed: int = 1) -> State:
    torch.manual_seed(seed)
    model = TorchMoji(dimensions)
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
    return Bundle("tiny", DEEPMOJI_EMOJIS, vocabulary, model.state_dict())


def forge_weights(directory: Path, changes: Mapping[str, Tensor]) -> None:
    """Put other weights into a bundle, with their digest, as no `Bundle` would be saved."""
    path = directory / WEIGHTS
    content = safetensors.torch.save({**safetensors.torch.load(path.read_bytes()), **changes})
    path.write_bytes(content)
    config = json.loads((directory / CONFIG).read_text())
    config["sha256"][WEIGHTS] = hashlib.sha256(content).hexdigest()
    (directory / CONFIG).write_text(json.dumps(config))


HUGE = {"lstm_0.weight_ih_l0": 3e38, "lstm_0.weight_hh_l0": -3e38, "attention_layer.attention_vector": 3e38}
"""Weights that are numbers, and whose scores are none."""


def with_huge_weights(bundle: Bundle) -> dict[str, Tensor]:
    return {**bundle.state, **{name: torch.full_like(bundle.state[name], value) for name, value in HUGE.items()}}
