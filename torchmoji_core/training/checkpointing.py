"""Checkpoints of a training run: saved whole or not at all, and continued only by the run that they are of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmoji_core import durable
from torchmoji_core.checkpoints import check_archive
from torchmoji_core.errors import InputError, RunError, raise_shortage
from torchmoji_core.files import open_regular
from torchmoji_core.model import check_weights


def save_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`; a kill or a power cut in the middle leaves the one before.

    Args:
        path: file; its directory is created.
        identity: what must be equal for a run to go on from it; plain values.
        state: what the run needs; tensors and plain values.

    Raises:
        RunError: if it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        durable.make_directories(path.parent)
        torch.save({"identity": dict(identity), **state}, temporary)
        durable.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
        raise RunError(f"checkpoint {path}: cannot be written ({str(error).splitlines()[0]})") from None


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only.

    Raises:
        InputError: if it cannot be read, is of another run, or its weights are no finite numbers.
    """
    try:
        with open_regular(path) as file:
            check_archive(file)  # else a small file may become a large one, or name a storage that it does not hold
            file.seek(0)
            state: dict[str, Any] = torch.load(file, weights_only=True)
        found = state.pop("identity")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise_shortage(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path}: cannot be read ({reason}); delete it to start afresh") from None
    if found != dict(identity):
        changed = sorted(name for name in identity.keys() | found.keys() if found.get(name) != identity.get(name))
        raise InputError(f"checkpoint {path} is of a run with other {', '.join(changed)}; delete it or give another")
    try:
        check_weights(dict(_tensors("", state)))
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}; delete it to start afresh") from None
    return state


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested values by their paths, but for the numbers of steps."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(f"{name}.{key}".removeprefix("."), part)
