"""What decides the outcome of a training beside its data. Imports no torch, so that command lines know it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchmoji_core.errors import InputError

TRAINING_PRECISIONS = ("auto", "fp32", "bf16")
"""Of the products; weights and everything elementwise are float32. auto is bf16 where the processor has it."""

METHODS = ("new", "last", "full", "chain-thaw")
"""How a classifier is made of a model: `new` starts all layers at random; `last` trains a new output layer alone;
`full` trains all layers; `chain-thaw` trains the output layer, then each other layer alone, then all."""


@dataclass(frozen=True)
class PretrainingOptions:
    """Everything that decides the outcome, beside the data."""

    epochs: float = 5.0
    batch_size: int = 256
    learning_rate: float = 2e-3
    """Peak of a schedule that rises linearly over the first 200 steps, at most a tenth of all, and falls to zero along
    a cosine."""
    embedding_dropout: float = 0.1
    layer_dropout: float = 0.0
    output_dropout: float = 0.5
    word_dropout: float = 0.1
    """Probability of reading a token as unknown, in training."""
    embedding_l2: float = 1e-6
    gradient_norm: float = 1.0
    min_count: int = 2
    """Tokens rarer than this in the training texts are not in a vocabulary made from the data, and share the
    embedding of the unknown token in a given one."""
    cap_per_emoji: int = 0
    """Training pairs used of each emoji, drawn at random; 0 for all."""
    class_weight_power: float = 0.0
    """A pair weighs (pairs of its emoji / mean over emojis) ** -power: 0 for none, 1 for emojis that weigh the same."""
    teacher_weight: float = 0.7
    """Share of the teachers' probabilities in the targets, if there are teachers; the emojis of the text have the rest
    (Hinton et al., 2015, at temperature 1)."""
    averaging: float = 0.999
    """Decay per step of the exponential moving average of the weights that becomes the model."""
    precision: str = "auto"
    seed: int = 1
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        dropouts = ("embedding_dropout", "layer_dropout", "output_dropout", "word_dropout")
        _check(self, share=(*dropouts, "averaging"), positive=("epochs", "batch_size", *_POSITIVE))
        _check(self, not_negative=("embedding_l2", "cap_per_emoji", "class_weight_power"))
        if not 0 <= self.teacher_weight <= 1:
            raise InputError(f"teacher_weight must be between 0 and 1, not {self.teacher_weight}")


@dataclass(frozen=True)
class FineTuningOptions:
    """Everything that decides the outcome, beside the model and the data. Defaults are the paper's."""

    method: str = "chain-thaw"
    learning_rate: float = 1e-3
    """Of new, of last, and of the first stage of chain-thaw."""
    fine_learning_rate: float = 1e-4
    """Of full, and of the further stages of chain-thaw."""
    epoch_samples: int = 1_000
    """Texts of an epoch, drawn with replacement; between two measurements of the validation loss."""
    most_epochs: int = 100
    """Of a stage."""
    patience: int = 5
    """Epochs without a lower validation loss after which a stage ends; its best epoch is kept."""
    batch_size: int = 0
    """0 for 250, or 50 where a fifth of the training texts has more than 100 tokens."""
    maxlen: int = 0
    """Tokens read of each text; 0 for the 80th percentile of the training texts, rounded up to ten."""
    balanced: int = 0
    """1 to draw from all classes equally often."""
    extend_vocabulary: int = 10_000
    """Most words of the training texts that are added to the vocabulary; `last` adds none."""
    embedding_dropout: float = 0.1
    layer_dropout: float = 0.0
    output_dropout: float = 0.5
    embedding_l2: float = 1e-6
    gradient_norm: float = 1.0
    precision: str = "auto"
    seed: int = 1
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        _check(self, share=("embedding_dropout", "layer_dropout", "output_dropout"))
        _check(self, positive=("fine_learning_rate", "epoch_samples", "most_epochs", "patience", *_POSITIVE))
        _check(self, not_negative=("embedding_l2", "batch_size", "maxlen", "extend_vocabulary"))


_POSITIVE = ("learning_rate", "gradient_norm", "checkpoint_seconds")


def _check(
    options: PretrainingOptions | FineTuningOptions,
    share: Sequence[str] = (),
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
) -> None:
    for name in share:
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{name} must be at least 0 and below 1, not {getattr(options, name)}")
    for name in positive:
        if not getattr(options, name) > 0:
            raise InputError(f"{name} must be above 0, not {getattr(options, name)}")
    for name in not_negative:
        if not getattr(options, name) >= 0:
            raise InputError(f"{name} must be at least 0, not {getattr(options, name)}")
    if options.precision not in TRAINING_PRECISIONS:
        raise InputError(f"precision {options.precision!r} is unknown; choose one of {', '.join(TRAINING_PRECISIONS)}")
