"""One step of training, the same for pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmoji_core.errors import RunError
from torchmoji_core.model import Dimensions, Dropout, TorchMoji
from torchmoji_core.options import check_choice
from torchmoji_core.processor import has_bfloat16
from torchmoji_core.training.options import TRAINING_PRECISIONS, TrainingOptions
from torchmoji_core.vocabulary import UNKNOWN


def new_model(dimensions: Dimensions, options: TrainingOptions) -> TorchMoji:
    """A model at its start, decided by the seed, with the dropout of the options."""
    torch.manual_seed(options.seed)
    return TorchMoji(dimensions, Dropout(options.embedding_dropout, options.layer_dropout, options.output_dropout))


def resolve_precision(name: str) -> str:
    """fp32 or bf16 for `auto`, fp32, bf16: what this processor is faster in.

    Raises:
        InputError: if there is no such precision.
    """
    check_choice("precision", name, TRAINING_PRECISIONS)
    if name != "auto":
        return name
    return "bf16" if has_bfloat16() else "fp32"


def products_in(precision: str) -> torch.autocast:
    """A context in which matrix products are computed in a resolved precision; weights stay float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


class DivergedError(RunError):
    """The loss or its gradient stopped being a number."""


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, embedding: Tensor, options: TrainingOptions) -> float:
    """Back-propagate, clip, update.

    Args:
        optimizer: of the parameters that are trained.
        loss: scalar.
        embedding: the word embedding's table, to whose gradient that of its norm is added if it is trained.
        options: for the bound of the gradient's norm, over all parameters, and the factor of the embedding's.

    Returns:
        The loss.

    Raises:
        DivergedError: before the update, so that neither weights nor a checkpoint can hold the outcome.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if options.embedding_l2 and embedding.grad is not None:
        with torch.no_grad():
            embedding.grad.add_(embedding, alpha=options.embedding_l2)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, options.gradient_norm)
    value = float(loss.detach())
    if not (loss.isfinite() and norm.isfinite()):
        raise DivergedError(f"the loss is {value} and the norm of its gradient {float(norm)}; lower the learning rate")
    optimizer.step()
    return value


Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential moving average that forgets faster at first, so that it is not held back by the start.

    Args:
        decay: what an average keeps of itself in an update, in the long run.

    Returns:
        What updates averages in place, from weights and the number of updates before, as
        `torch.optim.swa_utils.AveragedModel` calls it.
    """

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def drop_words(ids: Tensor, share: float) -> Tensor:
    """Token ids of any shape, a share of them drawn at random being those of unknown words."""
    return ids.masked_fill(torch.rand(ids.shape) < share, UNKNOWN) if share else ids
