"""Which batches compiled loops run: where numba is installed, they are faster, and they give the same bits."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import TypeGuard

import torch
from torch import Tensor

from torchmoji_core.errors import first_line, raise_shortage
from torchmoji_core.inference.kernels import UNSPLIT_INPUTS, FastestInt8Weight, PackedWeight, Weight
from torchmoji_core.inference.network import Call, Network, same_bits
from torchmoji_core.processor import has_avx2, has_avx512

_LOGGER = logging.getLogger(__name__)


def most_rows(network: Network) -> int:
    """Rows of the largest batch that loops run faster than torch's kernels do; 0 where there are no loops."""
    output = network.head.output
    if not has_avx2() or not _is_float32(output) or find_spec("numba") is None:
        return 0
    if len(output.matrix()) == 1:  # whose products oneDNN adds up in another order
        return 0
    kind = network.first.ahead.recurrent
    if isinstance(kind, FastestInt8Weight):
        return sys.maxsize
    if not _is_float32(kind) or network.hidden > UNSPLIT_INPUTS:
        return 0
    return 1 if has_avx512() else sys.maxsize  # torch's kernels for floats use all of such registers, loops half


def _is_float32(weight: Weight) -> TypeGuard[PackedWeight]:
    return isinstance(weight, PackedWeight) and weight.activation == torch.float32


def by_loops(network: Network, otherwise: Call, examples: Sequence[tuple[Tensor, Tensor, list[int]]]) -> Call:
    """A network by loops where they give the same bits for examples as what runs it `otherwise`, else that.

    Loading them takes half a second, and the first time on a machine several.
    """
    try:
        import numba

        if numba.config.DISABLE_JIT:
            return _without(otherwise, "NUMBA_DISABLE_JIT is set")
        from torchmoji_core.inference import compiled_loops
        from torchmoji_core.inference.compiled_network import CompiledNetwork

        loops = CompiledNetwork(network)
        try:
            # Those of another version of torch may round elsewhere.
            same = all(same_bits(loops(*example), otherwise(*example)) for example in examples)
        except (EOFError, UnpicklingError) as error:
            folder = compiled_loops.run.stats.cache_path
            return _without(otherwise, f"{first_line(error)}: a file that keeps them is damaged, delete {folder}")
    except Exception as error:  # numba's own are of many kinds
        if not isinstance(error, OSError):  # a disk that is too full to keep loops has room for all else
            raise_shortage(error)
        return _without(otherwise, first_line(error))
    return loops if same else _without(otherwise, "they round otherwise than torch")


def _without(otherwise: Call, fault: str) -> Call:
    _LOGGER.warning("texts are scored without numba's loops (%s): same results, slower", fault)
    return otherwise
