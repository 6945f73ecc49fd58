"""Pretraining: predict a tweet's emojis from its words, as DeepMoji was made. Seeded, checkpointed, resumable.

Each text counts once for every distinct emoji it held; a text with several is one row with several targets, which
gives the same gradient as one training pair per emoji at a fraction of the cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from torchmoji_core.durable import replacing, reserve
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.training.checkpointing import Checkpoint, restore_optimizer, restored
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.emoji_corpus import EmojiCorpus
from torchmoji_core.training.metrics import class_f1, expected_calibration_error, top_k_accuracy
from torchmoji_core.training.optimization import (
    DivergedError,
    drop_words,
    moving_average,
    new_model,
    products_in,
    resolve_precision,
    take_step,
)
from torchmoji_core.training.options import PretrainingOptions
from torchmoji_core.training.prediction import forward, predict
from torchmoji_core.vocabulary import UNKNOWN

WARM_UP_STEPS, WARM_UP_SHARE = 200, 0.1
"""The schedule rises over so many steps, or over this share of a run that is short."""

TEMPERATURES = [percent / 100 for percent in range(50, 201)]

_NOT_OF_THE_RUN = ("checkpoint_seconds", "tilt")
"""Options that do not decide how the weights are trained."""


class Pretraining:
    """One training run; `run` continues from the checkpoint if there is one."""

    def __init__(
        self,
        dimensions: Dimensions,
        data: EmojiCorpus,
        options: PretrainingOptions,
        checkpoint: Path | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Args:
            dimensions: sizes of the model.
            data: what to train on.
            options: how.
            checkpoint: file to save to every `checkpoint_seconds` and to resume from.
            start: weights to begin with, of a model of these dimensions; None for a new model's (`initialization`).

        Raises:
            InputError: if the data holds no tokens.
        """
        self.options = options
        self.checkpoint = Checkpoint(checkpoint, options.checkpoint_seconds, self._identity)
        self.data = (
            data.capped(options.cap_per_emoji, np.random.default_rng(options.seed)) if options.cap_per_emoji else data
        )
        self.precision = resolve_precision(options.precision)
        self.model = new_model(dimensions, options)
        self.start = None
        if start is not None:
            self.model.load_state_dict({name: tensor.float() for name, tensor in start.items()})
            self.start = float(start["output_layer.0.weight"].double().sum())  # a checksum
        self.rare = _rare_tokens(data.corpus, dimensions.vocabulary, options.min_count)
        self.class_weights = _class_weights(self.data, dimensions.classes, options.class_weight_power)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(options.averaging))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate, fused=True)
        self.rows = np.flatnonzero((self.data.corpus.lengths > 0) & (self.data.emojis.lengths > 0))
        if not len(self.rows):
            raise InputError("no text of the training data has a token; nothing can be learnt from it")
        self.steps_per_epoch = math.ceil(len(self.rows) / options.batch_size)
        self.total_steps = max(1, round(options.epochs * self.steps_per_epoch))
        self.step = 0

    def run(self, report: Callable[[dict[str, float]], None], validation: EmojiCorpus | None = None) -> TorchMoji:
        """Train to the end and return the averaged model, in evaluation mode.

        Args:
            report: called every 50 steps with step, loss and rows per second, and after each epoch with the
                averaged model's scores on `validation`.

        Raises:
            RunError: if the loss stops being a number; the last good checkpoint is kept.
        """
        self._resume()
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch
            # One generator per epoch: what a step sees depends on the seed and the step, not on earlier interruptions.
            generator = np.random.default_rng((self.options.seed, epoch))
            batches = self.data.corpus.batches(self.rows, self.options.batch_size, generator)
            done = self.step - epoch * self.steps_per_epoch
            for index, rows in enumerate(batches):
                if index < done:
                    continue
                started = time.perf_counter()
                loss = self._train_on(rows)
                self.step += 1
                if self.step % 50 == 0:
                    report({"step": self.step, "loss": loss, "rows/s": len(rows) / (time.perf_counter() - started)})
                self.checkpoint.save_now_and_then(self._state)
                if self.step >= self.total_steps:
                    break
            if validation is not None:
                report({"step": self.step} | evaluate(self.finished_model(), validation))
        self.checkpoint.save(self._state())
        return self.finished_model()

    def finished_model(self) -> TorchMoji:
        """The averaged weights so far, rare tokens sharing the unknown token's embedding."""
        model = TorchMoji(self.model.dimensions)
        model.load_state_dict(self.average.module.state_dict())
        weight = model.embed.weight.data
        weight[self.rare] = weight[UNKNOWN].clone()
        return model.eval()

    def _train_on(self, rows: NDArray[np.integer]) -> float:
        options = self.options
        torch.manual_seed(options.seed * 1_000_003 + self.step)
        packed, rows = self.data.corpus.pack(rows)
        ids = packed.data.masked_fill(self.rare[packed.data], UNKNOWN)
        ids = drop_words(ids, options.word_dropout)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * self._schedule()
        self.model.train()
        with products_in(self.precision):
            logits = self.model(packed._replace(data=ids)).logits.float()
        targets = self.data.targets(rows, self.class_weights, options.teacher_weight)
        loss = -(targets * logits.log_softmax(dim=1)).sum() / targets.sum()
        try:
            value = take_step(self.optimizer, loss, self.model.embed.weight, options)
        except DivergedError as error:
            raise RunError(f"step {self.step + 1}: {error} (--learning_rate){self.checkpoint.is_kept}") from None
        self.average.update_parameters(self.model)
        return value

    def _schedule(self) -> float:
        warm_up = min(1.0, (self.step + 1) / min(WARM_UP_STEPS, math.ceil(self.total_steps * WARM_UP_SHARE)))
        return warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.total_steps))

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        options = {name: value for name, value in asdict(self.options).items() if name not in _NOT_OF_THE_RUN}
        return {
            **options,
            **asdict(self.model.dimensions),
            "precision": self.precision,
            "start": self.start,
            "teachers": sorted(self.data.teachers),
            "texts": len(self.data),
            "tokens": len(self.data.corpus.values),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _resume(self) -> None:
        state = self.checkpoint.load()
        if state is None:
            return
        with self.checkpoint.continuing():
            self.step = restored("step", state["step"], self.step)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            restore_optimizer(self.optimizer, state["optimizer"])


def _rare_tokens(corpus: Corpus, vocabulary: int, min_count: int) -> Tensor:
    """Which tokens occur fewer than `min_count` times, [vocabulary] of bool; mask and unknown never count as rare."""
    counts = np.zeros(vocabulary, np.int64)
    for start in range(0, len(corpus.values), 1 << 24):  # in pieces: the ids may be a mapped file
        counts += np.bincount(corpus.values[start : start + (1 << 24)], minlength=vocabulary)
    rare = torch.from_numpy(counts < min_count)
    rare[: UNKNOWN + 1] = False
    return rare


def _class_weights(data: EmojiCorpus, classes: int, power: float) -> Tensor:
    """The weight of each class's pairs, [classes]; see `PretrainingOptions.class_weight_power`."""
    pairs = np.bincount(data.emojis.values, minlength=classes)
    weights = (np.maximum(pairs, 1) / max(pairs.mean(), 1)) ** -power
    return torch.from_numpy(weights.astype(np.float32))


def teach(data: EmojiCorpus, teachers: Mapping[str, TorchMoji], directory: Path) -> EmojiCorpus:
    """The same data with the probabilities of finished models to learn from.

    Args:
        data: texts and emojis.
        teachers: models in evaluation mode by fingerprint; they have the vocabulary of the data.
        directory: of these texts alone, where each model's probabilities are kept as a file, mapped if it is there.

    Raises:
        OSError: if the disk has no room for them.
    """
    taught = {}
    for fingerprint, model in teachers.items():
        path = directory / f"teacher-{fingerprint}.npy"
        if not path.exists():
            with replacing(path) as temporary:
                mapped = open_memmap(temporary, "w+", np.float16, (len(data), model.dimensions.classes))
                reserve(temporary)
                with products_in(resolve_precision("auto")):
                    predict(model, data.corpus, out=mapped)
                mapped.flush()
        taught[fingerprint] = np.load(path, mmap_mode="r")
    return replace(data, teachers=taught)


def calibrate(model: TorchMoji, train: EmojiCorpus, validation: EmojiCorpus, tilt: float = 0.0) -> float:
    """Change the output layer of a finished model, in place, so that its probabilities can be believed.

    First log(pairs of an emoji / mean over emojis) times `tilt` is taken from its logit, which makes rare emojis
    likelier (logit adjustment: Menon et al., 2021). Then all logits are divided by the temperature that gives the
    labels of the validation texts the highest likelihood (Guo et al., 2017); it changes no order.

    Args:
        model: a finished model.
        train: where emojis are counted.
        validation: what the temperature is chosen on.
        tilt: 0 for none, 1 for emojis as if each had been as frequent as the others.

    Returns:
        The temperature.
    """
    layer = model.output_layer[0]
    assert isinstance(layer, torch.nn.Linear)
    pairs = np.bincount(train.emojis.values, minlength=model.dimensions.classes)
    with torch.no_grad():
        layer.bias.sub_(tilt * torch.from_numpy(np.log(np.maximum(pairs, 1) / max(pairs.mean(), 1))).float())
        logits, _ = forward(model, validation.corpus)
        labels = torch.from_numpy(validation.labels.astype(np.int64))
        losses = [float(cross_entropy(logits / temperature, labels)) for temperature in TEMPERATURES]
        temperature = TEMPERATURES[int(np.argmin(losses))]
        layer.weight.div_(temperature)
        layer.bias.div_(temperature)
    return temperature


def evaluate(model: TorchMoji, data: EmojiCorpus, frequent: NDArray[np.integer] | None = None) -> dict[str, float]:
    """Scores against the labels: top-1 and top-5 accuracy, macro F1, calibration error.

    Args:
        model: in evaluation mode.
        data: texts and labels.
        frequent: classes to report the macro F1 of as well, as `macro_f1_frequent`; not reported if there are none.
    """
    probabilities = predict(model, data.corpus)
    f1 = class_f1(probabilities, data.labels)
    scores = {
        "top1": top_k_accuracy(probabilities, data.labels, 1),
        "top5": top_k_accuracy(probabilities, data.labels, 5),
        "macro_f1": float(f1.mean()),
    }
    if frequent is not None and len(frequent):
        scores["macro_f1_frequent"] = float(f1[frequent].mean())
    return scores | {"calibration_error": expected_calibration_error(probabilities, data.labels)}
