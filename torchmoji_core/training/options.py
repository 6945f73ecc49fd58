"""What decides the outcome of a training beside its data. Imports no torch, so that command lines know it at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.limits import check_limit
from torchmoji_core.options import option

TRAINING_PRECISIONS = ("auto", "fp32", "bf16")
"""Of the products; weights and everything elementwise are float32. auto is bf16 where the processor has it."""

METHODS = ("new", "last", "full", "chain-thaw")
"""How a classifier is made of a model: `new` starts all layers at random; `last` trains a new output layer alone;
`full` trains all layers; `chain-thaw` trains the output layer, then each other layer alone, then all."""


@dataclass(frozen=True)
class PretrainingOptions:
    """Everything that decides the outcome, beside the data."""

    epochs: float = option(5.0, "passes over the training texts; a part of one counts too")
    batch_size: int = option(256, "texts of a step")
    learning_rate: float = option(
        2e-3,
        "peak of a schedule that rises linearly over the first 200 steps, at most a tenth of all, and falls to zero "
        "along a cosine",
    )
    embedding_dropout: float = option(0.1, "share of a text's word embedding channels that are dropped")
    layer_dropout: float = option(0.0, "share of a text's channels that are dropped between the two LSTMs")
    output_dropout: float = option(0.5, "share of a text's channels that are dropped in front of the output layer")
    word_dropout: float = option(0.1, "share of the tokens that are read as unknown, in training")
    embedding_l2: float = option(1e-6, "factor of half the squared norm of the word embedding in the loss")
    gradient_norm: float = option(1.0, "gradients are scaled down to this norm")
    min_count: int = option(
        2,
        "tokens rarer than this in the training texts are not in a vocabulary made from the data, and share the "
        "embedding of the unknown token in a given one",
    )
    cap_per_emoji: int = option(0, "training pairs used of each emoji, drawn at random; 0 for all")
    class_weight_power: float = option(
        0.0,
        "a pair weighs (pairs of its emoji / mean over emojis) ** -power: 0 for none, 1 for emojis that weigh the same",
    )
    teacher_weight: float = option(
        0.7,
        "share of the teachers' probabilities in the targets, if there are teachers; the emojis of the text have the "
        "rest (Hinton et al., 2015, at temperature 1)",
    )
    tilt: float = option(
        0.0,
        "after training, log(pairs of an emoji / mean over emojis) times this is taken from its logit, so that rare "
        "emojis become likelier (Menon et al., 2021)",
    )
    averaging: float = option(
        0.999, "decay per step of the exponential moving average of the weights that becomes the model"
    )
    precision: str = option("auto", "of the products: fp32, bf16, or auto, bf16 where the processor has it")
    seed: int = option(1, "of every random number")
    checkpoint_seconds: float = option(120.0, "time between two checkpoints")

    def __post_init__(self) -> None:
        dropouts = ("embedding_dropout", "layer_dropout", "output_dropout", "word_dropout")
        _check(self, share=(*dropouts, "averaging"), positive=("epochs", "batch_size", *_POSITIVE))
        _check(self, not_negative=("embedding_l2", "cap_per_emoji", "class_weight_power", "tilt"))
        if not 0 <= self.teacher_weight <= 1:
            raise InputError(f"teacher_weight must be between 0 and 1, not {self.teacher_weight}")


@dataclass(frozen=True)
class FineTuningOptions:
    """Everything that decides the outcome, beside the model and the data. Defaults are the paper's."""

    method: str = option("chain-thaw", f"one of {', '.join(METHODS)}")
    learning_rate: float = option(1e-3, "of new, of last, and of the first stage of chain-thaw")
    fine_learning_rate: float = option(1e-4, "of full, and of the further stages of chain-thaw")
    epoch_samples: int = option(
        1_000, "texts of an epoch, drawn with replacement, after which the validation loss is measured"
    )
    most_epochs: int = option(100, "of a stage")
    patience: int = option(5, "epochs without a lower validation loss after which a stage ends; its best epoch is kept")
    batch_size: int = option(
        0, "texts of a step; 0 for 250, or 50 where a fifth of the training texts has more than 100 tokens"
    )
    maxlen: int = option(
        0, "tokens read of each text; 0 for the 80th percentile of the training texts, rounded up to ten"
    )
    balanced: int = option(0, "1 to draw from all classes equally often")
    extend_vocabulary: int = option(
        10_000, "most words of the training texts that are added to the vocabulary; last adds none"
    )
    embedding_dropout: float = option(0.1, "share of a text's word embedding channels that are dropped")
    layer_dropout: float = option(0.0, "share of a text's channels that are dropped between the two LSTMs")
    output_dropout: float = option(0.5, "share of a text's channels that are dropped in front of the output layer")
    word_dropout: float = option(
        0.0, "share of the tokens that are read as unknown, in training, except while the output layer is trained alone"
    )
    embedding_l2: float = option(1e-6, "factor of half the squared norm of the word embedding in the loss")
    gradient_norm: float = option(1.0, "gradients are scaled down to this norm")
    averaging: float = option(
        0.0,
        "decay per step of an exponential moving average of the weights, which is what is validated and kept; 0 for "
        "the weights themselves",
    )
    precision: str = option("auto", "of the products: fp32, bf16, or auto, bf16 where the processor has it")
    seed: int = option(1, "of every random number")
    checkpoint_seconds: float = option(60.0, "time between two checkpoints")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        _check(self, share=("embedding_dropout", "layer_dropout", "output_dropout", "word_dropout", "averaging"))
        _check(self, positive=("fine_learning_rate", "epoch_samples", "most_epochs", "patience", *_POSITIVE))
        _check(self, not_negative=("embedding_l2", "batch_size", "maxlen", "extend_vocabulary"))
        if self.maxlen:
            check_limit("maxlen", "maxlen", self.maxlen)


_SEEDS = 1 << 32
"""Seeds of steps are made of it, and torch takes none above 2^63."""
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
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"{name} must be above 0 and finite, not {getattr(options, name)}")
    for name in not_negative:
        if not 0 <= getattr(options, name) < math.inf:
            raise InputError(f"{name} must be at least 0 and finite, not {getattr(options, name)}")
    if not 0 <= options.seed < _SEEDS:
        raise InputError(f"seed must be at least 0 and below {_SEEDS}, not {options.seed}")
    if options.precision not in TRAINING_PRECISIONS:
        raise InputError(f"precision {options.precision!r} is unknown; choose one of {', '.join(TRAINING_PRECISIONS)}")
