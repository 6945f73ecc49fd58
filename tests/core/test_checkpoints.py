"""Checkpoints in all three formats give one state; whatever else is refused in one line, and never run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import SMALL, State, make_state, torch_file
from torchmoji_core import checkpoints
from torchmoji_core.bundle import Bundle
from torchmoji_core.checkpoints import (
    KERAS_HDF5,
    KNOWN_ANSWERS,
    PUBLISHED,
    TORCH_LEGACY,
    TORCH_ZIP,
    checkpoint_format,
    known_answers,
    looks_published,
    parse_checkpoint,
    read_checkpoint,
)
from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, ModelOutput, TorchMoji, dimensions_of, pack_ids
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary


def keras_layers(state: State) -> dict[str, dict[str, np.ndarray]]:
    """A state in Keras 2's names and orientation: layer -> array name -> array."""
    layers: dict[str, dict[str, np.ndarray]] = {
        "embedding": {"embedding/embeddings:0": state["embed.weight"].numpy()},
        "bi_lstm_0": {},
        "bi_lstm_1": {},
        "attlayer": {"attlayer/attlayer_W:0": state["attention_layer.attention_vector"].numpy()[:, None]},
        "softmax": {
            "softmax/kernel:0": state["output_layer.0.weight"].numpy().T,
            "softmax/bias:0": state["output_layer.0.bias"].numpy(),
        },
    }
    for number in (0, 1):
        for direction, suffix in (("forward", "_l0"), ("backward", "_l0_reverse")):
            ours, theirs = f"lstm_{number}", f"bi_lstm_{number}/{direction}_lstm_{number + 1}"
            bias = state[f"{ours}.bias_ih{suffix}"] + state[f"{ours}.bias_hh{suffix}"]
            layers[f"bi_lstm_{number}"] |= {
                f"{theirs}/kernel:0": state[f"{ours}.weight_ih{suffix}"].numpy().T,
                f"{theirs}/recurrent_kernel:0": state[f"{ours}.weight_hh{suffix}"].numpy().T,
                f"{theirs}/bias:0": bias.numpy(),
            }
    return layers


def keras_file(
    layers: dict[str, dict[str, np.ndarray]],
    root: str = "/",
    change: Callable[[h5py.Group], None] | None = None,
    strings: Any = "S",
) -> bytes:
    """What Keras' save_weights writes (layers without weights included), or what save writes with another root."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.require_group(root)
        group.attrs["layer_names"] = np.array(["input_1", *layers], strings)
        group.create_group("input_1").attrs["weight_names"] = []  # which h5py stores as floats
        for layer, arrays in layers.items():
            subgroup = group.create_group(layer)
            subgroup.attrs["weight_names"] = np.array(list(arrays), strings)
            for name, array in arrays.items():
                subgroup.create_dataset(name, data=array)
        if change is not None:
            change(group)
    return buffer.getvalue()


def outputs(state: State, rows: Sequence[Sequence[int]] = ([12, 13, 14, 15], [16], [17, 18, 59])) -> ModelOutput:
    model = TorchMoji(dimensions_of(state))
    model.load_state_dict(state)
    with torch.inference_mode():
        return model.eval()(pack_ids(rows))


def refusal(content: bytes, source: str = "weights.bin") -> str:
    """The message of the error that a checkpoint gives; one line, with the file's name."""
    with pytest.raises(InputError) as caught:
        parse_checkpoint(content, source)
    message = str(caught.value)
    assert source in message
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


STATE = make_state()
ZIP, LEGACY, KERAS = torch_file(STATE), torch_file(STATE, legacy=True), keras_file(keras_layers(STATE))


