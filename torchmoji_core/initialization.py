"""Starting values of a new model: what is drawn from which distribution, and who began so.

All begin with Glorot's uniform distribution for input kernels and the output layer, orthogonal recurrent kernels, and
biases of 0 except, at times, the forget gates'. They differ in what is below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from torchmoji_core.options import check_choice


def _uniform(bound: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: nn.init.uniform_(tensor, -bound, bound)


def _normal(deviation: float) -> Callable[[Tensor], Tensor]:
    # A tensor on the meta device has no values; to draw them all the same, torch would load 900 modules of its own.
    return lambda tensor: tensor if tensor.is_meta else nn.init.normal_(tensor, 0, deviation)


@dataclass(frozen=True)
class Initialization:
    """How a model begins. Values come from torch's global random state."""

    embedding: Callable[[Tensor], Tensor]
    """Overwrites the table of word embeddings."""
    attention: Callable[[Tensor], Tensor]
    """Overwrites the attention vector."""
    per_gate: bool
    """Whether an LSTM's kernels are four matrices, one of each gate, or one: of a single one Glorot's bound is smaller,
    and orthogonal are its columns of all gates together."""
    forget_bias: float
    """Of the forget gates."""


DEFAULT_INITIALIZATION = "mixed"
INITIALIZATIONS = {
    # Keras 2.0's defaults, as DeepMoji's code leaves them: `uniform` is from -0.05 to 0.05, for the attention vector
    # too; kernels of all gates are one array; `unit_forget_bias`.
    "keras": Initialization(_uniform(0.05), _uniform(0.05), per_gate=False, forget_bias=1),
    # torchMoji's `init_weights`. Its attention vector: as in T. Wolf's article about the port; the code of some of its
    # versions leaves it as the memory was.
    "torchmoji": Initialization(_uniform(0.5), _normal(0.05), per_gate=False, forget_bias=0),
    # What the bundled model and all figures of docs/results.md began with: embedding and attention vector as in
    # torchMoji, forget gates as in Keras, kernels as in Keras 1, where each gate has its own.
    DEFAULT_INITIALIZATION: Initialization(_uniform(0.5), _normal(0.05), per_gate=True, forget_bias=1),
}


def find_initialization(name: str) -> Initialization:
    """One of `INITIALIZATIONS`.

    Raises:
        InputError: if there is none of this name.
    """
    check_choice("initialization", name, INITIALIZATIONS)
    return INITIALIZATIONS[name]
