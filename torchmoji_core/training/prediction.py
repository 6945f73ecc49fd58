"""What a model in training says of a whole corpus. Scoring of finished models is the business of `inference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchmoji_core.errors import RunError
from torchmoji_core.model import TorchMoji
from torchmoji_core.training.corpus import Corpus

BATCH_SIZE = 512


@torch.inference_mode()
def forward(model: TorchMoji, corpus: Corpus, batch_size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """Logits [texts, classes] and embeddings [texts, channels], float32; texts without tokens get zeros.

    The model is set to evaluation mode.
    """
    model.eval()
    logits = torch.zeros(len(corpus), model.dimensions.classes)
    embedding = torch.zeros(len(corpus), model.dimensions.channels)
    for rows in corpus.batches(np.arange(len(corpus)), batch_size):
        packed, rows = corpus.pack(rows)
        output = model(packed)
        logits[rows], embedding[rows] = output.logits.float(), output.embedding.float()
    return logits, embedding


@torch.inference_mode()
def predict(
    model: TorchMoji, corpus: Corpus, batch_size: int = BATCH_SIZE, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Probabilities of a model whose classes exclude each other; uniform for texts without tokens.

    The model is set to evaluation mode.

    Args:
        model: the model.
        corpus: the texts.
        batch_size: texts of a batch.
        out: [texts, classes] of any float type to write them to, a mapped file for example; None for a new array of
            float32.

    Raises:
        RunError: if the probabilities are no finite numbers.
    """
    model.eval()
    classes = model.dimensions.classes
    if out is None:
        out = np.empty((len(corpus), classes), np.float32)
    out[:] = 1 / classes
    for rows in corpus.batches(np.arange(len(corpus)), batch_size):
        packed, rows = corpus.pack(rows)
        probabilities = model(packed).logits.float().softmax(dim=1)
        if not probabilities.sum().isfinite():
            raise RunError("a model gives probabilities that are no finite numbers; its weights are far too large")
        out[rows] = probabilities.numpy()
    return out
