"""Checkpoints as TensorFlow writes them: the layout of DeepMoji's, of any size."""

from __future__ import annotations

import struct

import numpy as np

from tests.tiny import State
from torchmoji_core.tensorflow_files import MAGIC, masked_crc32c


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensors_of(state: State) -> dict[str, np.ndarray]:
    """A state under the names, and in the orientation, of DeepMoji's checkpoint."""
    tensors = {
        "embedding/embeddings": state["embed.weight"].numpy(),
        "attlayer/attlayer_W": state["attention_layer.attention_vector"].numpy()[:, None],
        "softmax/kernel": state["output_layer.0.weight"].numpy().T,
        "softmax/bias": state["output_layer.0.bias"].numpy(),
    }
    for number in (0, 1):
        for direction, suffix in (("forward", "_l0"), ("backward", "_l0_reverse")):
            ours, theirs = f"lstm_{number}", f"bi_lstm_{number}/{direction}_lstm_{number + 1}"
            tensors |= {
                f"{theirs}/kernel": state[f"{ours}.weight_ih{suffix}"].numpy().T,
                f"{theirs}/recurrent_kernel": state[f"{ours}.weight_hh{suffix}"].numpy().T,
                f"{theirs}/bias": (state[f"{ours}.bias_ih{suffix}"] + state[f"{ours}.bias_hh{suffix}"]).numpy(),
            }
    return tensors


def block(entries: dict[bytes, bytes], kind: int = 0) -> bytes:
    """Entries with what their names share, one restart, the kind of compression and the check sum."""
    content, last = b"", b""
    for name, value in entries.items():
        shared = next(
            (i for i, (a, b) in enumerate(zip(name, last, strict=False)) if a != b), min(len(name), len(last))
        )
        content += varint(shared) + varint(len(name) - shared) + varint(len(value)) + name[shared:] + value
        last = name
    content += struct.pack("<II", 0, 1) + bytes([kind])
    return content + struct.pack("<I", masked_crc32c(content))


def checkpoint(
    tensors: dict[str, np.ndarray], header: bytes = field(1, 1), kind: int = 0, more: bytes = b""
) -> tuple[bytes, bytes]:
    """The index and the data; `more` is added to each tensor's entry."""
    entries, data = {b"": header}, b""
    for name, array in sorted(tensors.items()):
        values = np.ascontiguousarray(array, "<f4").tobytes()
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        entry = field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(values))
        entries[name.encode()] = entry + b"\x35" + struct.pack("<I", masked_crc32c(values)) + more
        data += values
    first, none = block(entries, kind), block({})
    places = [varint(0) + varint(len(first) - 5), varint(len(first)) + varint(len(none) - 5)]
    last = block({b"t": places[0]})
    places.append(varint(len(first + none)) + varint(len(last) - 5))
    return first + none + last + (places[1] + places[2]).ljust(40, b"\0") + MAGIC, data
