"""A bundle: everything needed to score, in one directory or one .zip file, and nothing that can execute.

    config.json         format, dimensions, classes, maxlen, tokenizer version, provenance, digests of the other files
    vocabulary.json     token -> id
    model.safetensors   weights, float32 or float16, under the published torchMoji names
    MODEL_CARD.md       for people; optional and not part of the fingerprint

config.json holds the SHA-256 of the two other files, so its own SHA-256 is a fingerprint of the content: same
fingerprint, same scores. Where a bundle comes from is the business of `bundle_files`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmoji_core.bundle_files import (
    CARD,
    CONFIG,
    VOCABULARY,
    WEIGHTS,
    Content,
    digest_of,
    open_bundle_files,
    write_bundle_files,
)
from torchmoji_core.dimensions import Dimensions
from torchmoji_core.errors import CONTENT_ERRORS, InputError, raise_shortage
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.limits import check_limit, model_limit
from torchmoji_core.locations import is_remote, local_path
from torchmoji_core.names import check_name, shown
from torchmoji_core.options import AT_LEAST_1, check_choice, check_number
from torchmoji_core.tokenizer import TOKENIZER_VERSION, Tokenizer
from torchmoji_core.vocabulary import UNKNOWN, Vocabulary, max_vocabulary_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from torchmoji_core.inference.scorer import Scorer
    from torchmoji_core.inference.scores import Scores
    from torchmoji_core.inference.texts import Texts
    from torchmoji_core.model import TorchMoji

FORMAT = "torchmoji-bundle-1"
EMBEDDING = "embed.weight"
"""Of the state: [vocabulary, channels]."""
DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "emoji64-small"
DEFAULT_MAXLEN = 30

_MAX_CONFIG_BYTES = 4 << 20
"""10,000 classes with a figure or two of each in the provenance come to one."""
_MAX_CARD_BYTES = 1 << 20
_MAX_HEADER_BYTES = 64 << 10
"""Names and shapes of 19 tensors take two thousand bytes."""
_BYTES_OF_A_WEIGHT = 8
"""At most; usually 2 or 4."""


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A loaded model with its vocabulary and class list.

    It can be pickled and copied, before and after it has scored, and used in forked processes.
    """

    name: str
    classes: tuple[str, ...]
    """Output i is classes[i]."""
    vocabulary: Vocabulary
    state: Mapping[str, Tensor]
    """Weights under the published names, as stored (float32 or float16)."""
    maxlen: int = DEFAULT_MAXLEN
    """Tokens read of each text; what is behind them has no influence."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from: free-form, JSON."""
    card: str = ""
    """The model card, Markdown."""
    tokenizer_version: str = TOKENIZER_VERSION
    multi_label: bool = False
    """Whether several classes, or none, can hold of a text: probabilities are then of each class by itself."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: if the parts do not belong together, or weights are no finite numbers.
        """
        dimensions = self.dimensions
        check_name("the name of a bundle", self.name)
        for name in self.classes:
            check_name(f"bundle {self.name}: the name of a class", name)
        if len(self.classes) != dimensions.classes or len(set(self.classes)) != len(self.classes):
            raise InputError(
                f"bundle {self.name}: {len(self.classes)} classes for {dimensions.classes} outputs, or one twice"
            )
        if len(self.classes) == 1 and not self.multi_label:
            raise InputError(
                f"bundle {self.name}: of one class alone every text has probability 1; a model with one output, of a "
                "sigmoid, is converted to two classes: convert or train it again"
            )
        if len(self.vocabulary) != dimensions.vocabulary:
            raise InputError(
                f"bundle {self.name}: the vocabulary has {len(self.vocabulary)} tokens, "
                f"the embedding {dimensions.vocabulary} rows; they belong to different models"
            )
        _check_weights(self.name, self.state)
        _check_reading(self.name, self.maxlen, self.tokenizer_version)

    def __repr__(self) -> str:
        sizes = (
            f"{len(self.classes):,} classes, {len(self.vocabulary):,} tokens, embedding of {self.dimensions.channels:,}"
        )
        return f"Bundle({self.name!r}: {sizes}, maxlen {self.maxlen})"

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made on demand: a copy, in this process or another, makes its own threads and caches."""
        kept = {each.name for each in fields(self)} | {"fingerprint"}
        return {name: value for name, value in vars(self).items() if name in kept}

    @cached_property
    def dimensions(self) -> Dimensions:
        from torchmoji_core.model import dimensions_of

        return dimensions_of(self.state)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.vocabulary)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over everything that decides a score."""
        return hashlib.sha256(self._files[CONFIG]).hexdigest()

    @cached_property
    def _files(self) -> dict[str, bytes]:
        from safetensors.torch import save

        vocabulary = self.vocabulary.to_json().encode()
        weights = save({name: tensor.contiguous() for name, tensor in sorted(self.state.items())})
        config = {
            "format": FORMAT,
            "name": self.name,
            "dimensions": vars(self.dimensions),
            "classes": list(self.classes),
            "maxlen": self.maxlen,
            **({"multi_label": True} if self.multi_label else {}),
            "tokenizer": self.tokenizer_version,
            "provenance": dict(self.provenance),
            "sha256": {
                VOCABULARY: hashlib.sha256(vocabulary).hexdigest(),
                WEIGHTS: hashlib.sha256(weights).hexdigest(),
            },
        }
        # Names of files, in the provenance, may be no UTF-8: Python's escape of a lone surrogate is that of JSON.
        content = (json.dumps(config, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
        card = self.card.encode("utf-8", "backslashreplace")
        return {CONFIG: content, VOCABULARY: vocabulary, WEIGHTS: weights, CARD: card}

    def model(self) -> TorchMoji:
        """A new module with these weights in float32, in evaluation mode."""
        import torch

        from torchmoji_core.model import TorchMoji

        with torch.device("meta"):
            model = TorchMoji(self.dimensions)
        model = model.to_empty(device="cpu")
        model.load_state_dict({name: tensor.float() for name, tensor in self.state.items()})
        return model.eval()

    def scorer(self, precision: str = "auto") -> Scorer:
        """A scorer that shares this bundle's tokenizer; keep it where many calls are made."""
        from torchmoji_core.inference.scorer import Scorer

        return Scorer(self, precision)

    def score(self, texts: Texts, precision: str = "auto", missing: str = "error") -> Scores:
        """Score texts, keeping their order; a text without tokens gives a row of NaN.

        Args:
            texts: any iterable of strings, read once: a list, a generator, a Series of pandas or polars, an array of
                numpy or Arrow. One text is given as [text].
            precision: one of `torchmoji_core.inference.PRECISIONS`.
            missing: whether a missing text (None, NaN) is an "error", or scored as an "empty" text.

        Raises:
            TypeError: if `texts` is one string, bytes, a mapping, a set or a table, or a row of it is no text; the
                message names the row, or the right call.
            InputError: for another `precision` or `missing`.
            RunError: if the model makes something else than finite numbers of a text with tokens.
        """
        check_choice("precision", precision, PRECISIONS)
        if precision not in self._scorers:
            self._scorers[precision] = self.scorer(precision)
        return self._scorers[precision].score(texts, missing)

    def encode(
        self,
        texts: str | Texts,
        batch_size: int = 4096,
        show_progress_bar: bool = False,
        normalize: bool = False,
        precision: str = "auto",
    ) -> NDArray[np.float32]:
        """Embeddings of texts, with the conventions of sentence-transformers.

        Args:
            texts: as of `score`; or one text.
            batch_size: texts that are scored together; memory depends on it, a text's embedding does not.
            show_progress_bar: on the standard error.
            normalize: whether each embedding is divided by its length, so that a dot product of two is their cosine.
            precision: as of `score`.

        Returns:
            [n, dimension] of float32, or [dimension] for one text; zeros for a text without tokens.

        Raises:
            TypeError, RunError: as `score`.
            InputError: for another `precision`, or a `batch_size` below 1.
        """
        import numpy as np
        from tqdm import trange

        from torchmoji_core.inference.scores import normalized
        from torchmoji_core.inference.texts import as_texts

        check_number("batch_size", batch_size, AT_LEAST_1, is_whole=True)
        rows = as_texts([texts] if isinstance(texts, str) else texts, caller="encode")
        parts = [
            self.score(rows[start : start + batch_size], precision).fillna().embedding
            # Once for no texts at all, which gives an array of no rows.
            for start in trange(0, max(len(rows), 1), batch_size, disable=not show_progress_bar)
        ]
        embeddings: NDArray[np.float32] = np.concatenate(parts)
        if normalize:
            embeddings = normalized(embeddings)
        return embeddings[0] if isinstance(texts, str) else embeddings

    @cached_property
    def _scorers(self) -> dict[str, Scorer]:
        return {}

    def extend(self, counts: Mapping[str, int], limit: int) -> Bundle:
        """A bundle that knows more words, to be trained on texts that have them.

        A new word begins with the embedding of the unknown token, as which it was read before: every text keeps its
        scores. (In DeepMoji and torchMoji new words begin with random numbers.)

        >>> wider = bundle.extend(count_words(texts), limit=10_000)

        Args:
            counts: how often words occur, as `torchmoji_core.count_words` has it. Those that the vocabulary lacks are
                added, most frequent first; those of more than 50 characters are not.
            limit: the most words that are added.

        Raises:
            InputError: if `limit` is negative or no whole number, `counts` are none, or the vocabulary becomes larger
                than one may be (`TORCHMOJI_MODEL_LIMITS`).
        """
        import torch

        vocabulary = self.vocabulary.extend(counts, limit)
        table = self.state[EMBEDDING]
        added = table[UNKNOWN].repeat(len(vocabulary) - len(table), 1)
        before = self.provenance.get("extended")
        extended = {**(before if isinstance(before, dict) else {}), self.fingerprint: len(added)}
        state = {**self.state, EMBEDDING: torch.cat((table, added))}
        return replace(self, vocabulary=vocabulary, state=state, provenance={**self.provenance, "extended": extended})

    def save(self, path: str | Path) -> None:
        """Write a directory, or one file if the name ends in .zip. The target appears whole or not at all.

        Raises:
            InputError: if the target exists and is not empty, or cannot be written.
        """
        if is_remote(str(path)):
            raise InputError(f"{path}: a bundle is written to a local path; save it there, then copy it")
        write_bundle_files({name: content for name, content in self._files.items() if content}, local_path(path))


def load_bundle(source: str | Path | None = None) -> Bundle:
    """Load a bundle and verify it against its own digests.

    Args:
        source: a directory, a .zip file, or a URI of either (https, s3, gs, az, file);
            the bundled default model if None; "deepmoji" for DeepMoji's published weights, which are fetched once
            (`torchmoji_core.published`), unless there is a file or directory of that name.

    Raises:
        InputError: if it cannot be found or read, is damaged, or is not a bundle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    with _located(source) as location:
        config, files, weights = _read_verified(location, (VOCABULARY, WEIGHTS, CARD))
        try:
            _check_header(weights, location)
            state = load_file(weights) if isinstance(weights, Path) else load(weights)
        # LookupError or AttributeError, by its version: a format that torch lacks.
        except (SafetensorError, *CONTENT_ERRORS, RuntimeError, OSError) as error:
            raise_shortage(error)
            raise InputError(f"bundle {location}: {WEIGHTS} cannot be read ({error})") from None
        _check_weights(location, state)
        bundle = Bundle(
            name=config["name"],
            classes=tuple(config["classes"]),
            vocabulary=_vocabulary(files, config, location),
            state=state,
            maxlen=config["maxlen"],
            multi_label=config.get("multi_label", False),
            provenance=config["provenance"],
            card=files[CARD].decode("utf-8", "replace"),
            tokenizer_version=config["tokenizer"],
        )
        if bundle.dimensions != config["dimensions"]:
            raise InputError(f"bundle {location}: its weights have other dimensions than {CONFIG} says; it was changed")
        # That of the files, not of a re-save.
        bundle.__dict__["fingerprint"] = hashlib.sha256(files[CONFIG]).hexdigest()
        return bundle


def load_tokenizer(source: str | Path | None = None) -> tuple[Tokenizer, int]:
    """The tokenizer of a bundle and its maxlen, without reading the weights.

    Raises:
        InputError: as `load_bundle`.
    """
    with _located(source) as location:
        config, files, _ = _read_verified(location, (VOCABULARY,))
        _check_reading(config["name"], config["maxlen"], config["tokenizer"])
        return Tokenizer(_vocabulary(files, config, location)), config["maxlen"]


def load_config(source: str | Path | None = None) -> tuple[dict[str, Any], str]:
    """The configuration of a bundle and its fingerprint, without reading the other files.

    Raises:
        InputError: as `load_bundle`.
    """
    with _located(source) as location:
        config, files, _ = _read_verified(location, ())
        return config, hashlib.sha256(files[CONFIG]).hexdigest()


def _vocabulary(files: Mapping[str, bytes], config: Mapping[str, Any], location: str) -> Vocabulary:
    return Vocabulary.from_json(files[VOCABULARY], f"{location}: {VOCABULARY}")


def _check_weights(name: str, state: Mapping[str, Tensor]) -> None:
    from torchmoji_core.model import check_weights

    try:
        check_weights(state)
    except InputError as error:
        raise InputError(f"bundle {name}: {error}; train or convert it again") from None


def _check_reading(name: str, maxlen: int, tokenizer_version: str) -> None:
    check_limit(f"bundle {name}: maxlen", "maxlen", maxlen)
    if tokenizer_version != TOKENIZER_VERSION:
        raise InputError(
            f"bundle {name} was made for tokenizer {shown(tokenizer_version)}; "
            f"this version has {TOKENIZER_VERSION!r}: use the version of this package that made it"
        )


def is_name(source: str | Path | None) -> bool:
    """Whether a model is given by the name of published weights, and not by a path or URI."""
    from torchmoji_core import published

    return isinstance(source, str) and source == published.NAME and not os.path.lexists(published.NAME)


@contextmanager
def _located(source: str | Path | None) -> Iterator[str]:
    """Where a model is; if it is one in the cache that cannot be used, the error says what to delete."""
    if not is_name(source):
        yield str(DEFAULT_BUNDLE if source is None else source)
        return
    from torchmoji_core import published

    location = str(published.bundle_directory(Bundle))
    try:
        yield location
    except InputError as error:
        remedy = f"; delete {location}, and it is fetched again" if location in str(error) else ""
        raise InputError(f"{error}{remedy}") from None


def _read_verified(location: str, names: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes], Content]:
    """The configuration, the files that are short, its own among them, and the weights, empty if not asked for."""
    most = _sizes(model_limit("vocabulary"), model_limit("weights"))
    with open_bundle_files(location, sum(most.values())) as bundle_files:
        content = bundle_files.read(CONFIG, most[CONFIG])
        config = parse_config(bytes(content), location) if isinstance(content, bytes) else {}
        contents: dict[str, Content] = {CONFIG: content}
        sizes = _sizes(config["dimensions"].vocabulary, config["dimensions"].weights)
        for name in names:
            contents[name] = bundle_files.read(name, sizes[name], str(config["sha256"].get(name, "")))
    for name in config["sha256"].keys() & contents.keys():
        try:
            digest = digest_of(contents[name])
        except OSError as error:
            raise InputError(f"bundle {location}: {name} cannot be read ({error.strerror})") from None
        if digest != config["sha256"][name]:
            raise InputError(
                f"bundle {location}: {name} does not match the SHA-256 in {CONFIG}; it is damaged or was changed"
            )
    files = {name: content for name, content in contents.items() if isinstance(content, bytes)}
    return config, files, contents.get(WEIGHTS, b"")


def _sizes(vocabulary: int, weights: int) -> dict[str, int]:
    """The most bytes that each file of a model may have."""
    return {
        CONFIG: _MAX_CONFIG_BYTES,
        VOCABULARY: max_vocabulary_bytes(vocabulary),
        WEIGHTS: _MAX_HEADER_BYTES + _BYTES_OF_A_WEIGHT * weights,
        CARD: _MAX_CARD_BYTES,
    }


def _check_header(weights: Content, location: str) -> None:
    """Refuse a header that is more than the names and shapes of a model's weights: it is read before them."""
    if isinstance(weights, bytes):
        start = weights[:8]
    else:
        with weights.open("rb") as file:
            start = file.read(8)
    if int.from_bytes(start, "little") > _MAX_HEADER_BYTES:
        raise InputError(f"bundle {location}: {WEIGHTS} cannot be read (its header is too large)")


def parse_config(content: bytes, location: str) -> dict[str, Any]:
    """Read config.json, checking that every field is there with its type.

    Returns:
        Its fields; `dimensions` as `Dimensions`.

    Raises:
        InputError: naming the field at fault.
    """
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _no_config(location, f"{CONFIG} is not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise _no_config(location, f"format is {shown(found)}, this version reads {FORMAT!r}")
    types = {"name": str, "dimensions": dict, "classes": list, "maxlen": int, "tokenizer": str, "provenance": dict}
    for name, kind in (types | {"sha256": dict}).items():
        if not isinstance(config.get(name), kind):
            raise _no_config(location, f"{CONFIG} needs {name!r} as {kind.__name__}")
    if not isinstance(config.get("multi_label", False), bool):
        raise _no_config(location, f"{CONFIG} needs 'multi_label' as bool")
    if config["sha256"].keys() != {VOCABULARY, WEIGHTS} or not all(
        isinstance(label, str) for label in config["classes"]
    ):
        raise _no_config(location, f"{CONFIG} needs class names, and digests of {VOCABULARY} and {WEIGHTS}")
    if config["dimensions"].keys() != {field.name for field in fields(Dimensions)}:
        raise _no_config(location, f"{CONFIG} needs 'dimensions' with the sizes of the model")
    try:
        check_name(f"{CONFIG}: the name of the bundle", config["name"])
        config["dimensions"] = Dimensions(**config["dimensions"])
    except InputError as error:
        raise InputError(f"bundle {location}: {error}") from None
    return config


def _no_config(location: str, reason: str) -> InputError:
    return InputError(f"bundle {location}: {reason}; its {CONFIG} is not that of a bundle, or of another version's")
