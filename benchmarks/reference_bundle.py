"""A bundle of the published size with reproducible random weights, to measure what does not depend on values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.vocabulary import Vocabulary

PUBLISHED = Dimensions(vocabulary=50_000, embedding=256, hidden=512, classes=64)


def save_reference_bundle(path: Path, seed: int = 20171004) -> None:
    """Write the bundle as a directory; values are normal, with the spread of a trained model's."""
    generator = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in TorchMoji(PUBLISHED).state_dict().items()}
    spread = {"embed": 0.5, "weight": 0.12, "bias": 0.3, "attention": 0.1, "output": 0.1}
    state = {}
    for name, shape in shapes.items():
        kind = next(key for key in ("embed", "attention", "output", "weight", "bias") if key in name)
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(spread[kind])
        state[name] = torch.from_numpy(values)
    Bundle("reference", DEEPMOJI_EMOJIS, _vocabulary(), state).save(path)


def _vocabulary() -> Vocabulary:
    """The bundled model's, filled up to the published size with entries that no text contains."""
    tokens = load_bundle().vocabulary.tokens
    return Vocabulary((*tokens, *(f"filler {number}" for number in range(PUBLISHED.vocabulary - len(tokens)))))