@pytest.mark.parametrize("content,expected", [(ZIP, TORCH_ZIP), (LEGACY, TORCH_LEGACY), (KERAS, KERAS_HDF5)])
@pytest.mark.parametrize("name", ["a.bin", "a.hdf5", "a"])
def test_format_is_decided_by_content(content: bytes, expected: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert checkpoint_format(content, name) == expected
    assert dimensions_of(read_checkpoint(str(path))) == SMALL
    assert dimensions_of(read_checkpoint(path.as_uri())) == SMALL


@pytest.mark.parametrize("content", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_torch_formats_give_the_saved_state(content: bytes) -> None:
    state = parse_checkpoint(content, "file")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("root", ["/", "model_weights"])
def test_keras_gives_the_saved_state_with_one_bias(root: str) -> None:
    state = parse_checkpoint(keras_file(keras_layers(STATE), root), "file")
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        if "bias_ih" in name:
            assert torch.equal(state[name], tensor + STATE[name.replace("_ih", "_hh")])
        elif "bias_hh" in name:
            assert not state[name].any()
        else:
            assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("content", [ZIP, LEGACY, KERAS], ids=["zip", "legacy", "keras"])
def test_all_formats_score_alike(content: bytes) -> None:
    for found, expected in zip(outputs(parse_checkpoint(content, "file")), outputs(STATE), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["zip", "legacy", "keras"])
def test_one_output_of_a_sigmoid_is_two_classes(form: str, vocabulary: Vocabulary) -> None:
    """As classifiers of two classes are trained by torchMoji and DeepMoji."""
    words = Vocabulary(vocabulary.tokens[:50])
    binary = make_state(Dimensions(len(words), SMALL.embedding, SMALL.hidden, classes=1))
    binary["output_layer.0.weight"] *= 20
    content = keras_file(keras_layers(binary)) if form == "keras" else torch_file(binary, legacy=form == "legacy")
    bundle = Bundle("binary", ("no", "yes"), words, parse_checkpoint(content, "file"))
    texts = ["I love my dog", "sad", "no rain, no sun"]
    expected = outputs(binary, [bundle.tokenizer.ids(text) for text in texts]).logits.sigmoid().numpy()
    assert np.ptp(expected) > 0.1
    probabilities = bundle.score(texts, "fp32").probabilities
    np.testing.assert_allclose(probabilities, np.hstack([1 - expected, expected]), rtol=0, atol=1e-5)


def test_keras_names_may_be_strings_of_variable_length() -> None:
    """As newer versions of h5py store them."""
    state = parse_checkpoint(keras_file(keras_layers(STATE), strings=h5py.string_dtype()), "file")
    assert torch.equal(state["embed.weight"], STATE["embed.weight"])


def test_keras_attention_vector_may_be_flat() -> None:
    layers = keras_layers(STATE)
    layers["attlayer"] = {name: array.ravel() for name, array in layers["attlayer"].items()}
    state = parse_checkpoint(keras_file(layers), "file")
    assert torch.equal(state["attention_layer.attention_vector"], STATE["attention_layer.attention_vector"])


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
@pytest.mark.parametrize("keras", [False, True])
def test_other_floats_become_float32(kind: torch.dtype, keras: bool) -> None:
    state = {name: tensor.to(kind) for name, tensor in STATE.items()}
    found = parse_checkpoint(keras_file(keras_layers(state)) if keras else torch_file(state), "file")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["embed.weight"], state["embed.weight"].float())


def test_big_endian_hdf5() -> None:
    layers = {
        layer: {name: array.astype(">f4") for name, array in arrays.items()}
        for layer, arrays in keras_layers(STATE).items()
    }
    assert torch.equal(parse_checkpoint(keras_file(layers), "file")["embed.weight"], STATE["embed.weight"])


def test_parameters_and_views_become_tensors_of_their_own() -> None:
    state: dict[str, Any] = {name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()}
    state["lstm_0.bias_hh_l0"] = state["lstm_0.bias_ih_l0"]
    state["embed.weight"] = STATE["embed.weight"].t().contiguous().t()
    found = parse_checkpoint(torch_file(state), "file")
    assert {type(tensor) for tensor in found.values()} == {Tensor}
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == len(found)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())
    assert torch.equal(found["embed.weight"], STATE["embed.weight"])


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["pickle 0", "pickle 2", "pickle 5", "zip", "legacy", "in a state"])
def test_nothing_is_run(form: str, tmp_path: Path) -> None:
    target = tmp_path / "created"
    bad = Malicious(target)
    content = {
        "pickle 0": lambda: pickle.dumps(bad, 0),
        "pickle 2": lambda: pickle.dumps(bad, 2),
        "pickle 5": lambda: pickle.dumps(bad, 5),
        "zip": lambda: torch_file(bad),
        "legacy": lambda: torch_file(bad, legacy=True),
        "in a state": lambda: torch_file({**STATE, "embed.weight": bad}),
    }[form]()
    message = refusal(content)
    assert not target.exists()
    if form != "pickle 0":  # the oldest pickles have no signature; they are just no checkpoint
        assert "refused" in message
    if form in ("pickle 0", "pickle 2", "pickle 5"):
        pickle.loads(content)
        assert target.exists(), "the file would have been created"


