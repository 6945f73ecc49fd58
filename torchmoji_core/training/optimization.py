"""One step of training, the same for pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torchmoji_core.errors import InputError, RunError
from torchmoji_core.processor import has_bfloat16
from torchmoji_core.training.options import TRAINING_PRECISIONS


def resolve_precision(name: str) -> str:
    """fp32 or bf16 for `auto`, fp32, bf16: what this processor is faster in.

    Raises:
        InputError: if there is no such precision.
    """
    if name not in TRAINING_PRECISIONS:
        raise InputError(f"precision {name!r} is unknown; choose one of {', '.join(TRAINING_PRECISIONS)}")
    if name != "auto":
        return name
    return "bf16" if has_bfloat16() else "fp32"


def products_in(precision: str) -> torch.autocast:
    """A context in which matrix products are computed in a resolved precision; weights stay float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


class DivergedError(RunError):
    """The loss or its gradient stopped being a number."""


def take_step(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    loss: Tensor,
    gradient_norm: float,
    embedding: Tensor,
    embedding_l2: float,
) -> float:
    """Back-propagate, clip, update.

    Args:
        optimizer: of the parameters.
        parameters: those that are trained.
        loss: scalar.
        gradient_norm: gradients are scaled down to this norm over all parameters.
        embedding: the word embedding's table.
        embedding_l2: factor of half its squared norm in the loss, if it is trained.

    Returns:
        The loss.

    Raises:
        DivergedError: before the update, so that neither weights nor a checkpoint can hold the outcome.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if embedding_l2 and embedding.grad is not None:
        with torch.no_grad():
            embedding.grad.add_(embedding, alpha=embedding_l2)
    norm = nn.utils.clip_grad_norm_(list(parameters), gradient_norm)
    value = float(loss.detach())
    if not (loss.isfinite() and norm.isfinite()):
        raise DivergedError(f"the loss is {value} and the norm of its gradient {float(norm)}; lower the learning rate")
    optimizer.step()
    return value
