"""scikit-learn's view of a model: features of texts, and a classifier that is fine-tuned by `fit`.

>>> from sklearn.pipeline import make_pipeline
>>> make_pipeline(EmojiFeatures(), LogisticRegression()).fit(texts, labels)
>>> TweetClassifier(method="last", random_state=1).fit(texts, labels).predict(["what a day"])

Needs scikit-learn, the extra `sklearn`. X is always texts: a list, a Series, an array of strings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.texts import MISSING, Texts, as_texts, is_missing
from torchmoji_core.labels import are_emojis, short_name
from torchmoji_core.names import shown
from torchmoji_core.options import Range, check_choice, check_choices, check_number
from torchmoji_core.training.classifier import finetune, pair_of
from torchmoji_core.training.options import SEEDS, FineTuningOptions

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d
except ImportError:
    raise InputError(
        "EmojiFeatures and TweetClassifier need scikit-learn: pip install 'torchmoji-beam[sklearn]'"
    ) from None

FEATURES = ("probabilities", "embedding")


class EmojiFeatures(TransformerMixin, BaseEstimator):
    """Texts -> probabilities of the classes and embeddings, as columns for any model.

    A text without tokens gives zeros.
    """

    def __init__(
        self, model: str | Path | Bundle | None = None, features: str | Sequence[str] = FEATURES, missing: str = "error"
    ) -> None:
        """Args:
        model: a bundle, or where it is, as `load_bundle` takes it; None for the bundled model.
        features: `probabilities`, `embedding`, or both, in their order.
        missing: whether a missing text (None, NaN) is an "error", or an "empty" text.
        """
        self.model = model
        self.features = features
        self.missing = missing

    def fit(self, texts: Any = None, labels: Any = None) -> EmojiFeatures:
        """Load the model; nothing is learnt.

        Raises:
            InputError: if it cannot be loaded, or for unknown `features` or `missing`.
        """
        check_choices("features", self._chosen(), FEATURES)
        check_choice("missing", self.missing, MISSING)
        self.bundle_ = _loaded(self.model)
        return self

    def transform(self, texts: Texts) -> NDArray[np.float32]:
        """[n, features] of float32; see `get_feature_names_out`.

        Raises:
            TypeError: if texts are no iterable of strings; see `Bundle.score`.
        """
        check_is_fitted(self)
        scores = self.bundle_.score(as_texts(texts, self.missing, "EmojiFeatures")).fillna()
        return np.concatenate([getattr(scores, name) for name in self._chosen()], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """[features] of object: `emoji_joy`, ..., `class_anger` of a model of other classes, `embedding_0`, ..."""
        check_is_fitted(self)
        classes = self.bundle_.classes
        names = {
            "probabilities": [f"emoji_{short_name(name)}" for name in classes]
            if are_emojis(classes)
            else [f"class_{name}" for name in classes],
            "embedding": [f"embedding_{channel}" for channel in range(self.bundle_.dimensions.channels)],
        }
        return np.array([name for kind in self._chosen() for name in names[kind]], object)

    def _chosen(self) -> Sequence[str]:
        return (self.features,) if isinstance(self.features, str) else self.features

    def __sklearn_tags__(self) -> Tags:
        return _of_texts(super().__sklearn_tags__())


class TweetClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of texts, fine-tuned from a model as `pipelines.finetune` does.

    After `fit`, `bundle_` is the classifier as a bundle and `classes_` are the labels.
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        method: str = "chain-thaw",
        *,
        learning_rate: float = 1e-3,
        fine_learning_rate: float = 1e-4,
        epoch_samples: int = 1_000,
        most_epochs: int = 100,
        patience: int = 5,
        batch_size: int = 0,
        maxlen: int = 0,
        balanced: int = 0,
        extend_vocabulary: int = 10_000,
        embedding_dropout: float = 0.1,
        output_dropout: float = 0.5,
        word_dropout: float = 0.0,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        """Args:
        model: a bundle to start from, or where it is, as `load_bundle` takes it; None for the bundled model.
        method: `new`, `last`, `full` or `chain-thaw`.
        learning_rate, ..., word_dropout: see `FineTuningOptions`, whose defaults they have.
        validation_fraction: share of the texts that is kept to validate on, where `fit` is given none; of each class
            the same share, if it has enough texts.
        random_state: decides every random number; an int is the `seed` of `FineTuningOptions`.
        verbose: whether a progress bar is shown.
        """
        self.model = model
        self.method = method
        self.learning_rate = learning_rate
        self.fine_learning_rate = fine_learning_rate
        self.epoch_samples = epoch_samples
        self.most_epochs = most_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.maxlen = maxlen
        self.balanced = balanced
        self.extend_vocabulary = extend_vocabulary
        self.embedding_dropout = embedding_dropout
        self.output_dropout = output_dropout
        self.word_dropout = word_dropout
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, texts: Texts, labels: Iterable[Any], validation_data: tuple[Texts, Iterable[Any]] | None = None
    ) -> TweetClassifier:
        """Train.

        Args:
            texts: any iterable of strings.
            labels: [n], numbers, booleans or names; or [n, classes] of 0 and 1, where several classes can hold.
            validation_data: texts and labels that decide when a stage ends; None to draw them from `texts`.

        Raises:
            TypeError: if texts are no iterable of strings, or labels no list.
            ValueError: if labels are no classes.
            InputError: for anything else that is wrong with texts, labels or parameters, found before any training.
        """
        rows, truth = as_texts(texts, caller="TweetClassifier"), _labels(labels)
        if len(rows) != len(truth):
            raise InputError(f"{len(rows):,} texts and {len(truth):,} labels; each text needs its own")
        if truth.ndim == 2:
            self.classes_, encoded = np.arange(truth.shape[1]), truth.astype(bool)
        else:
            self.classes_, encoded = np.unique(truth, return_inverse=True)
        names = {each.name for each in dataclasses.fields(FineTuningOptions)}
        chosen = {name: value for name, value in self.get_params(deep=False).items() if name in names}
        options = FineTuningOptions(**chosen, seed=_seed(self.random_state))
        if validation_data is not None:
            more, their = pair_of(validation_data)
            validation_data = more, self._encoded(their)
        bundle = finetune(
            _loaded(self.model),
            rows,
            encoded.tolist(),
            splits=self._drawn(encoded, options.seed) if validation_data is None else None,
            validation_data=validation_data,
            classes=[str(label) for label in self.classes_.tolist()],
            options=options,
            progress_bar=self.verbose,
        )
        # What `load` makes labels of again that are no names.
        self.bundle_ = dataclasses.replace(bundle, provenance={**bundle.provenance, "labels": self.classes_.tolist()})
        return self

    def _drawn(self, encoded: NDArray[Any], seed: int) -> list[str]:
        """train or val of each text."""
        check_number("validation_fraction", self.validation_fraction, Range(0, below=1, is_open=True))
        count = len(encoded)
        drawn = max(1, round(self.validation_fraction * count))
        if drawn >= count:
            raise InputError(
                f"validation_fraction {self.validation_fraction} of {count:,} texts leaves none to train on; "
                "give more texts, a smaller share, or validation_data"
            )
        per_class = np.bincount(encoded) if encoded.ndim == 1 else np.zeros(1)
        is_enough = per_class.min() > 1 and min(drawn, count - drawn) >= len(per_class)
        _, chosen = train_test_split(
            np.arange(count), test_size=drawn, random_state=seed, stratify=encoded if is_enough else None
        )
        return np.where(np.isin(np.arange(count), chosen), "val", "train").tolist()

    def _encoded(self, labels: Iterable[Any]) -> list[Any]:
        """Labels of validation as numbers of classes."""
        truth = _labels(labels)
        if truth.ndim == 2:
            return truth.astype(bool).tolist()
        number = {label: index for index, label in enumerate(self.classes_.tolist())}
        unknown = [label for label in truth.tolist() if label not in number]
        if unknown:
            raise InputError(f"validation_data has a label {unknown[0]!r}, which no training text has")
        return [number[label] for label in truth.tolist()]

    def predict_proba(self, texts: Texts) -> NDArray[np.float32]:
        """[n, classes]; a row sums to 1, unless several classes can hold of a text.

        A text without tokens says nothing: all classes are equally likely, or, where several can hold, none is.
        """
        check_is_fitted(self)
        scores = self.bundle_.score(as_texts(texts, caller="TweetClassifier"))
        return scores.fillna(0.0 if self.bundle_.multi_label else 1 / len(self.classes_)).probabilities

    def predict(self, texts: Texts) -> NDArray[Any]:
        """The label of each text, [n]; or [n, classes] of 0 and 1, by the thresholds chosen on the validation texts."""
        probabilities = self.predict_proba(texts)
        if not self.bundle_.multi_label:
            return self.classes_[probabilities.argmax(axis=1)]
        thresholds = self.bundle_.provenance["thresholds"]
        return (probabilities >= np.array([thresholds[name] for name in self.bundle_.classes])).astype(np.int64)

    def save(self, path: str | Path) -> None:
        """Write the classifier as a bundle, which `pipelines.score` and `load_bundle` read; see `Bundle.save`."""
        check_is_fitted(self)
        self.bundle_.save(path)

    @classmethod
    def load(cls, source: str | Path) -> TweetClassifier:
        """A fitted classifier of a bundle that `save` or `pipelines.finetune` wrote, with default parameters.

        Raises:
            InputError: as `load_bundle`.
        """
        loaded = cls()
        loaded.bundle_ = bundle = load_bundle(source)
        labels = bundle.provenance.get("labels")
        is_ours = isinstance(labels, list) and [str(label) for label in labels] == list(bundle.classes)
        loaded.classes_ = np.array(labels if is_ours else bundle.classes)
        return loaded

    def __sklearn_tags__(self) -> Tags:
        tags = _of_texts(super().__sklearn_tags__())
        tags.classifier_tags.multi_label = True
        return tags


def _loaded(model: str | Path | Bundle | None) -> Bundle:
    return model if isinstance(model, Bundle) else load_bundle(model)


def _seed(state: Any) -> int:
    """An int itself; drawn from a RandomState or, of None, from numpy's own.

    Raises:
        InputError: for anything else.
    """
    if isinstance(state, (int, np.integer)):
        check_number("random_state", state, SEEDS, is_whole=True)
        return int(state)
    try:
        return int(check_random_state(state).randint(2**31 - 1))
    except ValueError:
        raise InputError(f"random_state must be a whole number, a RandomState or None, not {shown(state)}") from None


def _labels(labels: Iterable[Any]) -> NDArray[Any]:
    """[n] or [n, classes].

    Raises:
        TypeError: if they are no list.
        ValueError: if they are no labels of classes.
    """
    if isinstance(labels, Iterable) and not hasattr(labels, "__len__"):
        labels = list(labels)
    try:
        truth = np.asarray(labels)
    except ValueError:
        raise ValueError(
            "labels are lists of different lengths; where several classes can hold of a text, give [n, classes] of 0 "
            "and 1, as MultiLabelBinarizer makes it"
        ) from None
    if truth.ndim == 0:
        raise TypeError(f"labels must be a list, an array or a Series, not {shown(labels)}")
    if truth.ndim == 2 and truth.shape[1] == 1:
        truth = column_or_1d(truth, warn=True)
    if truth.ndim == 1:
        for row, label in enumerate(truth.tolist()):
            if is_missing(label):
                raise ValueError(
                    f"row {row} (counted from 0) has no label, but {label!r}; give it one, or leave it out"
                )
    if truth.dtype.kind in "mM":
        raise ValueError("labels are times; give names of classes, as by labels.astype(str)")
    check_classification_targets(truth)
    if truth.ndim == 2 and not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of several columns have 0 and 1, one for each class, and nothing else")
    return truth


def _of_texts(tags: Tags) -> Tags:
    tags.input_tags.two_d_array = False
    tags.input_tags.one_d_array = True
    tags.input_tags.string = True
    return tags
