"""What a pickle is made of, looked at before torch's restricted reader sees it. Runs nothing and builds nothing.

That reader refuses to run code, but not to make objects of any size (`bytearray`), and it hashes and prints whatever a
file holds: a tuple of itself twice, 40 levels deep, is said in 200 bytes and takes years to hash; one of 400,000 levels
ends the process. So what `torch.save` never writes is refused here.
"""

from __future__ import annotations

import pickletools
import re
from typing import IO

import torch

from torchmoji_core.errors import InputError

_REFUSED = "refused, and nothing in it was run; save the model's state_dict() and nothing else"
_MOST_TUPLES = 10_000
"""As many may be nested; a tensor takes five, a checkpoint of training 500."""
_MOST_REPEATED = 24
"""How often all values but texts and classes may be said again: thrice each, that is 3^8 at most. Torch hardly does."""
_PLAIN = {"collections OrderedDict", "torch.nn.parameter Parameter", "torch.serialization _get_layout", "torch Size"}
_REBUILT = re.compile(r"torch\._utils _rebuild_\w+|torch (?!Untyped|Typed)\w+Storage")
_AGAIN = {"BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "GLOBAL"}


def check_pickle(file: IO[bytes]) -> None:
    """Look through one pickle; the file is left behind it.

    Raises:
        InputError: without the file's name, if `torch.save` writes no such thing.
    """
    tuples = repeated = 0
    kept: dict[object, str] = {}
    last = ""
    try:
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name == "GLOBAL" and not _is_plain(str(argument)):
                found = str(argument).replace(" ", ".", 1)
                shortened = (re.match(r"[\w.]{1,80}", found) or [""])[0]
                raise InputError(f"holds more than tensors ({shortened}); {_REFUSED}")
            if "PUT" in name:
                kept[argument] = last  # which stays what it is if it is kept under two numbers
                continue
            tuples += "TUPLE" in name
            repeated += "GET" in name and kept.get(argument) not in _AGAIN
            if tuples > _MOST_TUPLES or repeated > _MOST_REPEATED:
                raise InputError(f"its values are nested as torch.save never does; {_REFUSED}")
            last = name
    except InputError:
        raise
    except Exception:  # of a damaged one: many kinds
        raise InputError("damaged or incomplete (a malformed pickle); download it again") from None


def _is_plain(name: str) -> bool:
    """Whether a class or function, "module name", is one that tensors are made of, and makes nothing else."""
    module, _, rest = name.partition(" ")
    kind = getattr(torch, rest, None) if module == "torch" else None
    return name in _PLAIN or bool(_REBUILT.fullmatch(name)) or isinstance(kind, (torch.dtype, torch.qscheme))
