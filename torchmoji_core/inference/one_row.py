"""Whether a single row is run by compiled loops: where numba is installed, and they give the same bits."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pickle import UnpicklingError

from torch import Tensor

from torchmoji_core.errors import first_line, raise_shortage
from torchmoji_core.inference.network import Network, Output, same_bits
from torchmoji_core.processor import has_avx2

_LOGGER = logging.getLogger(__name__)


OneRow = Callable[["array[int]"], Output]
"""Scores the token ids of a single row."""


def for_one_row(network: Network, table: Tensor, otherwise: OneRow, examples: Sequence[array[int]]) -> OneRow:
    """What runs a single row: loops where they give the same bits for examples as what does it `otherwise`, else that.

    Loading them takes half a second, and the first time on a machine several.
    """
    if not has_avx2() or find_spec("numba") is None:
        return otherwise
    try:
        import numba

        if numba.config.DISABLE_JIT:
            return _without(otherwise, "NUMBA_DISABLE_JIT is set")
        from torchmoji_core.inference import one_row_loops
        from torchmoji_core.inference.one_row_network import OneRowNetwork

        if not OneRowNetwork.is_possible(network):
            return otherwise
        loops = OneRowNetwork(network, table)
        # Those of another version of torch may round elsewhere.
        same = all(same_bits(loops(row), otherwise(row)) for row in examples)
    except (EOFError, UnpicklingError) as error:
        folder = one_row_loops.run.stats.cache_path
        return _without(otherwise, f"{first_line(error)}: a file that keeps them is damaged, delete {folder}")
    except Exception as error:  # numba's own are of many kinds
        if not isinstance(error, OSError):  # a disk that is too full to keep loops has room for all else
            raise_shortage(error)
        return _without(otherwise, first_line(error))
    return loops if same else _without(otherwise, "they round otherwise than torch")


def _without(otherwise: OneRow, fault: str) -> OneRow:
    _LOGGER.warning("texts by themselves are scored without numba's loops (%s): same results, slower", fault)
    return otherwise
