"""Checkpoints of a training run: saved whole or not at all, and continued only by the run that they are of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmoji_core.checkpoints import check_archive
from torchmoji_core.durable import make_directories, replacing
from torchmoji_core.errors import InputError, RunError, first_line, raise_shortage
from torchmoji_core.files import open_regular
from torchmoji_core.model import check_weights


class Checkpoint:
    """Where a run saves how far it has come. Without a path it saves nowhere, and there is nothing to continue."""

    def __init__(self, path: Path | None, every_seconds: float, identity: Callable[[], Mapping[str, Any]]) -> None:
        """Args:
        path: file; its directory is created.
        every_seconds: time between two.
        identity: gives what must be equal for a run to go on from it; plain values.
        """
        self._path, self._every, self._identity = path, every_seconds, identity
        self._saved = time.monotonic()
        self.is_kept = "; the last checkpoint is kept" if path else ""
        """What an error that ends the run says of it."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file; a kill or a power cut in the middle leaves the one before.

        Args:
            state: what the run needs; tensors and plain values.

        Raises:
            RunError: if it cannot be written.
        """
        if self._path is None:
            return
        try:
            make_directories(self._path.parent)
            with replacing(self._path, self._path.with_name(self._path.name + ".tmp")) as temporary:
                torch.save({"identity": dict(self._identity()), **state}, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            raise RunError(f"checkpoint {self._path}: cannot be written ({first_line(error)})") from None
        self._saved = time.monotonic()

    def save_now_and_then(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """As `save`, if it is time to."""
        if self._path is not None and time.monotonic() - self._saved > self._every:
            self.save(state())

    def load(self) -> dict[str, Any] | None:
        """What was saved, tensors and plain values only; None if nothing was.

        Raises:
            InputError: if it cannot be read, is of another run, or its weights are no finite numbers.
        """
        path = self._path
        if path is None or not path.exists():
            return None
        identity = self._identity()
        with _or_afresh(path, "cannot be read"):
            with open_regular(path) as file:
                check_archive(file)  # else a small file may become a large one, or name a storage that it does not hold
                file.seek(0)
                state: dict[str, Any] = torch.load(file, weights_only=True)
            found = state.pop("identity")
            changed = sorted(name for name in identity.keys() | found.keys() if found.get(name) != identity.get(name))
            tensors = {} if changed else dict(_tensors("", state))
        if changed:
            names = ", ".join(map(str, changed))
            raise InputError(f"checkpoint {path} is of a run with other {names}; delete it or give another")
        try:
            check_weights(tensors)
        except InputError as error:
            raise InputError(f"checkpoint {path}: {error}; delete it to start afresh") from None
        return state

    @contextmanager
    def continuing(self) -> Iterator[None]:
        """Around all that takes a run's state from it.

        Raises:
            InputError: if what is in it does not fit the run, though it says that it is of it.
        """
        with _or_afresh(self._path, "does not fit this run"):
            yield


def restored(name: str, found: Any, own: Any) -> Any:
    """What was found in a checkpoint, in the place of a value of the run that has not begun.

    Raises:
        ValueError: if it is of another form: another type, a negative number, other keys or another shape.
    """
    if type(found) is not type(own):
        raise ValueError(f"{name} is a {type(found).__name__}")
    if isinstance(own, Tensor) and (found.shape, found.dtype) != (own.shape, own.dtype):
        raise ValueError(f"{name} has another shape or type")
    if isinstance(own, int | float) and not found >= 0:
        raise ValueError(f"{name} is {found}")
    if isinstance(own, dict | list):
        keys, own_keys = (part.keys() if isinstance(part, dict) else range(len(part)) for part in (found, own))
        if keys != own_keys:
            raise ValueError(f"{name} has other parts")
        for key in own_keys:
            restored(f"{name}.{key}", found[key], own[key])
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Go on with the moments of Adam that a checkpoint holds.

    Raises:
        ValueError: if they are of other parameters, or the options are others.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        restored("lr", group["lr"], options["lr"])
        if changed := [name for name in options if name != "lr" and group[name] != options[name]]:
            raise ValueError(f"the optimizer has another {changed[0]}")
    for parameter in parameters:
        moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.detach()) | {"step": torch.tensor(0.0)}
        restored("the optimizer's state", optimizer.state[parameter], moments)


@contextmanager
def _or_afresh(path: Path | None, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises many kinds for a damaged file
        raise_shortage(error)
        if isinstance(error, InputError) and str(error).startswith("checkpoint "):
            raise
        reason = first_line(error)
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise InputError(f"checkpoint {path}: {what} ({reason}); delete it to start afresh") from None


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested values by their paths, but for the numbers of steps."""
    if isinstance(value, Tensor):
        if value.ndim:
            yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(f"{name}.{key}".removeprefix("."), part)
