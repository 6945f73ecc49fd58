"""What decides the outcome of a training beside its data. Imports no torch, so that command lines know it at once."""

from __future__ import annotations

from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.limits import check_limit
from torchmoji_core.options import NOT_NEGATIVE, POSITIVE, SHARE, Range, check_options, option

TRAINING_PRECISIONS = ("auto", "fp32", "bf16")
"""Of the products; weights and everything elementwise are float32. auto is bf16 where the processor has it."""

METHODS = ("new", "last", "full", "chain-thaw")
"""How a classifier is made of a model: `new` starts all layers at random; `last` trains a new output layer alone;
`full` trains all layers; `chain-thaw` trains the output layer, then each other layer alone, then all."""

SEEDS = Range(0, below=1 << 32)
"""Seeds of steps are made of them, and torch takes none above 2^63."""


@dataclass(frozen=True)
class TrainingOptions:
    """What decides the outcome of every training.

    Where defaults are from: `embedding_dropout` torchMoji (DeepMoji: 0.25); `output_dropout` and `gradient_norm` both;
    `embedding_l2` torchMoji's weight decay, half as strong as Keras' L2 of the same factor, which is DeepMoji's;
    `layer_dropout` and `precision` are this project's.
    """

    embedding_dropout: float = option(0.1, "share of a text's word embedding channels that are dropped", within=SHARE)
    layer_dropout: float = option(
        0.0, "share of a text's channels that are dropped between the two LSTMs", within=SHARE
    )
    output_dropout: float = option(
        0.5, "share of a text's channels that are dropped in front of the output layer", within=SHARE
    )
    embedding_l2: float = option(
        1e-6,
        "factor of half the squared norm of the word embedding in the loss; Keras' L2 has no half",
        within=NOT_NEGATIVE,
    )
    gradient_norm: float = option(1.0, "gradients are scaled down to this norm", within=POSITIVE)
    precision: str = option(
        "auto", "of the products; auto: bf16 where the processor has it", choices=TRAINING_PRECISIONS
    )
    seed: int = option(1, "of every random number", within=SEEDS)

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        check_options(self)
        for name, value in list(vars(self).items()):
            if hasattr(value, "item"):  # of numpy, as searches over arrays give them; no bundle can hold them
                object.__setattr__(self, name, value.item())


@dataclass(frozen=True)
class PretrainingOptions(TrainingOptions):
    """Everything that decides the outcome, beside the data. Defaults are those of the bundled model or of this project;
    DeepMoji's pretraining was not published as code."""

    epochs: float = option(5.0, "passes over the training texts; a part of one counts too", within=POSITIVE)
    batch_size: int = option(256, "texts of a step", within=POSITIVE)
    learning_rate: float = option(
        2e-3,
        "peak of a schedule that rises linearly over the first 200 steps, at most a tenth of all, and falls to zero "
        "along a cosine",
        within=POSITIVE,
    )
    word_dropout: float = option(0.1, "share of the tokens that are read as unknown, in training", within=SHARE)
    min_count: int = option(
        2,
        "tokens rarer than this in the training texts are not in a vocabulary made from the data, and share the "
        "embedding of the unknown token in a given one",
        within=NOT_NEGATIVE,
    )
    cap_per_emoji: int = option(0, "training pairs used of each emoji, drawn at random; 0 for all", within=NOT_NEGATIVE)
    class_weight_power: float = option(
        0.0,
        "a pair weighs (pairs of its emoji / mean over emojis) ** -power: 0 for none, 1 for emojis that weigh the same",
        within=NOT_NEGATIVE,
    )
    teacher_weight: float = option(
        0.7,
        "share of the teachers' probabilities in the targets, if there are teachers; the emojis of the text have the "
        "rest (Hinton et al., 2015, at temperature 1)",
        within=NOT_NEGATIVE,
    )
    tilt: float = option(
        0.0,
        "after training, log(pairs of an emoji / mean over emojis) times this is taken from its logit, so that rare "
        "emojis become likelier (Menon et al., 2021)",
        within=NOT_NEGATIVE,
    )
    averaging: float = option(
        0.999, "decay per step of the exponential moving average of the weights that becomes the model", within=SHARE
    )
    checkpoint_seconds: float = option(120.0, "time between two checkpoints", within=POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_weight > 1:
            raise InputError(f"teacher_weight must be between 0 and 1, not {self.teacher_weight}")


@dataclass(frozen=True)
class FineTuningOptions(TrainingOptions):
    """Everything that decides the outcome, beside the model and the data.

    Where defaults are from: methods, both learning rates, batch sizes, the rule of `maxlen`, `patience`, the natural
    draw and 10,000 words are those of DeepMoji's and torchMoji's code (Felbo et al., 2017, describe the methods). That
    code has epochs of 5,000 texts and at most 1,000 of them, takes `maxlen` from all texts, not only those of training,
    and begins added words with random numbers. torchMoji trains the output layer of `full` at `learning_rate`.
    `word_dropout` and `averaging` are this project's.
    """

    method: str = option("chain-thaw", "which layers are trained, and when", choices=METHODS)
    learning_rate: float = option(1e-3, "of new, of last, and of the first stage of chain-thaw", within=POSITIVE)
    fine_learning_rate: float = option(1e-4, "of full, and of the further stages of chain-thaw", within=POSITIVE)
    epoch_samples: int = option(
        1_000,
        "texts of an epoch, drawn with replacement, after which the validation loss is measured; DeepMoji's: 5000",
        within=POSITIVE,
    )
    most_epochs: int = option(100, "of a stage", within=POSITIVE)
    patience: int = option(
        5, "epochs without a lower validation loss after which a stage ends; its best epoch is kept", within=POSITIVE
    )
    batch_size: int = option(
        0,
        "texts of a step; 0 for 250, or 50 where a fifth of the training texts has more than 100 tokens",
        within=NOT_NEGATIVE,
    )
    maxlen: int = option(
        0,
        "tokens read of each text; 0 for the 80th percentile of the training texts, rounded up to ten",
        within=NOT_NEGATIVE,
    )
    balanced: int = option(0, "1 to draw from all classes equally often", within=Range(0, below=2))
    extend_vocabulary: int = option(
        10_000,
        "most words of the training texts that are added to the vocabulary; last adds none",
        within=NOT_NEGATIVE,
    )
    word_dropout: float = option(
        0.0,
        "share of the tokens that are read as unknown, in training, except while the output layer is trained alone",
        within=SHARE,
    )
    averaging: float = option(
        0.0,
        "decay per step of an exponential moving average of the weights, which is what is validated and kept; 0 for "
        "the weights themselves",
        within=SHARE,
    )
    checkpoint_seconds: float = option(60.0, "time between two checkpoints", within=POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maxlen:
            check_limit("maxlen", "maxlen", self.maxlen)
