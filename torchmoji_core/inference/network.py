"""The network of `model.TorchMoji` rearranged for speed: inference only, packed rows, nothing padded.

What differs from the readable model:

* Activations are stored halved, since tanh(x) / 2 = sigmoid(2 x) - 1/2, and a library's sigmoid is six times as fast as
  its tanh (14 microseconds instead of 83 for 64 rows of 512). The 2 in front of x is in the weights, and so is the one
  that makes the halves whole again.
* Slope and offset of the hard sigmoid are in the weights too, and the gates lie in the order i, f, o, g: one clamp
  serves three gates.
* The input products of all steps of a layer are one product a direction; of the first layer, one for each distinct
  token of the batch.
* All features of a token lie in one row of one buffer, so nothing is concatenated.
* Of a single row both directions run side by side, since it costs calls rather than arithmetic; but not where a product
  of twice as many outputs has other bits.

The modules keep to the part of Python that TorchScript knows, and `scripted` has them run by it: the same operations
one after another, without the interpreter's lock, for which two threads would wait between thousands of short
operations. In int8 two threads score an eighth more tweets/s; one text at a time three quarters more.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from torchmoji_core.errors import first_line, raise_shortage
from torchmoji_core.inference.kernels import Encoding, Weight, ignoring

_LOGGER = logging.getLogger(__name__)

Output = tuple[Tensor, Tensor, Tensor]
"""Probabilities [rows, classes], embedding [rows, channels], attention [rows, longest row]."""
Call = Callable[[Tensor, Tensor, list[int]], Output]
"""A `Network`, or what gives the same results."""


def product_rows(rows: int) -> int:
    """Rows that a product is given: up to an eighth more than there are, but one of few numbers.

    oneDNN compiles a kernel for every number of rows, which takes as long as a product, and keeps a thousand of them,
    of 0.3 to 0.6 MB each.
    """
    step = 1
    while 16 * step < rows:
        step *= 2
    # Products would take a single row twice (`kernels`).
    return max(2, (rows + step - 1) // step * step)


class Direction(nn.Module):
    """One direction of a layer; its weights give the gates i, f, o, g."""

    def __init__(self, inputs: Weight, recurrent: Weight, encoding: Encoding, reverse: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.recurrent = recurrent
        self.encoding = encoding
        self.reverse = reverse
        self.middle = torch.tensor(0.5)

    def forward(self, inputs: Tensor, places: Tensor, batch_sizes: list[int], outputs: Tensor) -> None:
        """Args:
        inputs: encoded, [n, inputs].
        places: of each token, its row of them.
        batch_sizes: rows present at each step.
        outputs: [at least tokens, hidden], to be filled with halved hidden states.
        """
        size = outputs.size(1)
        sums = self.inputs.project(inputs)
        # A step's gates stay in one buffer, small enough for the cache, and its views are made when the rows change.
        all_gates = sums.new_zeros([product_rows(batch_sizes[0]), 4 * size])
        # Rows that have not begun have a state of zero, which is what a row begins with.
        cells = sums.new_zeros([len(all_gates), size])
        halves = sums.new_zeros([len(all_gates), size])
        states = self.encoding.zeros(len(all_gates), size)
        self.encoding.encode(cells, states)
        place = places.split(batch_sizes)
        output = outputs[: len(places)].split(batch_sizes)
        steps, taken = len(batch_sizes), 0
        while taken < steps:
            rows = batch_sizes[steps - 1 - taken if self.reverse else taken]
            gates, cell, half, state = all_gates[:rows], cells[:rows], halves[:rows], states[:rows]
            i, f, o, g = gates[:, :size], gates[:, size : 2 * size], gates[:, 2 * size : 3 * size], gates[:, 3 * size :]
            i_f_o = gates[:, : 3 * size]
            product_gates, product_states = all_gates[: product_rows(rows)], states[: product_rows(rows)]
            while taken < steps:
                step = steps - 1 - taken if self.reverse else taken
                if batch_sizes[step] != rows:
                    break
                torch.index_select(sums, 0, place[step], out=gates)
                if taken > 0:
                    self.recurrent.add_to(product_gates, product_states)
                _advance(i_f_o, i, f, o, g, cell, half, self.middle, output[step])
                self.encoding.encode(output[step], state)
                taken += 1


def _advance(
    i_f_o: Tensor, i: Tensor, f: Tensor, o: Tensor, g: Tensor, cell: Tensor, half: Tensor, middle: Tensor, out: Tensor
) -> None:
    """Gates' sums and cell states of one step -> new cell states and, in `out`, halved hidden states.

    Args:
        i_f_o, i, f, o, g: [rows, channels], views of one another; used up.
        cell, half: [rows, channels], the states and working space.
        middle: 1/2; an operation with a bare number takes three times as long.
    """
    i_f_o.clamp_(0, 1)
    g.sigmoid_().sub_(middle)
    # The cell state is kept doubled, for the 2 in front of x.
    cell.mul_(f).addcmul_(i, g, value=4)
    torch.sigmoid(cell, out=half)
    torch.mul(half.sub_(middle), o, out=out)


class Layer(nn.Module):
    """Both directions."""

    def __init__(self, ahead: Direction, back: Direction, recurrent: Weight) -> None:
        """Args:
        ahead, back: the directions.
        recurrent: the recurrent weights of both, [8 * hidden, hidden].
        """
        super().__init__()
        self.ahead = ahead
        self.back = back
        self.recurrent = recurrent
        self.is_side_by_side = recurrent.has_one_order
        self.encoding = ahead.encoding
        self.middle = ahead.middle

    def forward(self, inputs: Tensor, places: Tensor, batch_sizes: list[int], outputs: Tensor) -> None:
        """See `Direction`; outputs are [at least tokens, 2 * hidden]."""
        size = outputs.size(1) // 2
        if batch_sizes[0] == 1 and self.is_side_by_side:
            self._of_one_row(inputs, places, outputs[: len(places)])
        else:
            self.ahead(inputs, places, batch_sizes, outputs[:, :size])
            self.back(inputs, places, batch_sizes, outputs[:, size:])

    def _of_one_row(self, inputs: Tensor, places: Tensor, outputs: Tensor) -> None:
        """Both directions side by side: half as many operations, each of which costs its call and little else."""
        size = outputs.size(1) // 2
        ahead, back = self.ahead.inputs.project(inputs), self.back.inputs.project(inputs)
        sums = ahead.new_empty([len(places), 2, 4 * size])
        torch.index_select(ahead, 0, places, out=sums[:, 0])
        torch.index_select(back, 0, places.flip(0), out=sums[:, 1])
        hidden = sums.new_empty([len(places), 2, size])
        # Each row has the products of both directions' weights: of the first row the first are used, of the second the
        # second.
        products = sums.new_zeros([2, 8 * size])
        gates = products.as_strided([2, 4 * size], [12 * size, 1])
        i, f, o, g = gates.split(size, 1)
        i_f_o = gates[:, : 3 * size]
        cell, half = torch.zeros_like(hidden[0]), torch.zeros_like(hidden[0])
        state = self.encoding.zeros(2, size)
        of_step = sums.unbind(0)
        for step, output in enumerate(hidden.unbind(0)):
            gates.copy_(of_step[step])
            if step > 0:
                self.recurrent.add_to(products, state)
            _advance(i_f_o, i, f, o, g, cell, half, self.middle, output)
            self.encoding.encode(output, state)
        outputs[:, :size] = hidden[:, 0]
        outputs[:, size:] = hidden[:, 1].flip(0)


REGISTER_CHANNELS = 32
"""Values that the widest vectorized loop takes at once."""


def probabilities(logits: Tensor, multi_label: bool, lanes: int = REGISTER_CHANNELS) -> Tensor:
    """Of logits [rows, classes]; of each class by itself if several may apply."""
    if not multi_label:
        return logits.softmax(1)
    # torch's loop rounds otherwise where it is not vectorized, and what it ends with would depend on the rows.
    return pad(logits, [0, -logits.size(1) % lanes]).sigmoid()[:, : logits.size(1)].contiguous()


class Head(nn.Module):
    """What makes results of the features of each row's tokens."""

    def __init__(self, attention: Weight, output: Weight, multi_label: bool, kept: Tensor | None) -> None:
        """Args:
        attention: weights of a token's features, one output.
        output: weights and bias of the classes.
        multi_label: whether a probability is of its class by itself (a sigmoid instead of the softmax).
        kept: the columns of the features that are the embedding; None for all.
        """
        super().__init__()
        self.attention = attention
        self.output = output
        self.multi_label = multi_label
        self.kept = kept

    def forward(self, features: Tensor, batch_sizes: list[int]) -> Output:
        """Args:
        features: [at least tokens, channels], halved.
        batch_sizes: rows present at each step.
        """
        average, attention = self._attend(features, batch_sizes)
        kept = self.kept
        embedding = average if kept is None else average[:, kept]
        logits = self.output.project(embedding)[: batch_sizes[0]]
        return probabilities(logits, self.multi_label), embedding[: batch_sizes[0]], attention

    def _attend(self, features: Tensor, batch_sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Average features [rounded up rows, channels] and weights [rows, longest row]; see `attention`."""
        n_rows, n_tokens = batch_sizes[0], sum(batch_sizes)
        logits = self.attention.project(features)[:n_tokens, 0]
        weights = features.new_full([n_rows, len(batch_sizes)], float("-inf"))
        for step, values in enumerate(logits.split(batch_sizes)):
            weights[: len(values), step] = values
        weights = (weights - weights.amax(1, keepdim=True)).exp_()
        total = weights.new_zeros([n_rows])
        for of_step in weights.unbind(1):  # one after another: a library's sum depends on the width
            total += of_step
        weights /= total.unsqueeze(1)
        average = features.new_zeros([product_rows(n_rows), features.size(1)])
        for step, values in enumerate(features[:n_tokens].split(batch_sizes)):
            average[: len(values)].addcmul_(values, weights[: len(values), step].unsqueeze(1), value=2)
        return average, weights


class Network(nn.Module):
    """Everything behind the embedding table. Calls do not change it, so threads may share one."""

    def __init__(self, first: Layer, second: Layer, head: Head, encoding: Encoding, hidden: int) -> None:
        """Args:
        first, second: the LSTMs.
        head: makes the results of their features.
        encoding: of the LSTMs' inputs.
        hidden: channels of a direction, rounded up.
        """
        super().__init__()
        self.first = first
        self.second = second
        self.head = head
        self.encoding = encoding
        self.hidden = hidden

    def forward(self, vectors: Tensor, token: Tensor, batch_sizes: list[int]) -> Output:
        """Args:
        vectors: [distinct tokens, embedding], halved and rounded up.
        token: of each token in the order of time, its row of them.
        batch_sizes: rows present at each step.
        """
        n_tokens, hidden = len(token), self.hidden
        features = vectors.new_zeros([product_rows(n_tokens), 4 * hidden + vectors.size(1)])
        torch.index_select(vectors, 0, token, out=features[:n_tokens, 4 * hidden :])
        encoded = self.encoding.zeros(product_rows(len(vectors)), vectors.size(1))
        self.encoding.encode(vectors, encoded[: len(vectors)])
        between = features[:, 2 * hidden : 4 * hidden]
        self.first(encoded, token, batch_sizes, between)
        encoded = self.encoding.zeros(len(features), 2 * hidden)
        self.encoding.encode(between, encoded)
        self.second(encoded, torch.arange(n_tokens), batch_sizes, features[:, : 2 * hidden])
        result: Output = self.head(features, batch_sizes)
        return result


def scripted(network: Network, examples: Sequence[tuple[Tensor, Tensor, list[int]]]) -> Call:
    """The network run by TorchScript where that gives the same bits for examples, else the network itself.

    torch has deprecated TorchScript, and does not support it from Python 3.14 on. Its successor, torch.compile, would
    need a C++ compiler on every worker and a quarter of a minute at each start. A process for each core would have no
    lock to share, but would load everything once for each core.
    """
    if sys.version_info >= _UNSUPPORTED_PYTHON:
        return _as_it_is(network, "torch does not support it in this Python")
    try:
        with ignoring(DeprecationWarning):
            script = cast(Call, torch.jit.script(network))
        # It watches the first runs and optimizes what it saw.
        same = all(same_bits(script(*example), network(*example)) for example in [*examples] * 3)
    except Exception as error:  # TorchScript's own are of many kinds, and none stands in the way
        raise_shortage(error)
        return _as_it_is(network, first_line(error))
    return script if same else _as_it_is(network, "wrong results")


_UNSUPPORTED_PYTHON = (3, 14)


def same_bits(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two results are equal to the last bit."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _as_it_is(network: Network, fault: str) -> Network:
    _LOGGER.warning("the engine runs without TorchScript (%s): same results, slower in several threads", fault)
    return network
