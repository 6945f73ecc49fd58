"""A bidirectional LSTM with hard-sigmoid gates on packed sequences: readable, trainable, no padding computed.

    i, f, o = hard_sigmoid(W x_t + U h_{t-1} + b)        hard_sigmoid(z) = clip(0.2 z + 0.5, 0, 1)
    g       = tanh(W x_t + U h_{t-1} + b)
    c_t     = f * c_{t-1} + i * g
    h_t     = o * tanh(c_t)

These are the gates of Keras 1 and 2.0, which DeepMoji was trained with; library kernels have only the logistic
sigmoid. The input projections of all steps are one product, and the recurrence is one autograd node per direction
with its gradient written out, so a step costs one product and a handful of elementwise calls either way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear, pad
from torch.nn.utils.rnn import PackedSequence

from torchmoji_core.initialization import DEFAULT_INITIALIZATION, find_initialization

DIRECTIONS = ("", "_reverse")


class HardSigmoidLSTM(nn.Module):
    """One bidirectional layer. Parameters have the names, shapes and gate order (i, f, g, o) of `torch.nn.LSTM`.

    A new one is initialized (`reset_parameters`).
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        """Args:
        input_size: channels of the input.
        hidden_size: channels of each direction; the output has twice as many.
        """
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        for suffix in DIRECTIONS:
            self.register_parameter(f"weight_ih_l0{suffix}", nn.Parameter(torch.empty(4 * hidden_size, input_size)))
            self.register_parameter(f"weight_hh_l0{suffix}", nn.Parameter(torch.empty(4 * hidden_size, hidden_size)))
            self.register_parameter(f"bias_ih_l0{suffix}", nn.Parameter(torch.empty(4 * hidden_size)))
            self.register_parameter(f"bias_hh_l0{suffix}", nn.Parameter(torch.empty(4 * hidden_size)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, initialization: str = DEFAULT_INITIALIZATION) -> None:
        """Overwrite all parameters, from torch's global random state.

        Args:
            initialization: one of `torchmoji_core.initialization.INITIALIZATIONS`.

        Raises:
            InputError: if there is no such one.
        """
        chosen = find_initialization(initialization)
        size = self.hidden_size
        for name, parameter in self.named_parameters():
            if parameter.is_meta:  # has no values; to make it orthogonal takes time all the same
                return
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    nn.init.constant_(parameter[size : 2 * size], chosen.forget_bias)
                continue
            for kernel in parameter.split(size if chosen.per_gate else 4 * size):
                (nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_)(kernel)

    def forward(self, sequence: PackedSequence) -> PackedSequence:
        """Run both directions from zero states.

        Args:
            sequence: data [tokens, input_size].

        Returns:
            The same packing with data [tokens, 2 * hidden_size]: forward channels, then backward channels.
        """
        batch_sizes = sequence.batch_sizes.tolist()
        slope, offset = folded_hard_sigmoid(self.hidden_size, sequence.data)
        n_tokens = len(sequence.data)
        data = pad(sequence.data, (0, 0, 0, -n_tokens % _TOKEN_MULTIPLE))
        outputs = []
        for suffix in DIRECTIONS:
            weight_ih, weight_hh, bias_ih, bias_hh = (
                self.get_parameter(f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            bias = (bias_ih + bias_hh) * slope + offset
            projected = linear(data, weight_ih * slope[:, None], bias)
            outputs.append(_Recurrence.apply(projected, weight_hh * slope[:, None], batch_sizes, suffix != ""))
        return sequence._replace(data=torch.cat(outputs, dim=1)[:n_tokens])


_TOKEN_MULTIPLE, _ROW_MULTIPLE = 64, 8
"""Products are given whole multiples of tokens and of rows: in bfloat16 oneDNN compiles kernels for every number and
keeps the last thousand, of half a megabyte and more, which in the course of a training come to gigabytes."""


def folded_hard_sigmoid(hidden_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset to fold into the gates' products, [4 * hidden_size] each: what is left of the gate is a clamp.

    The candidate g, third of the four, goes through tanh and keeps slope 1 and offset 0.
    """
    gates = like.new_tensor([[0.2, 0.5], [0.2, 0.5], [1.0, 0.0], [0.2, 0.5]])
    slope, offset = gates.repeat_interleave(hidden_size, dim=0).unbind(1)
    return slope, offset


def steps_of(batch_sizes: list[int], reverse: bool) -> list[tuple[int, int, int, int]]:
    """(start, end, previous start, rows with a previous state) of each step's slice, in the order of computation.

    Rows are sorted longest first, so the rows that a step shares with the one before it are the first of both:
    going forward rows only end, going backward they only begin.
    """
    starts = [0]
    for size in batch_sizes:
        starts.append(starts[-1] + size)
    order = range(len(batch_sizes))[:: -1 if reverse else 1]
    steps = []
    previous_start = previous_size = 0
    for index in order:
        start, size = starts[index], batch_sizes[index]
        steps.append((start, start + size, previous_start, min(size, previous_size)))
        previous_start, previous_size = start, size
    return steps


class _Recurrence(torch.autograd.Function):
    """The recurrence of one direction, given the input projections (biases, slope and offset included).

    The dtype of the projections is that of the products and of what is kept: bfloat16 under `torch.autocast`.
    Everything elementwise is computed in the weights' own dtype, step by step, in buffers that stay in the cache: for
    all steps at once it would be bound by memory, and slower.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, weight_hh: Tensor, batch_sizes: list[int], reverse: bool
    ) -> Tensor:
        """projected [at least tokens, 4 * hidden], weight_hh [4 * hidden, hidden] -> hidden states [as many, hidden].

        What stands behind the tokens is no number that means anything.
        """
        size = weight_hh.shape[1]
        steps = steps_of(batch_sizes, reverse)
        weight = weight_hh.to(projected.dtype)
        transposed = weight.t()
        gates = torch.empty_like(projected)
        cells = weight_hh.new_empty(len(projected), size)
        # A product may read rows behind its step's, and gives numbers for them that are left alone.
        hidden = projected.new_zeros(len(projected) + _ROW_MULTIPLE, size)
        product = projected.new_empty(_whole(batch_sizes[0]), 4 * size)
        buffer = weight_hh.new_empty(batch_sizes[0], 4 * size)
        tanh_cell = cells.new_empty(batch_sizes[0], size)
        for start, end, previous, rows in steps:
            gate = buffer[: end - start].copy_(projected[start:end])
            if rows:
                torch.mm(hidden[previous : previous + _whole(rows)], transposed, out=product[: _whole(rows)])
                gate[:rows] += product[:rows]
            gate[:, : 2 * size].clamp_(0, 1)
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].clamp_(0, 1)
            i, f, g, o = gate.split(size, dim=1)
            cell = torch.mul(i, g, out=cells[start:end])
            if rows:
                cell[:rows].addcmul_(f[:rows], cells[previous : previous + rows])
            torch.mul(torch.tanh(cell, out=tanh_cell[: end - start]), o, out=hidden[start:end])
            gates[start:end] = gate
        hidden = hidden[: len(projected)]
        ctx.save_for_backward(weight, gates, cells, hidden)  # type: ignore[attr-defined]
        ctx.steps = steps  # type: ignore[attr-defined]
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_hidden: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Back-propagation through time, one step's slice after another in reverse order of computation.

        With dh and dc the gradients of a step's hidden and cell states, dc having got its share of dh:

            di = dc g [0 < i < 1]     df = dc c_{t-1} [0 < f < 1]     dg = dc i (1 - g^2)
            do = dh tanh(c) [0 < o < 1]     dc += dh o (1 - tanh(c)^2)
            dh_{t-1} = (di, df, dg, do) U     dc_{t-1} = dc f
        """
        weight, gates, cells, hidden = ctx.saved_tensors  # type: ignore[attr-defined]
        steps: list[tuple[int, int, int, int]] = ctx.steps  # type: ignore[attr-defined]
        size = weight.shape[1]
        most_rows = max(end - start for start, end, _, _ in steps)
        grad_gates = gates.new_zeros(len(gates) + _ROW_MULTIPLE, 4 * size)
        previous_hidden = torch.zeros_like(hidden)
        product = weight.new_empty(_whole(most_rows), size)
        buffer, grad_buffer = (cells.new_empty(most_rows, 4 * size) for _ in range(2))
        tanh_cells, share = (cells.new_empty(most_rows, size) for _ in range(2))
        grad_h, grad_c = (cells.new_zeros(most_rows, size) for _ in range(2))  # what comes from later steps
        for start, end, previous, rows in reversed(steps):
            count = end - start
            gate, grad_gate = buffer[:count].copy_(gates[start:end]), grad_buffer[:count]
            i, f, g, o = gate.split(size, dim=1)
            grad_i, grad_f, grad_g, grad_o = grad_gate.split(size, dim=1)
            dh, dc = grad_h[:count], grad_c[:count]
            dh += grad_hidden[start:end]
            tanh_cell = torch.tanh(cells[start:end], out=tanh_cells[:count])
            torch.mul(dh, tanh_cell, out=grad_o)
            dc += torch.mul(dh, o, out=share[:count])
            dc.addcmul_(share[:count], tanh_cell.square_(), value=-1)
            torch.mul(dc, g, out=grad_i)
            torch.mul(dc, i, out=grad_g)
            grad_g.addcmul_(torch.mul(grad_g, g, out=share[:count]), g, value=-1)
            if rows:
                torch.mul(dc[:rows], cells[previous : previous + rows], out=grad_f[:rows])
            grad_f[rows:] = 0  # at a row's first step there is nothing to forget
            _clamp_backward(grad_gate[:, : 2 * size], gate[:, : 2 * size])
            _clamp_backward(grad_o, o)
            grad_gates[start:end] = grad_gate
            if rows:
                previous_hidden[start : start + rows] = hidden[previous : previous + rows]
                torch.mm(grad_gates[start : start + _whole(rows)], weight, out=product[: _whole(rows)])
                grad_h[:rows] = product[:rows]
                grad_c[:rows] *= f[:rows]
        grad_gates = grad_gates[: len(gates)]
        trained = ctx.needs_input_grad[1]  # type: ignore[attr-defined]
        return grad_gates, torch.mm(grad_gates.t(), previous_hidden) if trained else None, None, None


def _whole(rows: int) -> int:
    return rows + -rows % _ROW_MULTIPLE


def _clamp_backward(gradient: Tensor, clamped: Tensor) -> None:
    """Zero the gradient in place where a value was clamped to 0 or 1."""
    torch.ops.aten.hardtanh_backward(gradient, clamped, 0, 1, grad_input=gradient)
