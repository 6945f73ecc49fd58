"""Bundles on the disk for the tests of bundles, and what is done to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchmoji_core.bundle import Bundle
from torchmoji_core.bundle_files import CONFIG
from torchmoji_core.errors import InputError

MakeBundle = Callable[..., Bundle]


TEXTS = ["I love my dog", "", "so sad :("]


def error_of(load: Callable[[], object]) -> str:
    """The message of the InputError that a call raises, which is one line."""
    with pytest.raises(InputError) as error:
        load()
    message = str(error.value)
    assert message.strip() and "\n" not in message and "\r" not in message
    return message


def assert_same(loaded: Bundle, bundle: Bundle) -> None:
    for name in ("name", "classes", "maxlen", "provenance", "tokenizer_version", "fingerprint", "dimensions"):
        assert getattr(loaded, name) == getattr(bundle, name), name
    assert loaded.vocabulary.tokens == bundle.vocabulary.tokens
    assert loaded.state.keys() == bundle.state.keys()
    for name, tensor in bundle.state.items():
        assert loaded.state[name].dtype == tensor.dtype
        assert torch.equal(loaded.state[name], tensor), name
    np.testing.assert_array_equal(loaded.score(TEXTS).probabilities, bundle.score(TEXTS).probabilities)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def change_config(directory: Path, **changes: Any) -> None:
    """Change fields of config.json; None takes one out."""
    config = json.loads((directory / CONFIG).read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (directory / CONFIG).write_text(json.dumps(config))


def replace_file(directory: Path, name: str, content: bytes) -> None:
    """Put another file into a bundle, with its digest."""
    (directory / name).write_bytes(content)
    digests = json.loads((directory / CONFIG).read_text())["sha256"]
    change_config(directory, sha256=digests | {name: hashlib.sha256(content).hexdigest()})


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


MEGA = 1 << 20
