"""From labelled texts and a pretrained bundle to a bundle of a classifier, with its scores and its model card.

One model is trained for all classes, with a threshold for each. The paper trains a binary model for each class; but a
bundle holds one model, and a user waits for one run instead of seven.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.texts import Texts, as_texts
from torchmoji_core.locations import local_path
from torchmoji_core.model import Dimensions
from torchmoji_core.names import check_name, shown
from torchmoji_core.training.cards import classifier_card
from torchmoji_core.training.dataset import TweetDataset
from torchmoji_core.training.finetuning import FineTuning, reading_of, starting_model
from torchmoji_core.training.labelled_texts import LabelledTexts, check_ratios, column_of, label_texts, one_hot
from torchmoji_core.training.metrics import best_thresholds, classification_scores
from torchmoji_core.training.options import FineTuningOptions
from torchmoji_core.training.prediction import forward
from torchmoji_core.training.words import count_words


class ClassifierTraining:
    """A task made ready: everything that the user can have got wrong is found here, before any training."""

    def __init__(
        self,
        splits: Mapping[str, LabelledTexts],
        base: Bundle,
        options: FineTuningOptions,
        *,
        size: tuple[int, int] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Args:
            splits: train, val and test, of which the last may be empty.
            base: the pretrained model; for method `new` only its vocabulary and size are used.
            options: how to train.
            size: embedding and hidden channels of a `new` model, if not those of `base`.
            checkpoint: file to save to and to resume from.

        Raises:
            InputError: if a text has no tokens, or a size is given for another method than `new`.
        """
        if size is not None and options.method != "new":
            raise InputError(f"method {options.method!r} keeps the size of the model that it starts from")
        self.base, self.options, self.splits = base, options, splits
        self.classes = splits["train"].classes
        self.multi_label = splits["train"].multi_label
        if options.method != "last" and options.extend_vocabulary:
            base = base.extend(count_words(splits["train"].texts), options.extend_vocabulary)
        self.vocabulary = base.vocabulary
        tokenizer = base.tokenizer
        lengths = [len(tokenizer.tokens(text)) for text in splits["train"].texts]
        self.maxlen, self.batch_size = reading_of(lengths, options)
        self.data: dict[str, TweetDataset] = {}
        for name, part in splits.items():
            try:
                self.data[name] = TweetDataset.from_texts(
                    part.texts, part.labels, len(self.classes), tokenizer, self.maxlen
                )
            except InputError as error:
                raise InputError(f"split {name}: {error}") from None
        try:
            embedding, hidden = size or (base.dimensions.embedding, base.dimensions.hidden)
        except (TypeError, ValueError):
            raise InputError(f"size must be two numbers, of embedding and hidden channels, not {shown(size)}") from None
        dimensions = Dimensions(len(self.vocabulary), embedding, hidden, len(self.classes))
        model = starting_model(None if options.method == "new" else base.state, dimensions, options)
        self.training = FineTuning(
            model, self.data["train"], self.data["val"], options, checkpoint, batch_size=self.batch_size
        )

    @property
    def added_words(self) -> int:
        return len(self.vocabulary) - len(self.base.vocabulary)

    def run(self, report: Callable[[dict[str, Any]], None], name: str, data_name: str) -> Bundle:
        """Train, choose thresholds on the validation texts, measure on the test texts, and put it all in a bundle.

        Args:
            report: see `FineTuning.run`.
            name: of the bundle.
            data_name: of the data, for the card.
        """
        model = self.training.run(report)
        # Scores are those of the weights as they are stored.
        state = {key: tensor.half() for key, tensor in model.state_dict().items()}
        model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
        probabilities = {
            split: probabilities_of(forward(model, data.corpus)[0], self.multi_label)
            for split, data in self.data.items()
            if len(data)
        }
        truth = {split: one_hot(self.data[split].labels, len(self.classes)) for split in probabilities}
        thresholds = best_thresholds(probabilities["val"], truth["val"])
        scores = {
            split: classification_scores(probabilities[split], truth[split], thresholds, self.multi_label)
            for split in probabilities
        }
        options = asdict(self.options)
        provenance = {
            "made_by": "python -m pipelines.finetune",
            "data": data_name,
            "base": None if self.options.method == "new" else {self.base.name: self.base.fingerprint},
            "texts": {split: len(data) for split, data in self.data.items()},
            "words_added": self.added_words,
            "batch_size": self.batch_size,
            "options": {key: value for key, value in options.items() if key != "checkpoint_seconds"},
            "thresholds": dict(zip(self.classes, thresholds.tolist(), strict=True)),
            "scores": {split: {key: round(value, 4) for key, value in part.items()} for split, part in scores.items()},
        }
        bundle = Bundle(
            name=name,
            classes=self.classes,
            vocabulary=self.vocabulary,
            state=state,
            maxlen=self.maxlen,
            multi_label=self.multi_label,
            provenance=provenance,
        )
        return replace(bundle, card=classifier_card(bundle))


