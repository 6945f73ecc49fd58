"""Pretraining: predict a tweet's emojis from its words, as DeepMoji was made. Seeded, checkpointed, resumable.

Each text counts once for every distinct emoji it held; a text with several is one row with several targets, which
gives the same gradient as one training pair per emoji at a fraction of the cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.initialization import initialize_like_keras
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.training.corpus import Corpus
from torchmoji_core.training.metrics import expected_calibration_error, macro_f1, top_k_accuracy
from torchmoji_core.training.options import PretrainingOptions
from torchmoji_core.vocabulary import UNKNOWN


@dataclass(frozen=True)
class LabelledCorpus:
    """Texts with their emojis."""

    corpus: Corpus
    targets: Tensor
    """[texts, classes], 1 for each emoji the text held."""
    labels: NDArray[np.int64]
    """[texts], the one label that scores are measured against."""

    def head(self, rows: int) -> LabelledCorpus:
        """The first `rows` texts."""
        offsets = self.corpus.offsets[: rows + 1]
        return LabelledCorpus(Corpus(self.corpus.ids[: offsets[-1]], offsets), self.targets[:rows], self.labels[:rows])


WARM_UP_STEPS = 200

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Pretraining:
    """One training run; `run` continues from the checkpoint if there is one."""

    def __init__(
        self, dimensions: Dimensions, data: LabelledCorpus, options: PretrainingOptions, checkpoint: Path | None = None
    ) -> None:
        """Args:
        dimensions: sizes of the model.
        data: what to train on.
        options: how.
        checkpoint: file to save to every `checkpoint_seconds` and to resume from.

        Raises:
            InputError: if the data holds no tokens.
        """
        self.data, self.options, self.checkpoint = data, options, checkpoint
        torch.manual_seed(options.seed)
        self.model = TorchMoji(dimensions, options.embedding_dropout, options.output_dropout)
        initialize_like_keras(self.model)
        counts = np.bincount(data.corpus.ids, minlength=dimensions.vocabulary)
        self.rare = torch.from_numpy(counts < options.min_count)
        self.rare[: UNKNOWN + 1] = False
        self.average = AveragedModel(self.model, multi_avg_fn=_moving_average(options.averaging))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate, fused=True)
        rows = int((data.corpus.lengths > 0).sum())
        if rows == 0:
            raise InputError("no text of the training data has a token; nothing can be learnt from it")
        self.steps_per_epoch = math.ceil(rows / options.batch_size)
        self.total_steps = max(1, round(options.epochs * self.steps_per_epoch))
        self.step = 0

    def run(self, report: Callable[[dict[str, float]], None], validation: LabelledCorpus | None = None) -> TorchMoji:
        """Train to the end and return the averaged model, in evaluation mode.

        Args:
            report: called every 50 steps with step, loss and rows per second, and after each epoch with the
                averaged model's scores on `validation`.

        Raises:
            RunError: if the loss stops being a number; the last good checkpoint is kept.
        """
        if self.checkpoint is not None and self.checkpoint.exists():
            self._resume(self.checkpoint)
        saved = time.monotonic()
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch
            # One generator per epoch: what a step sees depends on the seed and the step, not on earlier interruptions.
            generator = np.random.default_rng((self.options.seed, epoch))
            batches = self.data.corpus.batches(np.arange(len(self.data.corpus)), self.options.batch_size, generator)
            done = self.step - epoch * self.steps_per_epoch
            for index, rows in enumerate(batches):
                if index < done:
                    continue
                started = time.perf_counter()
                loss = self._train_on(rows)
                self.step += 1
                if self.step % 50 == 0:
                    report({"step": self.step, "loss": loss, "rows/s": len(rows) / (time.perf_counter() - started)})
                if self.checkpoint is not None and time.monotonic() - saved > self.options.checkpoint_seconds:
                    self._save(self.checkpoint)
                    saved = time.monotonic()
                if self.step >= self.total_steps:
                    break
            if validation is not None:
                report({"step": self.step} | evaluate(self.finished_model(), validation))
        if self.checkpoint is not None:
            self._save(self.checkpoint)
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
        if options.word_dropout:
            ids = ids.masked_fill(torch.rand(len(ids)) < options.word_dropout, UNKNOWN)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * self._schedule()
        self.model.train()
        logits = self.model(packed._replace(data=ids)).logits
        targets = self.data.targets[torch.from_numpy(rows)]
        loss = -(targets * logits.log_softmax(dim=1)).sum() / targets.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            embedding = self.model.embed.weight
            embedding.grad.add_(embedding, alpha=options.embedding_l2)  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.gradient_norm)
        if not (loss.isfinite() and norm.isfinite()):  # before the step, so that no checkpoint can hold its outcome
            raise RunError(
                f"loss is {float(loss.detach())}, its gradient {float(norm)}, at step {self.step + 1}; "
                "lower --learning_rate (last checkpoint kept)"
            )
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return float(loss.detach())

    def _schedule(self) -> float:
        warm_up = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        return warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.total_steps))

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        options = {name: value for name, value in asdict(self.options).items() if name != "checkpoint_seconds"}
        return {
            **options,
            **asdict(self.model.dimensions),
            "texts": len(self.data.corpus),
            "tokens": len(self.data.corpus.ids),
        }

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        state = {
            "identity": self._identity(),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, temporary)
        temporary.replace(path)

    def _resume(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"checkpoint {path}: cannot be read ({error}); delete it to start afresh") from None
        if identity != self._identity():
            changed = sorted(name for name, value in self._identity().items() if identity.get(name) != value)
            raise InputError(
                f"checkpoint {path} is of a run with other {', '.join(changed)}; delete it or give another"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def _moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """An exponential moving average that forgets faster at first, so that it is not held back by the start."""

    @torch.no_grad()
    def update(averages: _Tensors, weights: _Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@torch.inference_mode()
def predict(model: TorchMoji, corpus: Corpus, batch_size: int = 512) -> NDArray[np.float32]:
    """Probabilities [texts, classes]; texts without tokens get a uniform row."""
    classes = model.dimensions.classes
    probabilities = np.full((len(corpus), classes), 1 / classes, np.float32)
    for rows in corpus.batches(np.arange(len(corpus)), batch_size):
        packed, rows = corpus.pack(rows)
        probabilities[rows] = model(packed).logits.softmax(dim=1).numpy()
    return probabilities


def evaluate(model: TorchMoji, data: LabelledCorpus) -> dict[str, float]:
    """Top-1 and top-5 accuracy, macro F1 and calibration error of the labels."""
    probabilities = predict(model, data.corpus)
    return {
        "top1": top_k_accuracy(probabilities, data.labels, 1),
        "top5": top_k_accuracy(probabilities, data.labels, 5),
        "macro_f1": macro_f1(probabilities, data.labels),
        "calibration_error": expected_calibration_error(probabilities, data.labels),
    }
