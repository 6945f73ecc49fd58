"""Fine-tuning: a classifier of any task from a pretrained model, or from random weights of the same shape.

The methods are those of Felbo et al., 2017, section 3.3. A method is a list of stages, each training some layers until
the validation loss stops falling, and keeping its best epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, dropout

from torchmoji_core.errors import RunError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.training.checkpointing import Checkpoint, restore_optimizer, restored
from torchmoji_core.training.dataset import Batch, TweetDataset
from torchmoji_core.training.optimization import (
    DivergedError,
    drop_words,
    moving_average,
    new_model,
    products_in,
    resolve_precision,
    take_step,
)
from torchmoji_core.training.options import FineTuningOptions
from torchmoji_core.training.prediction import forward
from torchmoji_core.training.sampler import BalancedBatchSampler

OUTPUT_LAYER = "output_layer"
LAYERS = ("embed", "lstm_0", "lstm_1", "attention_layer", OUTPUT_LAYER)
"""Of the model, first to last."""
_LONG_TOKENS, _LONG_BATCH_SIZE, _BATCH_SIZE = 100, 50, 250
_LONGEST = 500

_PROGRESS = ("epoch", "step", "waited", "total", "average", "best_loss", "best")
"""Of a stage: attributes that a checkpoint holds."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """Training of some layers; the others are frozen."""

    layers: tuple[str, ...]
    learning_rate: float

    @property
    def name(self) -> str:
        return "all layers" if self.layers == LAYERS else ", ".join(self.layers)


def stages_of(options: FineTuningOptions) -> list[Stage]:
    """The stages of a method, in order."""
    first, fine = options.learning_rate, options.fine_learning_rate
    output = Stage((OUTPUT_LAYER,), first)
    return {
        "new": [Stage(LAYERS, first)],
        "last": [output],
        "full": [Stage(LAYERS, fine)],
        "chain-thaw": [output, *(Stage((layer,), fine) for layer in LAYERS[:-1]), Stage(LAYERS, fine)],
    }[options.method]


def reading_of(lengths: Iterable[int], options: FineTuningOptions) -> tuple[int, int]:
    """maxlen and batch size: the options', or by DeepMoji's rule, from the token counts of the training texts."""
    ordered = sorted(lengths)
    percentile = ordered[math.ceil(0.8 * len(ordered)) - 1]
    maxlen = options.maxlen or min(math.ceil(percentile / 10) * 10, _LONGEST)
    return maxlen, options.batch_size or (_LONG_BATCH_SIZE if percentile > _LONG_TOKENS else _BATCH_SIZE)


def starting_model(state: Mapping[str, Tensor] | None, dimensions: Dimensions, options: FineTuningOptions) -> TorchMoji:
    """The model before its first step, decided by `options.seed`.

    Args:
        state: weights of a pretrained model, whose output layer is replaced by a new one. None for all layers new.
        dimensions: of the model to make.
        options: for dropout and seed.
    """
    model = new_model(dimensions, options)
    if state is not None:
        kept = {name: tensor.float() for name, tensor in state.items() if not name.startswith(OUTPUT_LAYER)}
        model.load_state_dict(kept, strict=False)
    return model


class FineTuning:
    """One run; `run` continues from the checkpoint if there is one."""

    def __init__(
        self,
        model: TorchMoji,
        train: TweetDataset,
        validation: TweetDataset,
        options: FineTuningOptions,
        checkpoint: Path | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> None:
        """Args:
        model: see `starting_model`; it is trained in place.
        train: what to train on.
        validation: what decides when a stage ends.
        options: how.
        checkpoint: file to save to every `checkpoint_seconds` and to resume from.
        batch_size: see `reading_of`.
        """
        self.model, self.train, self.validation, self.options = model, train, validation, options
        self.batch_size = batch_size
        self.checkpoint = Checkpoint(checkpoint, options.checkpoint_seconds, self._identity)
        self.precision = resolve_precision(options.precision)
        self.stages = stages_of(options)
        self._stage = 0

    def run(self, report: Callable[[dict[str, Any]], None]) -> TorchMoji:
        """Train to the end; the model comes back in evaluation mode.

        Args:
            report: called after each epoch with the stage's number and name, the epoch, the mean training loss, the
                validation loss, and whether it is the lowest of the stage.

        Raises:
            RunError: if the loss stops being a number; the last checkpoint is kept.
        """
        progress = self.checkpoint.load()
        if progress is not None:
            with self.checkpoint.continuing():
                self.model.load_state_dict(progress["model"])
                self._stage = restored("stage", progress["stage"], self._stage)
                if self._stage > len(self.stages):
                    raise ValueError(f"stage is {self._stage}")
        for number in range(self._stage, len(self.stages)):
            self._stage = number
            _StageRun(self, self.stages[number], progress).run(report)
            progress = None
        self.checkpoint.save({"stage": len(self.stages), "model": self.model.state_dict()})
        return self.model.requires_grad_(True).eval()

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        options = {name: value for name, value in asdict(self.options).items() if name != "checkpoint_seconds"}
        data = {
            f"{name} {what}": count
            for name, part in (("training", self.train), ("validation", self.validation))
            for what, count in (("texts", len(part)), ("tokens", len(part.corpus.values)), ("ids", _checksum(part)))
        }
        return {**options, **asdict(self.model.dimensions), **data, "precision": self.precision}


class _StageRun:
    """One stage of a run, from its start or from where a checkpoint was saved."""

    def __init__(self, run: FineTuning, stage: Stage, progress: dict[str, Any] | None) -> None:
        self.parent, self.stage, self.model, self.options = run, stage, run.model, run.options
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in stage.layers)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.zero_grad(set_to_none=True)
        self.optimizer = torch.optim.Adam(self.parameters, lr=stage.learning_rate, fused=True)
        self.number = run.stages.index(stage)
        self.sampler = BalancedBatchSampler(
            run.train.labels,
            run.batch_size,
            self.options.epoch_samples,
            balanced=bool(self.options.balanced),
            lengths=run.train.lengths,
            seed=self.options.seed * 1_000 + self.number,
        )
        self.epoch = self.step = self.waited = 0
        self.total = 0.0
        self.average = [parameter.detach().clone() for parameter in self.parameters] if self.options.averaging else []
        self._update_average = moving_average(self.options.averaging)
        self.best_loss, self.best = math.inf, self._trained()
        # What stands in front of the output layer does not change in a stage that trains it alone.
        self.features = self._features() if stage.layers == (OUTPUT_LAYER,) else None
        if progress is not None:
            with run.checkpoint.continuing():
                self._resume(progress)
        elif self.number:  # a further stage must improve on the one before, or leaves it as it was
            self.best_loss = self._validation_loss()

    def run(self, report: Callable[[dict[str, Any]], None]) -> None:
        while self.epoch < self.options.most_epochs and self.waited < self.options.patience:
            self._train_epoch()
            with self._averaged():
                loss = self._validation_loss()
                improved = loss < self.best_loss
                if improved:
                    self.best_loss, self.best, self.waited = loss, self._trained(), 0
                else:
                    self.waited += 1
            training_loss = self.total / len(self.sampler)
            self.epoch, self.step, self.total = self.epoch + 1, 0, 0.0
            report(
                {
                    "stage": self.number + 1,
                    "stages": len(self.parent.stages),
                    "layers": self.stage.name,
                    "epoch": self.epoch,
                    "loss": training_loss,
                    "validation_loss": loss,
                    "improved": improved,
                }
            )
        self.model.load_state_dict(self.best, strict=False)

    def _train_epoch(self) -> None:
        self.sampler.set_epoch(self.epoch)
        batches: Iterable[Any] = self.sampler if self.features is not None else self.parent.train.loader(self.sampler)
        for batch in itertools.islice(batches, self.step, None):
            # Every random number of a step depends on the seed and the step, not on earlier interruptions.
            place = (self.number * self.options.most_epochs + self.epoch) * len(self.sampler) + self.step
            torch.manual_seed(self.options.seed * 1_000_003 + place)
            try:
                self.total += self._train_on(batch)
            except DivergedError as error:
                where = f"stage {self.number + 1} ({self.stage.name}), epoch {self.epoch + 1}"
                kept = self.parent.checkpoint.is_kept
                raise RunError(f"{where}: {error} (--learning_rate, --fine_learning_rate){kept}") from None
            self.step += 1
            self.parent.checkpoint.save_now_and_then(self._state)

    def _train_on(self, batch: Batch | list[int]) -> float:
        self.model.train()
        if self.features is not None:
            embedding, labels = self.features[0][batch], self.parent.train.targets[batch]
            logits = self.model.output_layer(dropout(embedding, self.options.output_dropout))
        else:
            assert isinstance(batch, Batch)
            labels = batch.labels
            ids = batch.ids._replace(data=drop_words(batch.ids.data, self.options.word_dropout))
            with products_in(self.parent.precision):
                logits = self.model(ids).logits.float()
        loss = take_step(self.optimizer, loss_of(logits, labels), self.model.embed.weight, self.options)
        if self.options.averaging:
            steps = self.epoch * len(self.sampler) + self.step
            self._update_average(self.average, [parameter.data for parameter in self.parameters], steps)
        return loss

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights, if there are any."""
        if not self.average:
            yield
            return
        weights = [parameter.data for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.data = weight

    @torch.no_grad()
    def _validation_loss(self) -> float:
        data = self.parent.validation
        if self.features is not None:
            logits = self.model.output_layer(self.features[1])
        else:
            logits, _ = forward(self.model, data.corpus)
        return float(loss_of(logits, data.targets))

    def _features(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the training and the validation texts, [texts, channels] each."""
        return forward(self.model, self.parent.train.corpus)[1], forward(self.model, self.parent.validation.corpus)[1]

    def _trained(self) -> State:
        names = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items() if name in names}

    def _state(self) -> dict[str, Any]:
        state = {"stage": self.number, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | {name: getattr(self, name) for name in _PROGRESS}

    def _resume(self, progress: dict[str, Any]) -> None:
        for name in _PROGRESS:
            setattr(self, name, restored(name, progress[name], getattr(self, name)))
        restore_optimizer(self.optimizer, progress["optimizer"])


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy: over the classes for labels [rows], of each class by itself for labels [rows, classes]."""
    if labels.ndim == 2:
        return binary_cross_entropy_with_logits(logits, labels)
    return cross_entropy(logits, labels)


def _checksum(data: TweetDataset) -> int:
    return int(data.corpus.values.astype("int64").sum())
