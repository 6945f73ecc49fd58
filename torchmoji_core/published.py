"""DeepMoji's published model by its name: fetched once, verified, converted, and kept as a bundle in the cache.

Whole files are held in memory until their digests are right, and the bundle appears whole or not at all. So nothing is
left of a download that ends in between, and of several processes at once the first one's bundle is kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torchmoji_core.bundle_files import CONFIG, cache_directory, check_writable, read_uri
from torchmoji_core.errors import InputError, first_line
from torchmoji_core.files import read_limited
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torchmoji_core.checkpoints import AnyBundle

NAME = "deepmoji"


class PublishedFile(NamedTuple):
    """Where a file is, and what it must be."""

    address: str
    most_bytes: int
    """Its size, where that is published."""
    digest: str
    """SHA-256, or the SHA-1 by which git names the content."""


_AUTHORS = "https://github.com/bfelbo/DeepMoji/raw/3edf6bb/model"
FILES = {
    "vocabulary.json": PublishedFile(
        f"{_AUTHORS}/vocabulary.json",
        1_064_975,
        "951e74fe4661b23e490e79d3a9496bd61d027b14b55dd99dd1ae2c1fc3e25f3e",
    ),
    "emoji.ckpt.index": PublishedFile(
        f"{_AUTHORS}/model/deepmoji_ckpts/emoji.ckpt.index",
        814,
        "82bad3194c0ecb80a1076aedc18a31dbbfd2ce37770d52d6cb8b565728cf43d0",
    ),
    "emoji.ckpt.data-00000-of-00001": PublishedFile(
        f"{_AUTHORS}/model/deepmoji_ckpts/emoji.ckpt.data-00000-of-00001",
        89_580_800,
        "fd223d0d2dbf6850c46f0aa3df85934813d82ba8",
    ),
    "pytorch_model.bin": PublishedFile(
        "https://huggingface.co/Uberduck/torchmoji/resolve/main/pytorch_model.bin",
        100_000_000,
        "8cbf6f7067d56aa1c2d571bb169f05fba16cea4c263c06fb3f217f42c591a978",
    ),
}
"""By the names that they have when they are put into the cache by hand."""
WEIGHTS = (("emoji.ckpt.index", "emoji.ckpt.data-00000-of-00001"), ("pytorch_model.bin",))
"""The same weights twice; the first that can be had are taken."""


def bundle_directory(make: Callable[..., AnyBundle]) -> Path:
    """The bundle in the cache; it is made if it is not there yet.

    Args:
        make: the class, which finds its bundles by this function.

    Raises:
        InputError: if no weights can be had, with the names and the place of files that can be put there by hand; if
            they do not give the known answers; or if the cache cannot be written.
    """
    remedy = "set the environment variable TORCHMOJI_CACHE to a directory"
    try:
        folder = cache_directory() / NAME
    except RuntimeError as error:  # no home
        raise InputError(f"model {NAME}: {error}; {remedy}") from None
    target = folder / "bundle"
    if not os.path.lexists(target):
        check_writable(f"model {NAME}: the cache {folder}", target, remedy)
        bundle = _fetched(make, folder)
        try:
            bundle.save(target)
        except InputError:
            if not (target / CONFIG).is_file():  # another process was first
                raise
    return target


def _fetched(make: Callable[..., AnyBundle], folder: Path) -> AnyBundle:
    """A bundle of the first weights that can be had; those at hand come first."""
    reasons = []
    for names in sorted(WEIGHTS, key=lambda names: not all(os.path.lexists(folder / name) for name in names)):
        try:
            return _converted(make, folder, names)
        except InputError as error:
            reasons.append(first_line(error))
    by_hand = " or ".join(" and ".join(FILES[name].address for name in names) for names in WEIGHTS)
    raise InputError(
        f"model {NAME}: {'; '.join(dict.fromkeys(reasons))}; without a network, put {FILES['vocabulary.json'].address} "
        f"and {by_hand} into {folder}, under the names that they have there"
    )


def _converted(make: Callable[..., AnyBundle], folder: Path, names: tuple[str, ...]) -> AnyBundle:
    from torchmoji_core.checkpoints import known_answers, parse_checkpoint

    vocabulary = Vocabulary.from_json(_verified(folder, "vocabulary.json"), "vocabulary.json")
    content, *data = [_verified(folder, name) for name in names]
    bundle = make(
        name=NAME,
        classes=DEEPMOJI_EMOJIS,
        vocabulary=vocabulary,
        state=parse_checkpoint(content, names[0], *data),
        provenance={name: FILES[name]._asdict() for name in ("vocabulary.json", *names)},
        card=f"# {NAME}\n\nDeepMoji's published weights (Felbo et al., 2017), from {FILES[names[0]].address}\n",
    )
    if mismatches := known_answers(bundle):
        raise InputError(f"{FILES[names[0]].address}: not the published weights: {mismatches[0]}")
    return bundle


def _verified(folder: Path, name: str) -> bytes:
    """The content of a file that was put into the cache by hand, or else of its address."""
    file = FILES[name]
    path = folder / name
    if os.path.lexists(path):
        source, content = str(path), read_limited(f"file {path}", path, file.most_bytes)
    else:
        source, content = file.address, read_uri(file.address, file.most_bytes)
    git_name = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if file.digest not in (hashlib.sha256(content).hexdigest(), git_name):
        raise InputError(f"{source}: is not the published file ({len(content):,} bytes of another digest); remove it")
    return content