def finetune(
    bundle: Bundle,
    texts: Texts,
    labels: Iterable[Any],
    *,
    splits: Iterable[str] | None = None,
    validation_data: tuple[Texts, Iterable[Any]] | None = None,
    split_ratios: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    options: FineTuningOptions = FineTuningOptions(),  # noqa: B008
    size: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    name: str = "classifier",
    data_name: str = "texts",
    progress_bar: bool = False,
) -> Bundle:
    """Train a classifier of labelled texts from a pretrained model; `pipelines.finetune` as a function.

    >>> moods = finetune(load_bundle(), texts, ["glad", "sad", ...], options=FineTuningOptions(method="last"))
    >>> moods.score(["what a day"]).predict(), moods.provenance["scores"]["test"]

    Of `splits`, `validation_data` and `split_ratios` one may be given. Without them a tenth of the texts is kept to
    validate on, and a tenth to measure on.

    Args:
        bundle: the pretrained model; for method `new` only its vocabulary and size are used.
        texts: any iterable of strings.
        labels: of each text, as `label_texts` takes them: whole numbers, booleans or names; or lists of them, where
            several classes can hold of a text.
        splits: of each text: train, val or test.
        validation_data: texts and labels of their own to validate on; all of `texts` are then trained on.
        split_ratios: shares of train, val and test, to which the texts are drawn by the seed; (0.7, 0.1, 0.2) in
            DeepMoji's `split_train_val_test`.
        classes: names of the classes; by default the distinct labels.
        options: how to train.
        size: embedding and hidden channels of a `new` model, if not those of `bundle`.
        checkpoint: file to save progress to and to resume from.
        name: of the bundle.
        data_name: of the data, for the model card.
        progress_bar: whether one is shown on the standard error.

    Returns:
        The classifier. `provenance["scores"]` has its scores of each split, `provenance["thresholds"]` the probability
        from which on each class holds.

    Raises:
        TypeError: if texts are no iterable of strings, or another argument is of another kind than it must be.
        InputError: for anything else that is wrong, found before any training.
        RunError: if the loss stops being a number.
    """
    if sum(given is not None for given in (splits, validation_data, split_ratios)) > 1:
        raise InputError("finetune takes one of splits, validation_data and split_ratios")
    if not isinstance(bundle, Bundle):
        raise TypeError(f"finetune takes a loaded bundle, not {shown(bundle)}; give load_bundle(...)")
    if not isinstance(options, FineTuningOptions):
        raise TypeError(f"options must be FineTuningOptions(...), not {shown(options)}")
    if not isinstance(checkpoint, (str, Path, type(None))):
        raise TypeError(f"checkpoint must be a path, not {shown(checkpoint)}")
    check_name("name", name)
    check_name("data_name", data_name)
    texts, labels = as_texts(texts, caller="finetune"), column_of(labels, "labels")
    if len(texts) != len(labels):
        raise InputError(f"{len(texts):,} texts and {len(labels):,} labels; each text needs its own")
    if validation_data is not None:
        more, their = pair_of(validation_data)
        more, their = as_texts(more, caller="validation_data"), column_of(their, "labels of validation_data")
        if len(more) != len(their):
            raise InputError(f"validation_data: {len(more):,} texts and {len(their):,} labels; each text needs its own")
        splits = ["train"] * len(texts) + ["val"] * len(more)
        texts, labels = texts + more, labels + their
    data = label_texts("finetune", texts, labels, splits, classes)
    if split_ratios is not None:
        check_ratios("split_ratios", split_ratios)
        data = data.divided(split_ratios, options.seed)
    path = None if checkpoint is None else local_path(str(checkpoint))
    training = ClassifierTraining(data.split(options.seed), bundle, options, size=size, checkpoint=path)
    with epochs_bar(progress_bar) as report:
        return training.run(report, name, data_name)


def pair_of(validation_data: Any) -> tuple[Any, Any]:
    """Texts and labels to validate on.

    Raises:
        TypeError: if they are no such two.
    """
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
        raise TypeError(f"validation_data must be (texts, labels), not {shown(validation_data)}")
    texts, labels = validation_data
    return texts, labels


@contextlib.contextmanager
def epochs_bar(shown: bool = True) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar on the standard error, moved by what it gives: a function for `ClassifierTraining.run`."""
    with tqdm(unit=" epochs", file=sys.stderr, disable=not shown) as bar:

        def report(figures: dict[str, Any]) -> None:
            bar.set_description(f"stage {figures['stage']} of {figures['stages']}, {figures['layers']}")
            bar.set_postfix_str(f"loss {figures['loss']:.4f}, validation {figures['validation_loss']:.4f}")
            bar.update()

        yield report


def probabilities_of(logits: torch.Tensor, multi_label: bool) -> NDArray[np.float32]:
    """[rows, classes], as a bundle's scorer gives them."""
    return (logits.sigmoid() if multi_label else logits.softmax(dim=1)).numpy()