TWICE = b"h\x00\x86q\x00"
"""Operations: what is on the stack and is kept as number 0 becomes a pair of itself, kept as number 0."""
HOSTILE_PICKLES = {
    "a key of exponential size": b"})q\x00" + 40 * TWICE + b"K\x01s.",
    "a key that is nested deep": b"})" + 400_000 * b"\x85" + b"K\x01s.",
    "a function of exponential size": b")q\x00" + 60 * TWICE + b")R.",
    "the same, kept twice": b"})q\x00q\x01" + 40 * b"h\x01\x86q\x00q\x01" + b"K\x01s.",
    "a buffer of gigabytes": b"cbuiltins\nbytearray\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R.",
    "a buffer by its name in Python 2": b"c__builtin__\nbytearray\n\x8a\x05"
    + (1 << 38).to_bytes(5, "little")
    + b"\x85R.",
    "a tensor without values": b"ctorch\nFloatTensor\n\x8a\x05" + (1 << 34).to_bytes(5, "little") + b"\x85R.",
    "a storage without values": b"ctorch\nUntypedStorage\n\x8a\x05" + (1 << 34).to_bytes(5, "little") + b"\x85R.",
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/DATA.PKL", ""])
def test_what_torch_would_hash_or_make_for_ever_is_not_read(name: str, member: str) -> None:
    content = b"\x80\x02" + HOSTILE_PICKLES[name]
    if member:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(member, content)
            archive.writestr("archive/version", "3\n")
        assert "nothing in it was run" in refusal(buffer.getvalue())
    else:
        head = io.BytesIO(LEGACY)
        for _ in range(3):
            list(pickletools.genops(head))
        assert "nothing in it was run" in refusal(LEGACY[: head.tell()] + content + LEGACY[head.tell() :])


@pytest.mark.parametrize(
    "content,expected",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Dropbox</body></html>", "dl=1 rather than dl=0"),
        (b"\xef\xbb\xbf\r\n <html lang=en>", "dl=1 rather than dl=0"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"plain text", "neither a file of torch.save nor HDF5"),
        (bytes(5000), "neither a file of torch.save nor HDF5"),
    ],
)
def test_other_files_are_named(content: bytes, expected: str) -> None:
    assert expected in refusal(content)


@pytest.mark.parametrize("content", [ZIP, LEGACY, KERAS], ids=["zip", "legacy", "keras"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(content: bytes, share: float) -> None:
    assert "download it again" in refusal(content[: max(16, int(share * len(content)))])


def test_a_flipped_bit_in_a_zip_is_noticed() -> None:
    damaged = bytearray(ZIP)
    damaged[ZIP.index(STATE["embed.weight"].numpy().tobytes()) + 5] ^= 1
    assert "check sum" in refusal(bytes(damaged))


@pytest.mark.parametrize("content", [ZIP, LEGACY, KERAS], ids=["zip", "legacy", "keras"])
def test_random_damage_gives_a_state_or_one_line(content: bytes) -> None:
    generator = np.random.default_rng(3)
    for _ in range(40):
        damaged = bytearray(content)
        for position in generator.integers(0, min(len(content), 4000), 4):
            damaged[position] = generator.integers(256)
        try:
            parse_checkpoint(bytes(damaged), "file")
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            assert "weights_only" not in str(error)


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content,expected",
    [
        (lambda: torch_file(torch.zeros(3)), "not a state dict"),
        (lambda: torch_file([STATE]), "not a state dict"),
        (lambda: torch_file({}), "'embed.weight' is missing"),
        (lambda: torch_file({"state_dict": STATE}), "'state_dict' is a dict"),
        (lambda: torch_file({**STATE, "epoch": 3}), "'epoch' is a int"),
        (lambda: torch_file({**STATE, 3: torch.zeros(1)}), "entry 3"),
        (lambda: torch_file({**STATE, "extra": torch.zeros(1)}), "unknown ['extra']"),
        (lambda: torch_file({**STATE, "a\nb" * 500: torch.zeros(1)}), "unknown"),
        (lambda: torch_file({k: v for k, v in STATE.items() if "bias_hh" not in k}), "missing ['lstm_0.bias_hh_l0'"),
        (lambda: torch_file({**STATE, "lstm_1.weight_ih_l0": torch.zeros(16, 6)}), "expected [16, 8]"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(60)}), "shape"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(0, 6)}), "positive"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(60, 6, dtype=torch.int32)}), "torch.int32"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(60, 6, dtype=torch.complex64)}), "torch.complex64"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(60, 6).to_sparse()}), "no plain tensor"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(60, 6, device="meta")}), "no plain tensor"),
        (lambda: torch_file({**STATE, "embed.weight": torch.zeros(1, 6).expand(9_000_000, 6)}), "than the file holds"),
        (lambda: torch_file({**STATE, "output_layer.0.bias": torch.full((64,), torch.nan)}), "NaN or infinity"),
        (
            lambda: torch_file({**STATE, "output_layer.0.bias": torch.full((64,), 1e300, dtype=torch.float64)}),
            "NaN or infinity",
        ),
        (lambda: torch_file(torch.nn.Linear(2, 2)), "more than tensors (torch.nn.modules.linear.Linear)"),
        (lambda: torch_file({"embed.weight": np.zeros(3)}), "more than tensors"),
        (compressed, "compressed archive"),
    ],
)
def test_wrong_torch_content_is_refused(content: Callable[[], bytes], expected: str) -> None:
    assert expected in refusal(content())


