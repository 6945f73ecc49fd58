"""A bundle survives storage in every form, and whatever is not one is refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from tests.tiny import forge_weights, with_huge_weights
from torchmoji_core.bundle import FORMAT, Bundle, load_bundle, load_tokenizer
from torchmoji_core.bundle_files import CARD, CONFIG, VOCABULARY, WEIGHTS
from torchmoji_core.durable import write_atomically
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.tokenizer import TOKENIZER_VERSION
from torchmoji_core.vocabulary import Vocabulary

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


@pytest.fixture
def directory(bundle: Bundle, tmp_path: Path) -> Path:
    """A saved bundle, free to be spoilt."""
    bundle.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def archive(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / "saved.zip"
    bundle.save(path)
    return path.read_bytes()


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


# --- saving and loading -------------------------------------------------------------------------------------------

FORMS = ["saved", "saved.zip", "new/folder/saved", "new/folder/saved.zip", "with.dots"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_text", [False, True], ids=["path", "text"])
def test_round_trip(bundle: Bundle, tmp_path: Path, form: str, as_text: bool) -> None:
    path = tmp_path / form
    bundle.save(str(path) if as_text else path)
    loaded = load_bundle(str(path) if as_text else path)
    assert_same(loaded, bundle)
    assert loaded.card == bundle.card
    assert path.is_file() == form.endswith(".zip")


def test_round_trip_of_half_precision(bundle: Bundle, tmp_path: Path) -> None:
    half = Bundle(
        bundle.name, bundle.classes, bundle.vocabulary, {name: tensor.half() for name, tensor in bundle.state.items()}
    )
    half.save(tmp_path / "half")
    assert_same(load_bundle(tmp_path / "half"), half)
    assert half.fingerprint != bundle.fingerprint
    assert all(parameter.dtype == torch.float32 for parameter in half.model().parameters())
    np.testing.assert_allclose(half.score(TEXTS).probabilities, bundle.score(TEXTS).probabilities, rtol=0, atol=0.02)


def test_the_fingerprint_survives_storage(bundle: Bundle, tmp_path: Path) -> None:
    assert len(bundle.fingerprint) == 64
    bundle.save(tmp_path / "first")
    load_bundle(tmp_path / "first").save(tmp_path / "second.zip")
    load_bundle(tmp_path / "second.zip").save(tmp_path / "third")
    for name in ("first", "second.zip", "third"):
        assert load_bundle(tmp_path / name).fingerprint == bundle.fingerprint
    assert files_of(tmp_path / "first") == files_of(tmp_path / "third")


def test_the_order_of_the_weights_does_not_change_the_fingerprint(bundle: Bundle) -> None:
    state = dict(reversed(bundle.state.items()))
    state["embed.weight"] = state["embed.weight"].t().contiguous().t()
    other = Bundle(
        bundle.name, bundle.classes, bundle.vocabulary, state, bundle.maxlen, bundle.provenance, "another card"
    )
    assert other.fingerprint == bundle.fingerprint


def test_any_change_of_a_weight_changes_the_fingerprint(bundle: Bundle) -> None:
    seen = {bundle.fingerprint}
    for name, tensor in bundle.state.items():
        changed = tensor.clone()
        changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(torch.inf))
        seen.add(Bundle(bundle.name, bundle.classes, bundle.vocabulary, {**bundle.state, name: changed}).fingerprint)
    assert len(seen) == 1 + len(bundle.state)


def test_whatever_decides_a_score_is_in_the_fingerprint(bundle: Bundle) -> None:
    tokens = bundle.vocabulary.tokens
    swapped = Vocabulary((*tokens[:-2], tokens[-1], tokens[-2]))
    others = [
        Bundle(bundle.name, bundle.classes, bundle.vocabulary, bundle.state, maxlen=29),
        Bundle(bundle.name, bundle.classes[::-1], bundle.vocabulary, bundle.state),
        Bundle(bundle.name, bundle.classes, swapped, bundle.state),
        Bundle(bundle.name, bundle.classes, bundle.vocabulary, bundle.state),
    ]
    assert len({other.fingerprint for other in others}) == 4


def test_a_file_uri_is_a_path(directory: Path, bundle: Bundle) -> None:
    assert load_bundle(directory.as_uri()).fingerprint == bundle.fingerprint


def test_home_is_understood(directory: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory.parent))
    assert load_bundle("~/saved").fingerprint == bundle.fingerprint


def test_the_card_is_optional(directory: Path) -> None:
    (directory / CARD).unlink()
    assert load_bundle(directory).card == ""


def test_a_tokenizer_is_loaded_without_the_weights(directory: Path, bundle: Bundle) -> None:
    (directory / WEIGHTS).write_bytes(b"not read")
    tokenizer, maxlen = load_tokenizer(directory)
    assert maxlen == bundle.maxlen
    assert tokenizer.ids(TEXTS[0]) == bundle.tokenizer.ids(TEXTS[0])


def test_a_model_is_its_own_copy(bundle: Bundle) -> None:
    fingerprint = bundle.score(TEXTS).probabilities.copy()
    with torch.no_grad():
        for parameter in bundle.model().parameters():
            parameter.fill_(0)
    np.testing.assert_array_equal(bundle.scorer().score(TEXTS).probabilities, fingerprint)


# --- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["target", "target.zip"])
def test_nothing_is_overwritten(bundle: Bundle, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    bundle.save(target)
    before = target.stat().st_mtime_ns
    assert "exists already" in error_of(lambda: bundle.save(target))
    assert target.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_empty_directory_is_filled(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bundle.save(tmp_path / "empty")
    assert load_bundle(tmp_path / "empty").fingerprint == bundle.fingerprint


@pytest.mark.parametrize("name", ["file/target", "file/target.zip", "file"])
def test_a_target_that_cannot_be_is_named(bundle: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in error_of(lambda: bundle.save(tmp_path / name))


@pytest.mark.parametrize("name", ["target", "target.zip"])
def test_a_full_disk_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left" in error_of(lambda: bundle.save(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_uri_is_no_target(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path("s3://bucket/x") would be a directory called s3: here."""
    monkeypatch.chdir(tmp_path)
    assert "s3://bucket/x" in error_of(lambda: bundle.save("s3://bucket/x"))
    assert list(tmp_path.iterdir()) == []


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "maxlen", "version", "reason"),
    [
        (63, 30, TOKENIZER_VERSION, "63 classes for 64 outputs"),
        (64, 0, TOKENIZER_VERSION, "maxlen must be a positive integer, not 0"),
        (64, True, TOKENIZER_VERSION, "maxlen must be a positive integer, not True"),
        (64, 30, "other-7", "made for tokenizer 'other-7'"),
    ],
)
def test_parts_that_do_not_belong_together(
    bundle: Bundle, classes: int, maxlen: int, version: str, reason: str
) -> None:
    assert reason in error_of(
        lambda: Bundle(
            "odd",
            bundle.classes[:classes],
            bundle.vocabulary,
            bundle.state,
            maxlen,
            tokenizer_version=version,
        )
    )


