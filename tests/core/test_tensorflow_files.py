"""TensorFlow's checkpoints are read without it; whatever else is refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tensorflow_checkpoint import checkpoint, field, tensors_of
from tests.tiny import make_state
from torchmoji_core.checkpoints import TENSORFLOW, checkpoint_format, parse_checkpoint, read_checkpoint
from torchmoji_core.errors import InputError
from torchmoji_core.tensorflow_files import crc32c

STATE = make_state()
TENSORS = tensors_of(STATE)
INDEX, DATA = checkpoint(TENSORS)


def test_the_state_is_read_from_the_index_and_the_data_beside_it(tmp_path: Path) -> None:
    (tmp_path / "emoji.ckpt.index").write_bytes(INDEX)
    with pytest.raises(InputError, match=r"emoji\.ckpt\.data-00000-of-00001"):
        read_checkpoint(str(tmp_path / "emoji.ckpt.index"))
    (tmp_path / "emoji.ckpt.data-00000-of-00001").write_bytes(DATA)
    found = read_checkpoint(str(tmp_path / "emoji.ckpt.index"))
    assert checkpoint_format(INDEX, "index") == TENSORFLOW
    assert found.keys() == STATE.keys()
    for name, tensor in found.items():
        if "bias_hh" in name:
            assert not tensor.any()
        elif "bias_ih" in name:
            torch.testing.assert_close(tensor, STATE[name] + STATE[name.replace("_ih", "_hh")])
        else:
            assert torch.equal(tensor, STATE[name]), name


def changed(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "make,expected",
    [
        (lambda: (INDEX, DATA[:-1]), "download the data again"),
        (lambda: (INDEX, changed(DATA, 9)), "does not match its check sum"),
        (lambda: (changed(INDEX, 9), DATA), "its index does not match its check sum"),
        (lambda: (INDEX[-48:], DATA), "its index is damaged"),
        (lambda: (bytes(2 << 20) + INDEX, DATA), "its index has 2,0"),
        (lambda: checkpoint(TENSORS, kind=1), "compressed (snappy)"),
        (lambda: checkpoint(TENSORS, header=field(1, 2)), "not one data file"),
        (lambda: checkpoint(TENSORS, header=field(1, 1) + field(2, 1)), "little-endian"),
        (lambda: checkpoint(TENSORS, more=field(1, 2)), "no float32 array"),
        (lambda: checkpoint(TENSORS, more=field(7, b"")), "only a part"),
        (lambda: checkpoint(TENSORS, more=field(5, 1 << 62)), "another size than its shape"),
        (lambda: checkpoint(TENSORS, more=field(4, 1 << 62)), "download the data again"),
        (lambda: checkpoint(TENSORS, more=field(4, b"x")), "another size"),
        (lambda: checkpoint({**TENSORS, "x" * 300: np.zeros(1)}), "a name that is too long"),
        (lambda: checkpoint({**TENSORS, "x\n": np.zeros(1)}), "unknown"),
        (lambda: checkpoint({"softmax/bias": np.zeros(64)}), "missing"),
    ],
)
def test_what_is_damaged_or_another_model_is_one_line(make: Callable[[], tuple[bytes, bytes]], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_checkpoint(make()[0], "emoji.ckpt.index", make()[1])
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_random_damage_is_one_line() -> None:
    draw = random.Random(1)
    for _ in range(200):
        with pytest.raises(InputError):
            parse_checkpoint(changed(INDEX, draw.randrange(len(INDEX) - 90)), "emoji.ckpt.index", DATA)


def test_the_check_sum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the usual example
    assert crc32c(bytes(32)) == 0x8A9136AA  # this and the next are of RFC 3720
    assert crc32c(bytes(range(32))) == 0x46DD794E
    content = random.Random(1).randbytes(10_000)  # longer than one byte a piece
    assert crc32c(content + crc32c(content).to_bytes(4, "little")) == 0x48674BC7  # the residue of any content
