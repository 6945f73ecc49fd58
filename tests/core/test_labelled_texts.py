"""Labelled texts are divided into splits that can be trained on, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training.labelled_texts import LabelledTexts, label_texts, one_hot


def test_one_hot() -> None:
    assert one_hot(np.array([1, 0]), 3).tolist() == [[False, True, False], [True, False, False]]
    assert one_hot(np.array([[1.0, 0], [1, 1]]), 2).tolist() == [[True, False], [True, True]]


# --- columns ------------------------------------------------------------------------------------------------------


def test_columns_of_a_shuffled_table_stay_side_by_side() -> None:
    """Positions count: by the index of a Series, each text would get another's label."""
    table = pd.DataFrame({"text": [f"text {row}" for row in range(100)], "label": np.arange(100) % 3})
    table["name"] = [f"class {label}" for label in table["label"]]
    table["split"] = np.where(table["label"].index < 80, "train", "validation")
    shuffled = table.sample(frac=1, random_state=1)
    names = ("class 0", "class 1", "class 2")
    for labels in ("label", "name"):
        direct = LabelledTexts(shuffled["text"], shuffled[labels], names, shuffled["split"])
        made = label_texts("table", shuffled["text"], shuffled[labels], shuffled["split"], names)
        for data in (direct, made):
            assert data.classes == names and data.labels.dtype == np.int64
            assert data.texts == shuffled["text"].tolist()
            assert [f"class {label}" for label in data.labels] == shuffled["name"].tolist()
            parts = data.split(1)
            assert {name: len(part.texts) for name, part in parts.items()} == {"train": 80, "val": 20, "test": 0}
            for part in parts.values():
                assert [int(text.split()[1]) % 3 for text in part.texts] == part.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["no", "yes", "no"], [0, 1, 0]),
        (np.array(["no", "yes", "no"]), [0, 1, 0]),
        (pl.Series(["no", "yes", "no"]), [0, 1, 0]),
        (pa.array(["no", "yes", "no"]), [0, 1, 0]),
        ([False, True, False], [0, 1, 0]),
        (np.array([0, 1, 0], np.int8), [0, 1, 0]),
        ([0.0, 1.0, 0.0], [0, 1, 0]),
        ([["no"], [], ["no", "yes"]], [[True, False], [False, False], [True, True]]),
        (np.array([[1, 0], [0, 0], [1, 1]]), [[True, False], [False, False], [True, True]]),
        ([[1, 0], [0, 0], [1, 1]], [[True, False], [False, False], [True, True]]),
    ],
)
def test_kinds_of_labels(labels: Any, expected: list[Any]) -> None:
    for classes in (("no", "yes"), ()):
        data = LabelledTexts(["a", "b", "c"], labels, classes, None)
        assert data.labels.tolist() == expected
        assert data.classes == (classes or (("no", "yes") if "no" in str(labels) else ("0", "1")))
        assert data.multi_label == isinstance(expected[0], list)


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        (["no", "maybe"], None, "row 2: 'label' is 'maybe', outside the classes"),
        (["no", None], None, "row 2: no 'label'"),
        ([0, 2], None, "row 2: 'label' is 2, outside the classes"),
        (np.array([0, 2]), None, "row 2: 'label' is 2, outside the classes"),
        (np.array([[True], [False]]), None, "row 1: 'label' is .*expected 2 of 0 or 1"),
        ([0, 1, 1], None, "2 texts and 3 labels"),
        ([0, 1], ["train"], "2 texts and 1 splits"),
        ([0, 1], ["train", "later"], "row 2: split 'later' is unknown"),
    ],
)
def test_columns_at_fault(labels: Any, splits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelledTexts(["a", "b"], labels, ("no", "yes"), splits)


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


@pytest.mark.parametrize(
    ("ratios", "sizes"), [((0.7, 0.1, 0.2), [140, 20, 40]), ((0.5, 0.5, 0), [100, 100, 0]), ((1, 0, 0), [200, 0, 0])]
)
def test_splits_of_given_ratios(ratios: tuple[float, float, float], sizes: list[int]) -> None:
    data = labelled(200, ["test"] * 200)
    divided, again, other = data.divided(ratios, 1), data.divided(ratios, 1), data.divided(ratios, 2)
    assert divided.splits is not None and again.splits is not None and other.splits is not None
    assert [int((divided.splits == name).sum()) for name in ("train", "val", "test")] == sizes
    assert divided.splits.tolist() == again.splits.tolist()
    assert (divided.splits.tolist() == other.splits.tolist()) == (sizes[0] == 200)
    assert divided.texts == data.texts and divided.labels is data.labels


@pytest.mark.parametrize(
    "ratios", [(0.7, 0.1, 0.1), (0.9, 0.1), (1.2, -0.2, 0), (float("nan"), 0.5, 0.5), (), "most", 0.8]
)
def test_ratios_that_divide_nothing_are_refused(ratios: Any) -> None:
    with pytest.raises(InputError, match="ratios must be three shares, of train, val and test, that add up to 1"):
        labelled(20).divided(ratios, 1)


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
