"""Bundles that are damaged, that contradict themselves, or that ask too much are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.core.bundles import (
    MEGA,
    MakeBundle,
    change_config,
    error_of,
    flip_a_byte,
    replace_file,
)
from tests.tiny import forge_weights, with_huge_weights
from torchmoji_core.bundle import FORMAT, Bundle, load_bundle, load_tokenizer
from torchmoji_core.bundle_files import CONFIG, VOCABULARY, WEIGHTS
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.vocabulary import Vocabulary


def other_weights(directory: Path, **changes: Tensor) -> None:
    state = dict(load_bundle(directory).state)
    state.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    replace_file(directory, WEIGHTS, save(state))


def without_last_token(vocabulary: bytes) -> bytes:
    return Vocabulary(Vocabulary.from_json(vocabulary).tokens[:-1]).to_json().encode()


def weights_in(dtype: str) -> bytes:
    """A file whose header is sound, with a number format that torch may not have."""
    header = json.dumps({"embed.weight": {"dtype": dtype, "shape": [16, 8], "data_offsets": [0, 128]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(128)


NO_WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan), "hold NaN or infinity as float32"),
    "infinity": (lambda tensor: torch.full_like(tensor, torch.inf), "hold NaN or infinity"),
    "minus infinity in half": (lambda tensor: torch.full_like(tensor, -torch.inf).half(), "hold NaN or infinity"),
    "beyond float32": (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "hold NaN or infinity"),
    "NaN in bfloat16": (lambda tensor: torch.full_like(tensor, torch.nan).bfloat16(), "hold NaN or infinity"),
    "int64": (lambda tensor: tensor.long(), "are int64"),
    "uint8": (lambda tensor: tensor.to(torch.uint8), "are uint8"),
    "bool": (lambda tensor: tensor > 0, "are bool"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "are complex64"),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "are float8_e4m3fn"),
}


@pytest.mark.parametrize("name", ["embed.weight", "lstm_1.bias_hh_l0_reverse", "output_layer.0.bias"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_weights_that_no_training_makes_are_refused(kind: str, name: str, bundle: Bundle, tmp_path: Path) -> None:
    """However they come: in a directory or .zip with digests that agree, or made here."""
    make, reason = NO_WEIGHTS[kind]
    bundle.save(tmp_path / "saved")
    forge_weights(tmp_path / "saved", {name: make(bundle.state[name])})
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "saved")
    for source in ("saved", "zipped.zip"):
        with pytest.raises(InputError, match=f"weights '{name}' {reason}.*; train or convert it again") as error:
            load_bundle(tmp_path / source)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"weights '{name}' {reason}"):
        dataclasses.replace(bundle, state={**bundle.state, name: make(bundle.state[name])})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_of_any_floating_type_are_taken(kind: torch.dtype, bundle: Bundle, tmp_path: Path) -> None:
    dataclasses.replace(bundle, state={name: tensor.to(kind) for name, tensor in bundle.state.items()}).save(
        tmp_path / "saved"
    )
    assert np.isfinite(load_bundle(tmp_path / "saved").score(["I love"]).probabilities).all()


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_scores_that_are_no_finite_numbers_are_an_error(precision: str, bundle: Bundle) -> None:
    """Of finite weights too; a text without tokens has no scores, and is none."""
    broken = dataclasses.replace(bundle, state=with_huge_weights(bundle))
    assert np.isnan(broken.score(["", " "], precision).probabilities).all()
    with pytest.raises(RunError, match=f"the model {bundle.name} gives scores that are no finite numbers; .* again"):
        broken.score(["", "I love my dog"], precision)


BAD_DIRECTORIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "no such directory or file"),
    "empty": (lambda path: [file.unlink() for file in path.iterdir()], f"{CONFIG}, {VOCABULARY}, {WEIGHTS} missing"),
    "no config": (lambda path: (path / CONFIG).unlink(), f"{CONFIG} missing"),
    "no vocabulary": (lambda path: (path / VOCABULARY).unlink(), f"{VOCABULARY} missing"),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS} missing"),
    "a directory as weights": (
        lambda path: ((path / WEIGHTS).unlink(), (path / WEIGHTS).mkdir()),
        f"{WEIGHTS} missing",
    ),
    "damaged weights": (lambda path: flip_a_byte(path / WEIGHTS), f"{WEIGHTS} does not match the SHA-256"),
    "cut weights": (lambda path: (path / WEIGHTS).write_bytes(b""), f"{WEIGHTS} does not match the SHA-256"),
    "damaged vocabulary": (lambda path: flip_a_byte(path / VOCABULARY), f"{VOCABULARY} does not match the SHA-256"),
    "config is not JSON": (lambda path: (path / CONFIG).write_text("{"), "not JSON"),
    "config is not UTF-8": (lambda path: (path / CONFIG).write_bytes(b'{"\xff": 1}'), "not JSON"),
    "config is too deep": (lambda path: (path / CONFIG).write_text("[" * 200_000), "not JSON"),
    "config is a list": (lambda path: (path / CONFIG).write_text("[]"), "format is 'list'"),
    "another format": (
        lambda path: change_config(path, format="bundle-9"),
        f"format is 'bundle-9', this version reads '{FORMAT}'",
    ),
    "no format": (lambda path: change_config(path, format=None), "format is None"),
    "no name": (lambda path: change_config(path, name=None), "needs 'name' as str"),
    "name of two lines": (lambda path: change_config(path, name="a\nb", maxlen=0), "name"),
    "classes as text": (lambda path: change_config(path, classes="😂"), "needs 'classes' as list"),
    "classes as numbers": (lambda path: change_config(path, classes=list(range(64))), "class names"),
    "too few classes": (lambda path: change_config(path, classes=["joy"]), "1 classes for 64 outputs"),
    "a class twice": (lambda path: change_config(path, classes=["joy"] * 64), "one twice"),
    "maxlen as text": (lambda path: change_config(path, maxlen="30"), "needs 'maxlen' as int"),
    "maxlen as truth": (lambda path: change_config(path, maxlen=True), "maxlen must be a positive integer"),
    "maxlen negative": (lambda path: change_config(path, maxlen=-1), "maxlen must be a positive integer"),
    "provenance as text": (lambda path: change_config(path, provenance="me"), "needs 'provenance' as dict"),
    "no digests": (lambda path: change_config(path, sha256={}), "digests"),
    "digests as numbers": (lambda path: change_config(path, sha256={VOCABULARY: 1, WEIGHTS: 2}), "SHA-256"),
    "a digest too many": (
        lambda path: change_config(path, sha256={VOCABULARY: "", WEIGHTS: "", "../x": ""}),
        "digests",
    ),
    "another tokenizer": (lambda path: change_config(path, tokenizer="deepmoji-9"), "tokenizer 'deepmoji-9'"),
    "vocabulary too small": (
        lambda path: replace_file(path, VOCABULARY, without_last_token((path / VOCABULARY).read_bytes())),
        "belong to different models",
    ),
    "vocabulary of another kind": (lambda path: replace_file(path, VOCABULARY, b'{"a": 0}'), "special tokens"),
    "weights of another size": (
        lambda path: other_weights(path, embed__weight=torch.zeros(11, 6)),
        "the embedding 11 rows; they belong to different models",
    ),
    "weights of another shape": (lambda path: other_weights(path, embed__weight=torch.zeros(40)), "another shape"),
    "weights with others": (lambda path: other_weights(path, extra=torch.zeros(1)), "unknown ['extra']"),
    "weights as a pickle": (lambda path: replace_file(path, WEIGHTS, b"\x80\x04."), f"{WEIGHTS} cannot be read"),
    "weights of a huge header": (lambda path: replace_file(path, WEIGHTS, b"\xff" * 64), f"{WEIGHTS} cannot be read"),
    "weights in a rare format": (lambda path: replace_file(path, WEIGHTS, weights_in("F8_E8M0")), "float8_e8m0fnu"),
    "weights in no format": (lambda path: replace_file(path, WEIGHTS, weights_in("F7")), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DIRECTORIES)
def test_a_bad_directory_is_refused_in_one_line(directory: Path, name: str) -> None:
    spoil, reason = BAD_DIRECTORIES[name]
    spoil(directory)
    message = error_of(lambda: load_bundle(directory))
    assert reason in message


@pytest.mark.parametrize("name", ["another tokenizer", "maxlen negative", "maxlen as truth", "name of two lines"])
def test_a_tokenizer_alone_is_checked_too(directory: Path, name: str) -> None:
    spoil, reason = BAD_DIRECTORIES[name]
    spoil(directory)
    assert reason in error_of(lambda: load_tokenizer(directory))


@pytest.mark.parametrize(
    "location",
    [
        "nowhere",
        "nowhere.zip",
        "nowhere/bundle",
        "x" * 300,
        "~no_such_user_here/bundle",
        "a\0b",
        "file:///nowhere/bundle",
        "bogus://host/bundle",
        "http://",
        "http://[/bundle",
        "/dev/null",
        __file__,
        __file__ + "/bundle",
    ],
    ids=lambda location: ascii(location)[:30],
)
def test_a_location_that_is_none_is_refused_in_one_line(location: str) -> None:
    assert location[:4] in error_of(lambda: load_bundle(location))
    error_of(lambda: load_tokenizer(location))


SIZES = {"vocabulary": 60, "embedding": 6, "hidden": 5, "classes": 64}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"maxlen": 10**9}, "maxlen must be a positive integer of at most 10,000, not 1000000000; for a larger model"),
        ({"maxlen": 10**4000}, "maxlen must be a positive integer of at most 10,000"),
        ({"classes": ["joy", "\ud800"]}, "name of a class must be one line of text"),
        ({"classes": ["joy", "a\nb"]}, "not 'a\\nb'"),
        ({"classes": ["joy", "\x1b[31m"]}, r"not '\x1b[31m'"),
        ({"classes": ["joy", "\u202eevil"]}, r"not '\u202eevil'"),
        ({"classes": ["joy", ""]}, "not ''"),
        ({"classes": ["joy", "x" * 300]}, "at most 256 characters"),
        ({"name": "\ud800"}, "name of the bundle must be one line"),
        ({"name": "x" * 10_000}, "at most 256 characters"),
        ({"tokenizer": "x" * MEGA}, "was made for tokenizer 'x"),
        ({"format": ["x" * MEGA] * 2}, "format is ['x"),
        ({"dimensions": None}, "needs 'dimensions' as dict"),
        ({"dimensions": {"vocabulary": 1}}, "needs 'dimensions' with the sizes"),
        ({"dimensions": SIZES | {"classes": 1e308}}, "'classes' must be a positive integer"),
        ({"dimensions": SIZES | {"classes": 10**18}}, "at most 10,000"),
        ({"dimensions": SIZES | {"vocabulary": 250_000, "embedding": 4096}}, "number of a model's weights must be"),
        ({"dimensions": SIZES | {"embedding": 7}}, "other dimensions than config.json says"),
    ],
    ids=range(18),
)  # fmt: skip
def test_a_configuration_that_asks_too_much_is_one_line(directory: Path, changes: dict[str, Any], reason: str) -> None:
    change_config(directory, **changes)
    message = error_of(lambda: load_bundle(directory))
    assert reason in message and len(message) < 1000


def test_a_larger_model_is_a_matter_of_the_environment(
    directory: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(directory, maxlen=25_000)
    assert "set the environment variable TORCHMOJI_MODEL_LIMITS=3" in error_of(lambda: load_bundle(directory))
    assert "TORCHMOJI_MODEL_LIMITS=3" in error_of(lambda: load_tokenizer(directory))
    monkeypatch.setenv("TORCHMOJI_MODEL_LIMITS", "3")
    assert load_bundle(directory).maxlen == load_tokenizer(directory)[1] == 25_000
    for factor in ("many", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("TORCHMOJI_MODEL_LIMITS", factor)
        assert "TORCHMOJI_MODEL_LIMITS must be a number" in error_of(lambda: load_bundle(directory))