def test_legacy_sizes_beyond_the_file_are_refused() -> None:
    """A shape in the pickle may not reach behind the values that came with it."""
    content = torch_file({"embed.weight": torch.zeros(100, 100)}, legacy=True)
    assert b"KdKd\x86" in content
    assert "download it again" in refusal(content.replace(b"KdKd\x86", b"KeKf\x86", 1))


def with_layer(layer: str, arrays: dict[str, np.ndarray] | None) -> bytes:
    layers = keras_layers(STATE)
    if arrays is None:
        del layers[layer]
    else:
        layers[layer] = arrays
    return keras_file(layers)


def changed(name: str, new: Callable[[h5py.Group], object]) -> bytes:
    """A Keras file in which one object was replaced."""

    def change(group: h5py.Group) -> None:
        del group[name]
        if (item := new(group)) is not None:
            group[name] = item

    return keras_file(keras_layers(STATE), change=change)


def huge(group: h5py.Group) -> None:
    group.create_dataset("softmax/softmax/bias:0", shape=(2**40, 2**40), dtype="f4", chunks=(1, 1))


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((64,), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "secret", (64,))
    group.create_virtual_dataset("softmax/softmax/bias:0", layout)


def stored_elsewhere(group: h5py.Group) -> None:
    group.create_dataset("softmax/softmax/bias:0", (64,), "f4", external=[("other", 0, 256)])


BIAS = "softmax/softmax/bias:0"


@pytest.mark.parametrize(
    "content,expected",
    [
        (lambda: keras_file({}), "missing ['attlayer', 'bi_lstm_0', 'bi_lstm_1', 'embedding', 'softmax']"),
        (lambda: with_layer("softmax", None), "missing ['softmax']"),
        (lambda: with_layer("dense_7", {"k": np.ones((2, 2))}), "unknown ['dense_7']"),
        (lambda: with_layer("softmax", {"k": np.ones((22, 64), np.float32)}), "1 arrays, expected 2"),
        (lambda: with_layer("bi_lstm_0", {f"W{n}": np.ones(4) for n in range(24)}), "Keras 1"),
        (lambda: with_layer("embedding", {"e": np.ones((60, 6), np.int64)}), "int64"),
        (lambda: with_layer("embedding", {"e": np.array([b"words"])}), "save float16"),
        (lambda: with_layer("embedding", {"e": np.ones((60, 7), np.float32)}), "expected"),
        (lambda: with_layer("embedding", {"e": np.ones((), np.float32)}), "shape"),
        (lambda: with_layer("embedding", {"e": np.full((60, 6), np.inf)}), "NaN or infinity"),
        (lambda: with_layer("embedding", {"e": np.full((60, 6), 1e300)}), "NaN or infinity"),
        (lambda: with_layer("attlayer", {"a": np.ones((22, 2), np.float32)}), "expected [22]"),
        (lambda: keras_file(keras_layers(STATE), "elsewhere"), "'model_weights' is missing"),
        (lambda: changed(BIAS, lambda group: None), "is missing"),
        (lambda: changed(BIAS, lambda group: h5py.SoftLink("/softmax/softmax/kernel:0")), "link to elsewhere"),
        (lambda: changed(BIAS, lambda group: h5py.ExternalLink("other.hdf5", "/secret")), "link to elsewhere"),
        (lambda: changed("softmax", lambda group: h5py.ExternalLink("other.hdf5", "/")), "link to elsewhere"),
        (lambda: changed(BIAS, virtual), "in another file"),
        (lambda: changed(BIAS, stored_elsewhere), "in another file"),
        (lambda: changed(BIAS, huge), "more weights than the file holds"),
        (lambda: changed(BIAS, lambda group: h5py.Empty("f4")), "not an array"),
        (lambda: changed(BIAS, lambda group: group.create_group("other")), "not an array"),
        (lambda: changed("softmax", lambda group: np.ones(3)), "weight_names"),
    ],
)
def test_wrong_keras_content_is_refused(content: Callable[[], bytes], expected: str) -> None:
    assert expected in refusal(content(), "weights.hdf5")


