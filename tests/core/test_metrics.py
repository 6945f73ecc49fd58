"""Measures are what they are called, on figures that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from torchmoji_core.training.metrics import (
    THRESHOLDS,
    best_thresholds,
    class_f1,
    classification_scores,
    expected_calibration_error,
    macro_f1,
    threshold_f1,
    top_k_accuracy,
)

PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1, 0.0],  # says 0, is 0
        [0.6, 0.3, 0.1, 0.0],  # says 0, is 1
        [0.1, 0.8, 0.1, 0.0],  # says 1, is 1
        [0.1, 0.2, 0.7, 0.0],  # says 2, is 0
        [0.2, 0.3, 0.5, 0.0],  # says 2, is 2
    ]
)
LABELS = np.array([0, 1, 1, 0, 2])


@pytest.mark.parametrize(("k", "expected"), [(1, 3 / 5), (2, 4 / 5), (3, 1.0), (4, 1.0), (9, 1.0)])
def test_top_k_accuracy(k: int, expected: float) -> None:
    assert top_k_accuracy(PROBABILITIES, LABELS, k) == pytest.approx(expected)


def test_f1() -> None:
    # class 0: 1 right of 2 said and 2 true; class 1: 1 of 1 and 2; class 2: 1 of 2 and 1; class 3: never
    expected = [2 * 1 / (2 + 2), 2 * 1 / (1 + 2), 2 * 1 / (2 + 1), 0]
    assert class_f1(PROBABILITIES, LABELS).tolist() == pytest.approx(expected)
    assert macro_f1(PROBABILITIES, LABELS) == pytest.approx(sum(expected) / 4)


def test_f1_of_the_best_and_the_worst() -> None:
    sure = np.eye(3)
    assert class_f1(sure, np.array([0, 1, 2])).tolist() == [1, 1, 1]
    assert class_f1(sure, np.array([1, 2, 0])).tolist() == [0, 0, 0]


def test_calibration_error() -> None:
    # Two bins. (0.5, 1]: .7 right, .6 wrong, .8 right, .7 wrong, and .5, which begins that bin, right.
    expected = abs((1 - 0.7) + (0 - 0.6) + (1 - 0.8) + (0 - 0.7) + (1 - 0.5)) / 5
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=2) == pytest.approx(expected)
    # Ten bins: {.5}, {.6}, {.7, .7}, {.8}
    expected = (0.5 + 0.6 + abs(0.3 - 0.7) + 0.2) / 5
    assert expected_calibration_error(PROBABILITIES + 1e-9, LABELS, bins=10) == pytest.approx(expected, abs=1e-6)
    # Two bins again: .48 wrong lies in the lower one, .55 wrong and 1 right, the edge, in the upper one
    halves = np.array([[0.48, 0.3, 0.22], [0.55, 0.25, 0.2], [1.0, 0.0, 0.0]])
    expected = (0.48 + abs((0 - 0.55) + (1 - 1.0))) / 3
    assert expected_calibration_error(halves, np.array([1, 1, 0]), bins=2) == pytest.approx(expected)
    apart = np.array([[0.48, 0.3, 0.22], [0.55, 0.25, 0.2]])  # wrong and right: in one bin they would cancel
    assert expected_calibration_error(apart, np.array([1, 0]), bins=2) == pytest.approx((0.48 + 0.45) / 2)
    assert expected_calibration_error(np.eye(3), np.array([0, 1, 2])) == 0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


# --- thresholds ---------------------------------------------------------------------------------------------------

TRUTH = LABELS[:, None] == np.arange(4)


def test_f1_with_thresholds() -> None:
    # class 0 from .5 on: right once of two said and two true; class 1 from .25 on: said of rows 2, 3 and 5, true of 2
    # and 3; class 2 from .6 on: said of row 4 alone, true of row 5; class 3 from 0 on: always said, never true
    f1 = threshold_f1(PROBABILITIES, TRUTH, np.array([0.5, 0.25, 0.6, 0.0]))
    assert f1.tolist() == pytest.approx([2 * 1 / (2 + 2), 2 * 2 / (3 + 2), 0, 0])


def test_the_threshold_of_each_class_is_the_best_of_the_papers() -> None:
    assert THRESHOLDS[[0, -1]].tolist() == [0.01, 0.49]
    found = best_thresholds(PROBABILITIES, TRUTH)
    for index in range(len(found)):
        by_threshold = [threshold_f1(PROBABILITIES, TRUTH, np.full(4, value))[index] for value in THRESHOLDS]
        assert threshold_f1(PROBABILITIES, TRUTH, found)[index] == max(by_threshold)
    assert found[1] == pytest.approx(0.21)  # above the .2 of rows 1 and 4; the lowest that leaves two of three right


def test_scores_of_classes_that_exclude_each_other() -> None:
    scores = classification_scores(PROBABILITIES, TRUTH, np.full(4, 0.45), several=False)
    assert scores == pytest.approx(
        {
            "accuracy": 3 / 5,
            "f1": threshold_f1(PROBABILITIES, TRUTH, np.full(4, 0.45)).mean(),
            "macro_f1": macro_f1(PROBABILITIES, LABELS),
        }
    )


def test_of_two_classes_f1_is_that_of_the_second() -> None:
    two = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    truth = np.array([[True, False], [False, True], [False, True], [True, False]])
    scores = classification_scores(two, truth, np.array([0.3, 0.3]), several=False)
    assert scores["f1"] == pytest.approx(2 * 1 / (2 + 2))
    both = classification_scores(two, truth, np.array([0.3, 0.3]), several=True)
    assert both == {"f1": pytest.approx((2 * 2 / (4 + 2) + 0.5) / 2)}
