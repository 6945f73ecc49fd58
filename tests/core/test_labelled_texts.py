"""Labelled texts are divided into splits that can be trained on, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training.labelled_texts import LabelledTexts, one_hot


def test_one_hot() -> None:
    assert one_hot(np.array([1, 0]), 3).tolist() == [[False, True, False], [True, False, False]]
    assert one_hot(np.array([[1.0, 0], [1, 1]]), 2).tolist() == [[True, False], [True, True]]


# --- splits -------------------------------------------------------------------------------------------------------


def labelled(count: int, splits: list[str] | None = None) -> LabelledTexts:
    labels = np.arange(count) % 2
    return LabelledTexts([f"text {row}" for row in range(count)], labels, ("no", "yes"), splits and np.array(splits))


def test_without_splits_a_tenth_each_to_validate_and_to_test() -> None:
    parts, again, other = labelled(200).split(1), labelled(200).split(1), labelled(200).split(2)
    assert {name: len(part.texts) for name, part in parts.items()} == {"train": 162, "val": 18, "test": 20}
    texts = [text for part in parts.values() for text in part.texts]
    assert sorted(texts) == sorted(labelled(200).texts)
    for name, part in parts.items():
        assert part.texts == again[name].texts != other[name].texts
        assert all(int(text.split()[1]) % 2 == label for text, label in zip(part.texts, part.labels, strict=True))


def test_without_validation_rows_a_tenth_of_the_training_rows() -> None:
    parts = labelled(40, ["train", "test"] * 10 + ["train"] * 20).split(1)
    assert {name: len(part.texts) for name, part in parts.items()} == {"train": 27, "val": 3, "test": 10}


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        ([0, 1, 0], ["test"] * 3, "no rows to validate on|no rows to train on"),
        ([1, 1, 0], ["train", "train", "val"], "all training texts are of class 'yes'"),
        ([0, 1, 0], ["train", "train", "val"], "class 'maybe' has no training text"),
    ],
)
def test_nothing_to_learn_from(labels: list[int], splits: list[str], message: str) -> None:
    classes = ("no", "yes", "maybe")
    with pytest.raises(InputError, match=message):
        LabelledTexts(["a", "b", "c"], np.array(labels), classes, np.array(splits)).split(1)


def test_a_class_that_holds_always_is_left_out() -> None:
    labels = np.array([[True, True], [True, False], [True, True]])
    with pytest.raises(InputError, match="class 'x' holds for all training texts or for none"):
        LabelledTexts(["a", "b", "c"], labels, ("x", "y"), np.array(["train", "train", "val"])).split(1)
