"""Bundles: what is written is what is loaded, nothing is overwritten, and a fingerprint tells models apart."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.bundles import (
    TEXTS,
    assert_same,
    error_of,
    files_of,
)
from tests.tiny import tiny_bundle
from torchmoji_core import durable
from torchmoji_core.bundle import Bundle, load_bundle, load_tokenizer
from torchmoji_core.bundle_files import CARD, CONFIG, VOCABULARY, WEIGHTS
from torchmoji_core.durable import write_atomically
from torchmoji_core.tokenizer import TOKENIZER_VERSION
from torchmoji_core.training.words import count_words
from torchmoji_core.vocabulary import UNKNOWN, Vocabulary

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


def test_a_path_is_needed_to_save(bundle: Bundle) -> None:
    with pytest.raises(TypeError, match="a path is a str or a Path, not None"):
        bundle.save(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["target", "target.zip"])
def test_a_full_disk_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", full)
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


def test_one_class_alone_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    """Its probability would be 1 of every text; where several can hold, it is a probability like others."""
    assert "convert or train it again" in error_of(lambda: make_bundle(classes=1))
    bundle = make_bundle(classes=2)
    state = {
        **bundle.state,
        **{name: bundle.state[name][:1] for name in ("output_layer.0.weight", "output_layer.0.bias")},
    }
    tags = Bundle("tags", ("joy",), bundle.vocabulary, state, multi_label=True)
    assert 0 < tags.score(["good"]).probabilities[0, 0] < 1


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


def test_an_extended_bundle_knows_more_words_and_scores_all_texts_as_before(tmp_path: Path) -> None:
    bundle = tiny_bundle(["good", "day"], seed=3)
    texts = ["good day", "good hail", "sleet, hail and more", ""]
    wider = bundle.extend(count_words(texts), 2)
    assert wider.vocabulary.tokens == (*bundle.vocabulary.tokens, "hail", ",")
    assert wider.dimensions.vocabulary == len(wider.vocabulary) == len(bundle.vocabulary) + 2
    assert wider.tokenizer.ids("hail") != bundle.tokenizer.ids("hail") == [UNKNOWN]
    before, after = bundle.score(texts, precision="fp32"), wider.score(texts, precision="fp32")
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    np.testing.assert_array_equal(after.embedding, before.embedding)
    assert wider.fingerprint != bundle.fingerprint
    assert wider.provenance["extended"] == {bundle.fingerprint: 2}
    widest = wider.extend({"fog": 1}, 1)
    assert widest.provenance["extended"] == {bundle.fingerprint: 2, wider.fingerprint: 1}
    wider.save(tmp_path / "wider")
    assert load_bundle(tmp_path / "wider").vocabulary.tokens == wider.vocabulary.tokens
    assert len(bundle.extend({}, 10).vocabulary) == len(bundle.vocabulary)
