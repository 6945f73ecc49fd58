"""What decides the outcome of a training beside its data. Imports no torch, so that command lines know it at once."""

from __future__ import annotations

from dataclasses import dataclass

from torchmoji_core.errors import InputError


@dataclass(frozen=True)
class PretrainingOptions:
    """Everything that decides the outcome, beside the data."""

    epochs: float = 5.0
    batch_size: int = 256
    learning_rate: float = 2e-3
    """Peak of a schedule that rises linearly over the first 200 steps and falls to zero along a cosine."""
    embedding_dropout: float = 0.1
    output_dropout: float = 0.5
    word_dropout: float = 0.1
    """Probability of reading a token as unknown, in training."""
    embedding_l2: float = 1e-6
    gradient_norm: float = 1.0
    min_count: int = 2
    """Tokens rarer than this in the training texts share the embedding of the unknown token."""
    averaging: float = 0.999
    """Decay per step of the exponential moving average of the weights that becomes the model."""
    seed: int = 1
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("embedding_dropout", "output_dropout", "word_dropout", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name in ("epochs", "batch_size", "learning_rate", "gradient_norm", "checkpoint_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
