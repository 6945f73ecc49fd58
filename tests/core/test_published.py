"""The published model by its name: fetched once, checked, kept; from a server on this machine, of a small size."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.bundles import assert_same, flip_a_byte
from tests.core.test_bundle_uri import Server
from tests.tensorflow_checkpoint import checkpoint, tensors_of
from tests.tiny import make_state, torch_file
from torchmoji_core import bundle_files, checkpoints, published
from torchmoji_core.bundle import Bundle, load_bundle, load_tokenizer
from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, pack_ids
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

WORDS = dict.fromkeys(word for text in checkpoints.KNOWN_ANSWERS for word in text.lower().split())
VOCABULARY = Vocabulary([*SPECIAL_TOKENS, *WORDS])
STATE = make_state(Dimensions(len(VOCABULARY), 6, 4, 64))
INDEX, DATA = checkpoint(tensors_of(STATE))
CONTENT = {
    "vocabulary.json": VOCABULARY.to_json().encode(),
    "emoji.ckpt.index": INDEX,
    "emoji.ckpt.data-00000-of-00001": DATA,
    "pytorch_model.bin": torch_file(checkpoints.parse_checkpoint(INDEX, "i", DATA)),
}
AUTHORS = ["emoji.ckpt.data-00000-of-00001", "emoji.ckpt.index", "vocabulary.json"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Has the files; the known answers are those of this small model."""
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "www").mkdir()
    server = Server(tmp_path / "www")
    for name, content in CONTENT.items():
        (server.root / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        if "data" in name:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        file = published.PublishedFile(f"{server.address}/{name}", len(content), digest)
        monkeypatch.setitem(published.FILES, name, file)
    bundle = expected()
    with torch.inference_mode():
        output = bundle.model()(pack_ids([bundle.tokenizer.ids(text) for text in checkpoints.KNOWN_ANSWERS]))
    best = map(tuple, output.logits.topk(5).indices.tolist())
    monkeypatch.setattr(checkpoints, "PUBLISHED", bundle.dimensions)
    monkeypatch.setattr(checkpoints, "KNOWN_ANSWERS", dict(zip(checkpoints.KNOWN_ANSWERS, best, strict=True)))
    monkeypatch.setattr(checkpoints, "KNOWN_EMBEDDING", tuple(np.round(output.embedding.mean(0)[:5].numpy(), 3)))
    yield server
    server.close()


def expected() -> Bundle:
    return Bundle("deepmoji", DEEPMOJI_EMOJIS, VOCABULARY, checkpoints.parse_checkpoint(INDEX, "i", DATA))


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        load_bundle("deepmoji")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_it_is_fetched_once(server: Server) -> None:
    load_bundle()
    assert server.asked() == []
    bundle = load_bundle("deepmoji")
    assert server.asked() == AUTHORS
    assert torch.equal(bundle.state["embed.weight"], expected().state["embed.weight"])
    assert_same(load_bundle("deepmoji"), bundle)
    assert load_tokenizer("deepmoji")[0].ids("love") == bundle.tokenizer.ids("love")
    assert server.asked() == []


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: b"?" + content[1:], lambda _: b""])
def test_an_altered_file_is_not_used_but_the_copy(server: Server, change: object, tmp_path: Path) -> None:
    altered = server.root / "emoji.ckpt.data-00000-of-00001"
    altered.write_bytes(change(DATA))  # type: ignore[operator]
    bundle = load_bundle("deepmoji")
    assert "pytorch_model.bin" in bundle.provenance
    assert torch.equal(bundle.state["embed.weight"], expected().state["embed.weight"])
    assert [path.name for path in (tmp_path / "cache" / "deepmoji").iterdir()] == ["bundle"]


def test_weights_without_the_known_answers_are_refused_and_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoints, "KNOWN_EMBEDDING", (9.0,) * 5)
    assert "not the published weights: the mean embedding" in refusal()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("names", published.WEIGHTS)
def test_without_a_network_files_are_put_where_the_error_says(
    server: Server, names: tuple[str, ...], tmp_path: Path
) -> None:
    for name in CONTENT:
        (server.root / name).unlink()
    folder = tmp_path / "cache" / "deepmoji"
    error = refusal()
    assert f"into {folder}" in error
    assert all(file.address in error for file in published.FILES.values())
    folder.mkdir(parents=True)
    for name in ("vocabulary.json", *names):
        (folder / name).write_bytes(CONTENT[name][:-1])
    assert f"{folder / 'vocabulary.json'}: is not the published file" in refusal()
    server.asked()
    for name in ("vocabulary.json", *names):
        (folder / name).write_bytes(CONTENT[name])
    assert_same(load_bundle("deepmoji"), load_bundle(folder / "bundle"))
    assert server.asked() == []


def test_without_a_network_the_reason_is_whole_and_short(server: Server) -> None:
    server.close()
    error = refusal()
    assert re.search(r": cannot be read \([^;]*Connection refused\); check the address", error)
    assert "Max retries" not in error


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where directories cannot be made")
    error = refusal()
    assert f"the cache {tmp_path / 'cache' / 'deepmoji'}: cannot be written (Not a directory)" in error
    assert "TORCHMOJI_CACHE" in error
    assert server.asked() == []


@pytest.mark.parametrize("name", [bundle_files.WEIGHTS, bundle_files.VOCABULARY, bundle_files.CONFIG])
@pytest.mark.parametrize("spoil", [flip_a_byte, Path.unlink])
def test_a_damaged_bundle_in_the_cache_is_refused_with_what_to_delete(
    server: Server, name: str, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    load_bundle("deepmoji")
    bundle = tmp_path / "cache" / "deepmoji" / "bundle"
    spoil(bundle / name)
    server.asked()
    assert refusal().endswith(f"; delete {bundle}, and it is fetched again")
    assert server.asked() == []
    shutil.rmtree(bundle)
    assert_same(load_bundle("deepmoji"), load_bundle(bundle))


def test_what_is_no_damage_is_not_to_be_deleted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    load_bundle("deepmoji")
    monkeypatch.setenv("TORCHMOJI_MODEL_LIMITS", "many")
    assert "delete" not in refusal()


def test_of_two_processes_the_first_bundle_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Bundle.save

    def after_another(self: Bundle, path: Path) -> None:
        save(self, path)
        save(self, path)

    monkeypatch.setattr(Bundle, "save", after_another)
    assert load_bundle("deepmoji").name == "deepmoji"


def test_a_full_disk_leaves_nothing(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name == bundle_files.WEIGHTS:
            write(self, content[:100])
            raise OSError(28, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", full)
        assert "No space left on device" in refusal()
    assert not list((tmp_path / "cache" / "deepmoji").iterdir())
    load_bundle("deepmoji")


def test_a_directory_of_that_name_is_meant(server: Server, bundle: Bundle) -> None:
    bundle.save("deepmoji")
    assert_same(load_bundle("deepmoji"), bundle)
    assert server.asked() == []