def test_a_class_given_twice(bundle: Bundle) -> None:
    twice = (*bundle.classes[:-1], bundle.classes[0])
    assert "one twice" in error_of(lambda: Bundle("odd", twice, bundle.vocabulary, bundle.state))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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


# --- archives -----------------------------------------------------------------------------------------------------


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["stored", "deflated", "bzip2", "lzma"],
)
@pytest.mark.parametrize("folder", ["", "folder/"])
def test_any_zip_of_the_files_will_do(
    directory: Path, bundle: Bundle, tmp_path: Path, compression: int, folder: str
) -> None:
    members = {f"{folder}{name}": content for name, content in files_of(directory).items()}
    (tmp_path / "made.zip").write_bytes(zip_of(members, compression))
    assert_same(load_bundle(tmp_path / "made.zip"), bundle)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "not a bundle"),
        ({"readme.txt": b"hello"}, "not a bundle"),
        ({CONFIG: b"{}"}, f"{VOCABULARY}, {WEIGHTS} missing"),
        ({f"a/b/{name}": b"{}" for name in (CONFIG, VOCABULARY, WEIGHTS)}, "not a bundle"),
        (dict.fromkeys((CONFIG, VOCABULARY, WEIGHTS), b"{}"), "format is None"),
    ],
    ids=["empty", "other content", "config only", "too deep", "empty files"],
)
def test_a_zip_of_something_else_is_refused(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    (tmp_path / "other.zip").write_bytes(zip_of(members))
    assert reason in error_of(lambda: load_bundle(tmp_path / "other.zip"))


def test_nothing_is_extracted(directory: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    files = files_of(directory)
    outside = {f"../{name}": b"outside" for name in ("x", "y.json")} | {f"{tmp_path}/absolute": b"outside"}
    (work / "good.zip").write_bytes(zip_of(outside | files))
    (work / "all_outside.zip").write_bytes(zip_of({f"../../{name}": content for name, content in files.items()}))
    before = sorted(tmp_path.rglob("*"))
    assert load_bundle("good.zip").fingerprint == bundle.fingerprint
    error_of(lambda: load_bundle("all_outside.zip"))
    assert sorted(tmp_path.rglob("*")) == before


@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    where=st.sampled_from(["anywhere", "directory", "headers"]),
    cut=st.one_of(st.none(), st.none(), st.floats(0, 1)),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_zip_is_noticed(
    tmp_path: Path,
    archive: bytes,
    bundle: Bundle,
    damage: list[tuple[float, int]],
    where: str,
    cut: float | None,
    compression: int,
) -> None:
    """Whatever bytes are changed: it is refused in one line, or what is read is what was written."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        # The card has no digest, and a checksum of the archive does not cover all that says where it is.
        content = bytearray(zip_of({name: file.read(name) for name in (CONFIG, VOCABULARY, WEIGHTS)}, compression))
    names = [start for start in range(len(content)) if content[start : start + 2] == b"PK"]
    for place, value in damage:
        if where == "anywhere":
            position = int(place * len(content))
        elif where == "directory":
            position = len(content) - 1 - int(place * 250)
        else:
            position = min(names[int(place * len(names))] + value % 60, len(content) - 1)
        content[position] = value
    if cut is not None:
        del content[int(cut * len(content)) :]
    path = tmp_path / "damaged.zip"
    path.write_bytes(content)
    try:
        loaded = load_bundle(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert loaded.fingerprint == bundle.fingerprint


def test_a_member_name_that_is_no_text_is_refused(tmp_path: Path, archive: bytes) -> None:
    name = "vocabulary.jsön".encode()
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {member: file.read(member) for member in file.namelist()}
    content = zip_of(members | {name.decode(): b""}).replace(name, name[:-2] + b"\xff\xff")
    (tmp_path / "odd.zip").write_bytes(content)
    assert "zip" in error_of(lambda: load_bundle(tmp_path / "odd.zip"))


# --- what asks for more than it is worth --------------------------------------------------------------------------


def reforged(archive: bytes, **contents: bytes) -> dict[str, bytes]:
    """Members of an archive with other files, under their digests."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {name: file.read(name) for name in (CONFIG, VOCABULARY, WEIGHTS)}
    members |= {{"vocabulary": VOCABULARY, "weights": WEIGHTS}[name]: content for name, content in contents.items()}
    config = json.loads(members[CONFIG])
    config["sha256"] = {name: hashlib.sha256(members[name]).hexdigest() for name in (VOCABULARY, WEIGHTS)}
    return members | {CONFIG: json.dumps(config).encode()}


def claiming(archive: bytes, **dimensions: int) -> dict[str, bytes]:
    """The same with other dimensions in its configuration."""
    members = reforged(archive)
    config = json.loads(members[CONFIG])
    config["dimensions"] |= dimensions
    return members | {CONFIG: json.dumps(config).encode()}


def expanding(size: int) -> bytes:
    """A file of zeros that looks like weights, for compression."""
    return struct.pack("<Q", 2) + b"{}" + bytes(size)


MEGA = 1 << 20
BOMBS: dict[str, tuple[Callable[[bytes], dict[str, bytes]], str]] = {
    "weights": (lambda archive: reforged(archive, weights=expanding(70 * MEGA)), f"{WEIGHTS} has 73,400,330 bytes"),
    "weights of a model that would be huge": (
        lambda archive: claiming(archive, vocabulary=200_000, embedding=1000) | {WEIGHTS: expanding(70 * MEGA)},
        "expands to more than 200 times",
    ),
    "a header": (
        lambda archive: reforged(
            zip_of(claiming(archive, vocabulary=100_000)), weights=struct.pack("<Q", 65 << 10) + b" " * (65 << 10)
        ),
        "header is too large",
    ),
    "a vocabulary": (lambda archive: reforged(archive, vocabulary=b"[" + b"[]," * MEGA), f"{VOCABULARY} has 3,145,729"),
    "a configuration": (
        lambda archive: reforged(archive) | {CONFIG: b"[" + b"[]," * (2 * MEGA)}, f"{CONFIG} has 6,291,457 bytes",
    ),
    "a card": (lambda archive: reforged(archive) | {CARD: b"#" * (2 * MEGA)}, f"{CARD} has 2,097,152 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_one_line(archive: bytes, tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    members = make(archive)
    (tmp_path / "bomb.zip").write_bytes(zip_of(members))
    assert reason in error_of(lambda: load_bundle(tmp_path / "bomb.zip"))
    if "expands" not in reason:
        (tmp_path / "bomb").mkdir()
        for file, content in members.items():
            (tmp_path / "bomb" / file).write_bytes(content)
        assert reason in error_of(lambda: load_bundle(tmp_path / "bomb"))


def liar(archive: bytes, size: int) -> bytes:
    """Its list says 26 bytes of weights, behind which there are many more."""
    content = bytearray(zip_of(reforged(archive, weights=bytes(size)), zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        local = file.getinfo(WEIGHTS).header_offset
    for start in (local + 22, content.rfind(b"PK\1\2") + 24):
        content[start : start + 4] = struct.pack("<I", 26)
    return bytes(content)


LOAD_ALL = """
import re, sys
from pathlib import Path
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError
from safetensors.torch import load_file  # torch, before its memory is taken into account
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_bundle(path)
    except InputError:
        continue
    sys.exit(f"{path} was loaded")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say how much memory was used")
def test_bombs_take_little_memory(archive: bytes, tmp_path: Path) -> None:
    """A zip of 71 kB took 1.9 GB, by weights in bzip2, of which a piece of 4 kB is gigabytes."""
    for number, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.zip").write_bytes(zip_of(make(archive)))
    (tmp_path / "liar.zip").write_bytes(liar(archive, 300 * MEGA))
    command = [sys.executable, "-c", LOAD_ALL, str(tmp_path)]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-1000:]
    assert int(finished.stdout) < 100


def test_an_archive_that_says_less_than_it_holds_is_read_no_further(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "liar.zip").write_bytes(liar(archive, MEGA))
    assert "is damaged" in error_of(lambda: load_bundle(tmp_path / "liar.zip"))


def test_an_archive_of_tens_of_thousands_of_members_is_refused(archive: bytes, tmp_path: Path) -> None:
    members = reforged(archive) | {f"{number}": b"" for number in range(25_000)}
    (tmp_path / "many.zip").write_bytes(zip_of(members, zipfile.ZIP_STORED))
    assert "list of members" in error_of(lambda: load_bundle(tmp_path / "many.zip"))


def test_an_archive_with_a_file_twice_is_refused(archive: bytes, tmp_path: Path) -> None:
    members = reforged(archive)
    (tmp_path / "twice.zip").write_bytes(zip_of({f"a/{CONFIG}": b"{}"} | members))
    assert f"{CONFIG} is in it twice" in error_of(lambda: load_bundle(tmp_path / "twice.zip"))


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


def test_names_of_files_that_are_no_text_survive_in_the_provenance(bundle: Bundle, tmp_path: Path) -> None:
    odd = replace(bundle, provenance={"data": "caf\udce9.csv"}, card="# caf\udce9\n")
    odd.save(tmp_path / "odd")
    json.loads((tmp_path / "odd" / CONFIG).read_bytes().decode())
    assert load_bundle(tmp_path / "odd").provenance == odd.provenance
    assert load_bundle(tmp_path / "odd").fingerprint == odd.fingerprint


def test_tokens_that_are_half_a_character_are_tokens(bundle: Bundle, tmp_path: Path) -> None:
    """A vocabulary that was made of UTF-16 has such. Nothing prints them."""
    tokens = (*bundle.vocabulary.tokens[:-1], "\ud83d")
    odd = replace(bundle, vocabulary=Vocabulary(tokens))
    odd.save(tmp_path / "odd")
    assert load_bundle(tmp_path / "odd").vocabulary.tokens == tokens
    assert load_bundle(tmp_path / "odd").tokenizer.ids("love \ud83d")[1] == len(tokens) - 1


@pytest.mark.parametrize("name", ["", CONFIG, VOCABULARY, WEIGHTS, CARD])
def test_a_pipe_is_no_bundle(directory: Path, name: str) -> None:
    path = directory / name if name else directory.parent / "pipe"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name == CARD:
        assert load_bundle(directory).card == ""
    else:
        assert re.search("named pipe|missing", error_of(lambda: load_bundle(directory if name else path)))


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0o007, 0o660, 0o770)]
)
def test_a_bundle_has_the_permissions_that_the_umask_leaves(
    bundle: Bundle, tmp_path: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        bundle.save(tmp_path / "new" / "bundle")
        bundle.save(tmp_path / "bundle.zip")
        write_atomically(tmp_path / "cache" / "file", b"")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {path: folder if (tmp_path / path).is_dir() else file for path in modes}


# --- remote bundles -----------------------------------------------------------------------------------------------


class Server:
    """A web server on this machine, and what was asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        requests = self.requests

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def asked(self) -> list[str]:
        """The files asked for since the last call."""
        asked = sorted(path.rpartition("/")[2] for path in self.requests)
        self.requests.clear()
        return asked

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves tmp_path/www; the cache is tmp_path/cache."""
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    yield server
    server.close()


def test_a_remote_directory_is_cached(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    bundle.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), bundle)
    assert server.asked() == [CONFIG, WEIGHTS, VOCABULARY]
    assert_same(load_bundle(f"{server.address}/model/"), bundle)
    assert server.asked() == [CONFIG]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_remote_zip_is_read(bundle: Bundle, server: Server) -> None:
    bundle.save(server.root / "model.zip")
    assert_same(load_bundle(f"{server.address}/model.zip"), bundle)
    assert_same(load_bundle(f"{server.address}/model.zip?version=1"), bundle)


def test_a_damaged_cache_is_noticed(bundle: Bundle, server: Server, tmp_path: Path) -> None:
    bundle.save(server.root / "model")
    load_bundle(f"{server.address}/model")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    server.asked()
    assert_same(load_bundle(f"{server.address}/model"), bundle)
    assert server.asked() == [CONFIG, WEIGHTS, VOCABULARY]
    load_bundle(f"{server.address}/model")
    assert server.asked() == [CONFIG]


def test_a_replaced_remote_bundle_is_not_mixed_with_the_cached_one(
    make_bundle: MakeBundle, bundle: Bundle, server: Server
) -> None:
    bundle.save(server.root / "model")
    load_bundle(f"{server.address}/model")
    shutil.rmtree(server.root / "model")
    other = make_bundle(seed=2)
    other.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), other)


def test_a_tokenizer_is_loaded_without_fetching_the_weights(bundle: Bundle, server: Server) -> None:
    bundle.save(server.root / "model")
    assert load_tokenizer(f"{server.address}/model")[1] == bundle.maxlen
    assert server.asked() == [CONFIG, VOCABULARY]


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Bundle, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "file" / "cache"))
    bundle.save(server.root / "model")
    assert_same(load_bundle(f"{server.address}/model"), bundle)


def spoil_remote(name: str, root: Path) -> None:
    if name == "no config":
        (root / CONFIG).unlink()
    elif name == "no weights":
        (root / WEIGHTS).unlink()
    elif name == "damaged weights":
        flip_a_byte(root / WEIGHTS)
    elif name == "a web page":
        (root / CONFIG).write_text("<!doctype html>\n<title>Sign in</title>")
    elif name == "digests that are paths":
        change_config(root, sha256={VOCABULARY: "../" * 20 + "0000", WEIGHTS: "/" * 64})
    elif name == "digests that are none":
        change_config(root, sha256="abc")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no config", "404"),
        ("no weights", "404"),
        ("damaged weights", "does not match the SHA-256"),
        ("a web page", "not that of a bundle"),
        ("digests that are paths", "does not match the SHA-256"),
        ("digests that are none", "not that of a bundle"),
    ],
)
def test_a_bad_remote_directory_is_refused_in_one_line(
    bundle: Bundle, server: Server, tmp_path: Path, name: str, reason: str
) -> None:
    bundle.save(server.root / "model")
    spoil_remote(name, server.root / "model")
    assert reason in error_of(lambda: load_bundle(f"{server.address}/model"))
    for path in (tmp_path / "cache").glob("*"):  # and what is kept is what it is called
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_missing_remote_zip_is_refused_in_one_line(server: Server) -> None:
    assert "404" in error_of(lambda: load_bundle(f"{server.address}/model.zip"))


def test_a_remote_zip_that_is_none_is_refused_in_one_line(server: Server) -> None:
    (server.root / "model.zip").write_text("<!doctype html>\n")
    assert "zip" in error_of(lambda: load_bundle(f"{server.address}/model.zip"))


def test_a_server_that_is_gone_is_refused_in_one_line(server: Server) -> None:
    server.close()
    message = error_of(lambda: load_bundle(f"{server.address}/model"))
    assert "cannot be read" in message


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