def test_compressed_keras_arrays_are_refused() -> None:
    content = changed(BIAS, lambda group: group.create_dataset("other", data=np.ones(64, "f4"), compression="gzip"))
    assert "h5repack" in refusal(content)


def test_without_h5py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "'hdf5'" in refusal(KERAS)
    assert parse_checkpoint(ZIP, "file")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, expected in [
        (tmp_path, "directory"),
        (tmp_path / "absent.bin", "No such file"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path / ("long" * 100), "cannot be read"),
        (tmp_path / "nul\0", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            read_checkpoint(str(path))
        assert len(str(caught.value).splitlines()) == 1


def test_too_large_a_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(ZIP)
    monkeypatch.setattr(checkpoints, "LARGEST_FILE", len(ZIP) - 1)
    with pytest.raises(InputError, match="has more than"):
        read_checkpoint(str(path))


def test_a_uri_is_read_whatever_follows_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "read_uri", lambda uri, limit: {"s3://bucket/w?dl=1": ZIP}[uri])
    assert dimensions_of(read_checkpoint("s3://bucket/w?dl=1")) == SMALL


def test_a_name_said_ten_thousand_times_is_not_read() -> None:
    """HDF5 may have a long text once and refer to it from each of many names."""

    def repeat(group: h5py.Group) -> None:
        group.attrs.create("layer_names", ["x" * 60_000] * 1_000, dtype=h5py.string_dtype())

    assert "'layer_names' has 1,000 names" in refusal(keras_file({}, change=repeat))


def test_a_name_of_a_weight_is_shown_in_brief() -> None:
    name: Any = "x"
    for _ in range(25):
        name = (name, name)
    assert "entry ((" in refusal(torch_file({name: 1}))


def small_bundle() -> Bundle:
    words = dict.fromkeys(word for text in KNOWN_ANSWERS for word in text.lower().split())
    vocabulary = Vocabulary([*SPECIAL_TOKENS, *words][:60])
    dimensions = Dimensions(len(vocabulary), 6, 4, 64)
    return Bundle("small", DEEPMOJI_EMOJIS, vocabulary, make_state(dimensions))


def test_known_answers_of_another_size_are_one_mismatch() -> None:
    assert looks_published(PUBLISHED)
    assert not looks_published(SMALL)
    assert len(known_answers(small_bundle())) == 1


def test_known_answers_are_compared_text_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small_bundle()
    monkeypatch.setattr(checkpoints, "PUBLISHED", bundle.dimensions)
    assert len(known_answers(bundle)) == len(KNOWN_ANSWERS) + 1

    model = bundle.model()
    with torch.inference_mode():
        alone = [model(pack_ids([bundle.tokenizer.ids(text)])) for text in KNOWN_ANSWERS]
    classes = [tuple(output.logits[0].argsort(descending=True)[:5].tolist()) for output in alone]
    mean = np.mean([output.embedding[0].numpy() for output in alone], axis=0)
    monkeypatch.setattr(checkpoints, "KNOWN_ANSWERS", dict(zip(KNOWN_ANSWERS, classes, strict=True)))
    monkeypatch.setattr(checkpoints, "KNOWN_EMBEDDING", tuple(np.round(mean[:5], 3).tolist()))
    assert known_answers(bundle) == []

    text = "This is shit"
    monkeypatch.setitem(checkpoints.KNOWN_ANSWERS, text, (1, 2, 3, 4, 5))  # type: ignore[arg-type]
    assert len(known_answers(bundle)) == 1
    assert text in known_answers(bundle)[0]
