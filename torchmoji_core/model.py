"""The DeepMoji network as a module: packed token ids -> logits, embedding and attention, in one pass.

    ids -> embedding -> tanh -> BiLSTM 0 -> BiLSTM 1 -> concatenate (h1, h0, x) -> attention -> linear

Parameter names are those of the published torchMoji checkpoint, so its state dict loads without renaming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchmoji_core.attention import AttentionWeightedAverage
from torchmoji_core.dimensions import Dimensions as Dimensions
from torchmoji_core.errors import InputError
from torchmoji_core.initialization import DEFAULT_INITIALIZATION, find_initialization
from torchmoji_core.lstm import HardSigmoidLSTM
from torchmoji_core.processes import single_threaded


@dataclass(frozen=True)
class Dropout:
    """Probabilities of dropping a channel, in training."""

    embedding: float = 0.0
    """A channel of the word embedding, for all tokens of a row."""
    layer: float = 0.0
    """A channel between the two LSTMs, for all tokens of a row (Gal and Ghahramani, 2016)."""
    output: float = 0.0
    """A channel of the tweet embedding, in front of the output layer."""


NO_DROPOUT = Dropout()


class ModelOutput(NamedTuple):
    """What one pass gives, in the order of the rows before packing."""

    logits: Tensor
    """[rows, classes]; softmax gives the probabilities."""
    embedding: Tensor
    """[rows, channels]"""
    attention: Tensor
    """[rows, longest row], zero behind a row's end"""


class TorchMoji(nn.Module):
    """DeepMoji's architecture (Felbo et al., 2017, section 3.1) at any size. A new one is initialized, and in training
    mode."""

    def __init__(self, dimensions: Dimensions, dropout: Dropout = NO_DROPOUT) -> None:
        """Args:
        dimensions: the sizes.
        dropout: what is dropped in training.
        """
        super().__init__()
        self.dimensions = dimensions
        self.dropout = dropout
        output = nn.Linear(dimensions.channels, dimensions.classes)  # drawn first: a seed keeps giving the same model
        self.embed = nn.Embedding(
            dimensions.vocabulary,
            dimensions.embedding,
            _weight=torch.empty(dimensions.vocabulary, dimensions.embedding),
        )
        find_initialization(DEFAULT_INITIALIZATION).embedding(self.embed.weight)
        self.lstm_0 = HardSigmoidLSTM(dimensions.embedding, dimensions.hidden)
        self.lstm_1 = HardSigmoidLSTM(2 * dimensions.hidden, dimensions.hidden)
        self.attention_layer = AttentionWeightedAverage(dimensions.channels)
        self.output_layer = nn.Sequential(output)
        self._reset_output()

    def reset_parameters(self, initialization: str = DEFAULT_INITIALIZATION) -> None:
        """Overwrite all parameters, from torch's global random state.

        Args:
            initialization: one of `torchmoji_core.initialization.INITIALIZATIONS`.

        Raises:
            InputError: if there is no such one.
        """
        find_initialization(initialization).embedding(self.embed.weight)
        for part in (self.lstm_0, self.lstm_1, self.attention_layer):
            part.reset_parameters(initialization)
        self._reset_output()

    def _reset_output(self) -> None:
        nn.init.xavier_uniform_(self.output_layer.get_parameter("0.weight"))
        nn.init.zeros_(self.output_layer.get_parameter("0.bias"))

    def forward(self, ids: PackedSequence) -> ModelOutput:
        """Score packed rows; every row has at least one token (see `pack_ids`).

        Args:
            ids: data [tokens] of int64.

        Returns:
            See `ModelOutput`. In training mode with what `Dropout` says.
        """
        x = self._drop_channels(self.embed(ids.data).tanh(), ids.batch_sizes, self.dropout.embedding)
        layer_0 = self.lstm_0(ids._replace(data=x))
        between = self._drop_channels(layer_0.data, ids.batch_sizes, self.dropout.layer)
        layer_1 = self.lstm_1(layer_0._replace(data=between))
        features = layer_1._replace(data=torch.cat((layer_1.data, layer_0.data, x), dim=1))
        embedding, attention = self.attention_layer(features)
        if ids.unsorted_indices is not None:
            embedding, attention = embedding[ids.unsorted_indices], attention[ids.unsorted_indices]
        kept = nn.functional.dropout(embedding, self.dropout.output, self.training)
        return ModelOutput(self.output_layer(kept), embedding, attention)

    def _drop_channels(self, x: Tensor, batch_sizes: Tensor, probability: float) -> Tensor:
        if not self.training or probability == 0:
            return x
        keep = 1 - probability
        mask = x.new_empty(int(batch_sizes[0]), x.shape[1]).bernoulli_(keep) / keep
        return x * torch.cat([mask[:size] for size in batch_sizes.tolist()])


def pack_ids(rows: Sequence[Sequence[int]]) -> PackedSequence:
    """Pack token ids, longest row first; the packing remembers the order given.

    Raises:
        ValueError: if there are no rows, or a row has no tokens: those have no score and stay outside the model.
    """
    if not rows or not all(rows):
        raise ValueError("the model needs at least one row, and at least one token in every row")
    return nn.utils.rnn.pack_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], enforce_sorted=False)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that weights may have."""


@single_threaded()
def check_weights(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that no training makes, and that would give scores all the same.

    Raises:
        InputError: if some are no floating-point numbers of `FLOATS`, or not finite as float32.
    """
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise InputError(f"weights {name!r} are {kind}; save float16, bfloat16, float32 or float64 tensors")
        # The extremes, since they need no second tensor; both are NaN if one number is.
        if tensor.numel() and not torch.stack(tensor.detach().aminmax()).float().isfinite().all():
            raise InputError(f"weights {name!r} hold NaN or infinity as float32")


def dimensions_of(state: Mapping[str, Tensor]) -> Dimensions:
    """Read a model's sizes off its state dict.

    Raises:
        InputError: if the names are not the published ones, or the shapes do not fit together.
    """
    try:
        (vocabulary, embedding), (_, hidden), (classes, _) = (
            state[name].shape for name in ("embed.weight", "lstm_0.weight_hh_l0", "output_layer.0.weight")
        )
    except KeyError as error:
        raise InputError(f"these are not the weights of a torchMoji model: {error} is missing") from None
    except ValueError:
        raise InputError("these are not the weights of a torchMoji model: a matrix has another shape") from None
    dimensions = Dimensions(vocabulary, embedding, hidden, classes)
    with torch.device("meta"):
        expected = TorchMoji(dimensions).state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise InputError(f"these are not the weights of a torchMoji model: missing {missing[:3]}, unknown {extra[:3]}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise InputError(f"weights {name!r} have shape {list(state[name].shape)}, expected {list(tensor.shape)}")
    return dimensions
