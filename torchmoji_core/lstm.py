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

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear, pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from torchmoji_core.initialization import DEFAULT_INITIALIZATION, find_initialization
from torchmoji_core.names import shown

DIRECTIONS = ("", "_reverse")


class HardSigmoidLSTM(nn.Module):
    """One bidirectional layer, with the gates that Keras 1 and 2.0 have by default (`recurrent_activation`).

    Parameters have the names, shapes and gate order (i, f, g, o) of `torch.nn.LSTM`, whose gates are logistic ones. A
    new one is initialized (`reset_parameters`). It has no second derivatives: `create_graph` is an error.
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

    def forward(
        self,
        sequence: PackedSequence | Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        return_hidden: bool = False,
    ) -> PackedSequence | Tensor | tuple[PackedSequence | Tensor, tuple[Tensor, Tensor]]:
        """Run both directions; each row begins with states of zero.

        >>> lstm = HardSigmoidLSTM(input_size=3, hidden_size=4)
        >>> output, (hidden, cell) = lstm(torch.ones(2, 5, 3), lengths=[5, 2], return_hidden=True)
        >>> output.shape, hidden.shape, bool(output[1, 2:].any())
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 4]), False)

        Args:
            sequence: packed, with data [tokens, input_size]; or padded, [rows, steps, input_size].
            lengths: [rows], steps of each row of a padded tensor, in any order; what is behind them has no influence.
                By default all.
            return_hidden: whether the last states are given as well.

        Returns:
            The output, forward channels, then backward channels. In the same packing, with data
            [tokens, 2 * hidden_size]; or padded, [rows, steps, 2 * hidden_size], with zeros behind a row's end.
            With `return_hidden` also hidden and cell states, [2, rows, hidden_size] each, as `torch.nn.LSTM` gives
            them: forward at a row's last step, backward at its first, in the order of the rows before packing.

        Raises:
            ValueError: for lengths of a packed sequence, or that do not belong to the padded one.
        """
        if isinstance(sequence, Tensor):
            packed = _pack(sequence, lengths)
        elif lengths is None:
            packed = sequence
        else:
            raise ValueError("a packed sequence knows the lengths of its rows; give no others")
        hidden, cells = self._run(packed)
        result: PackedSequence | Tensor
        result = packed._replace(data=torch.cat(hidden, dim=1)[: len(packed.data)])
        if isinstance(sequence, Tensor):
            result, _ = pad_packed_sequence(result, batch_first=True, total_length=sequence.shape[1])
        if not return_hidden:
            return result
        ends = _ends(packed)
        return result, (_at(hidden, ends), _at(cells, ends))

    def _run(self, sequence: PackedSequence) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden and cell states of both directions, [at least tokens, hidden_size] each."""
        batch_sizes = sequence.batch_sizes.tolist()
        slope, offset = folded_hard_sigmoid(self.hidden_size, sequence.data)
        data = pad(sequence.data, (0, 0, 0, -len(sequence.data) % _TOKEN_MULTIPLE))
        hidden, cells = [], []
        for suffix in DIRECTIONS:
            weight_ih, weight_hh, bias_ih, bias_hh = (
                self.get_parameter(f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            bias = (bias_ih + bias_hh) * slope + offset
            projected = linear(data, weight_ih * slope[:, None], bias)
            both = _Recurrence.apply(projected, weight_hh * slope[:, None], batch_sizes, suffix != "")
            hidden.append(both[0])
            cells.append(both[1])
        return hidden, cells


def _pack(padded: Tensor, lengths: Tensor | Sequence[int] | None) -> PackedSequence:
    if padded.dim() != 3 or not padded.shape[0] or not padded.shape[1]:
        raise ValueError(f"a padded sequence is [rows, steps, channels], one or more of each, not {list(padded.shape)}")
    rows, steps, _ = padded.shape
    given = torch.full((rows,), steps) if lengths is None else torch.as_tensor(lengths).cpu()
    is_whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    if not is_whole or given.shape != (rows,) or not all(1 <= length <= steps for length in given.tolist()):
        raise ValueError(
            f"lengths must be {rows} whole numbers from 1 to {steps}, one of each row, not {shown(given.tolist())}"
        )
    return pack_padded_sequence(padded, given.long(), batch_first=True, enforce_sorted=False)


def _ends(sequence: PackedSequence) -> tuple[Tensor, Tensor]:
    """Where in the packed data each row's last and first step are, [rows] each, in the order before packing.

    Of rows of 3, 2 and 1 steps, packed as a0 b0 c0 a1 b1 a2, the last steps are at 5, 4 and 2.
    """
    sizes = sequence.batch_sizes
    first = torch.arange(int(sizes[0]))
    lengths = (sizes[None, :] > first[:, None]).sum(dim=1)
    last = (sizes.cumsum(0) - sizes)[lengths - 1] + first
    if sequence.unsorted_indices is not None:
        order = sequence.unsorted_indices.cpu()
        first, last = first[order], last[order]
    return last.to(sequence.data.device), first.to(sequence.data.device)


def _at(states: Sequence[Tensor], ends: Sequence[Tensor]) -> Tensor:
    return torch.stack([state[where] for state, where in zip(states, ends, strict=True)])


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
    ) -> tuple[Tensor, Tensor]:
        """projected [at least tokens, 4 * hidden], weight_hh [4 * hidden, hidden] -> hidden and cell states.

        Both are [as many, hidden]. What stands behind the tokens is no number that means anything.
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
        ctx.set_materialize_grads(False)  # type: ignore[attr-defined]
        return hidden, cells

    @staticmethod
    def backward(
        ctx: FunctionCtx, grad_hidden: Tensor | None, grad_cells: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None]:
        """Back-propagation through time, one step's slice after another in reverse order of computation.

        With dh and dc the gradients of a step's hidden and cell states, dc having got its share of dh:

            di = dc g [0 < i < 1]     df = dc c_{t-1} [0 < f < 1]     dg = dc i (1 - g^2)
            do = dh tanh(c) [0 < o < 1]     dc += dh o (1 - tanh(c)^2)
            dh_{t-1} = (di, df, dg, do) U     dc_{t-1} = dc f

        Raises:
            RuntimeError: where a gradient of this gradient may be wanted. torch's `once_differentiable` would only see
                that of `grad_hidden` and `grad_cells`, and leave out what comes by the weights and the input.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("HardSigmoidLSTM has no second derivatives; leave out create_graph")
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
            if grad_hidden is not None:
                dh += grad_hidden[start:end]
            if grad_cells is not None:
                dc += grad_cells[start:end]
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
