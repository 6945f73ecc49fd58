"""Attention as DeepMoji defines it: one learned vector scores each token, a softmax per row weighs the average."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from torchmoji_core.initialization import DEFAULT_INITIALIZATION, find_initialization


class AttentionWeightedAverage(nn.Module):
    """Weighted average over the tokens of each row; every row is normalized by itself, so neighbours don't matter.

        a_t = exp(c_t . v) / sum over the row of exp(c_s . v)        average = sum over the row of a_t c_t

    with c_t the channels of a token and v the attention vector (Felbo et al., 2017, section 3.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_vector = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self, initialization: str = DEFAULT_INITIALIZATION) -> None:
        """Overwrite the vector; see `HardSigmoidLSTM.reset_parameters`."""
        find_initialization(initialization).attention(self.attention_vector)

    def forward(self, sequence: PackedSequence) -> tuple[Tensor, Tensor]:
        """Average each row's tokens.

        Args:
            sequence: data [tokens, channels]; every row has at least one token.

        Returns:
            The averages [rows, channels] and the weights, padded with zeros, [rows, longest row], both in the
            packed order (longest row first). Weights of a row sum to 1.
        """
        data, batch_sizes = sequence.data, sequence.batch_sizes
        n_rows = int(batch_sizes[0])
        rows = torch.cat([torch.arange(size) for size in batch_sizes.tolist()]).to(data.device)
        # In bfloat16, as autocast would have it, oneDNN keeps a compiled kernel for every number of tokens.
        with torch.autocast(data.device.type, enabled=False):
            logits = data @ self.attention_vector.to(data.dtype)
        # The row's own maximum: exp cannot overflow, and its largest term is 1, so the sum cannot vanish.
        maximum = logits.new_full((n_rows,), -torch.inf).scatter_reduce(0, rows, logits.detach(), "amax")
        weights = (logits - maximum[rows]).exp()
        weights = weights / weights.new_zeros(n_rows).index_add(0, rows, weights)[rows]
        average = data.new_zeros(n_rows, data.shape[1]).index_add(0, rows, weights[:, None] * data)
        steps = torch.repeat_interleave(torch.arange(len(batch_sizes)), batch_sizes).to(data.device)
        padded = weights.new_zeros(n_rows, len(batch_sizes)).index_put((rows, steps), weights)
        return average, padded
