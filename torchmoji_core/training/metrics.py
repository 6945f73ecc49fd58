"""Measures of a classifier, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_k_accuracy(probabilities: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> float:
    """Share of rows whose label is among the k most probable classes.

    Args:
        probabilities: [rows, classes].
        labels: [rows], class indices.
    """
    k = min(k, probabilities.shape[1])
    top = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]
    return float((top == labels[:, None]).any(axis=1).mean())


def confusion_matrix(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rows of each class for which each class is the most probable, [classes, classes], of int64."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def f1_of(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """F1 of each class, [classes]; 0 for a class never right."""
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return 2 * confusion.diagonal() / np.maximum(total, 1)


def class_f1(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """F1 of each class when the most probable class is predicted, [classes]; 0 for a class never right."""
    return f1_of(confusion_matrix(probabilities, labels))


def macro_f1(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Mean of `class_f1` over all classes."""
    return float(class_f1(probabilities, labels).mean())


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence, weighted by rows.

    The estimator of Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


THRESHOLDS = np.arange(1, 50) / 100
"""Probabilities from which on a class is predicted: 0.01 to 0.49, as in Felbo et al., 2017."""


def threshold_f1(
    probabilities: NDArray[np.floating], truth: NDArray[np.bool_], thresholds: NDArray[np.floating]
) -> NDArray[np.float64]:
    """F1 of each class, one against the rest, when it is predicted from its threshold on, [classes].

    Args:
        probabilities: [rows, classes].
        truth: [rows, classes], which classes hold.
        thresholds: [classes].
    """
    predicted = probabilities >= thresholds
    right = (predicted & truth).sum(axis=0)
    return 2 * right / np.maximum(predicted.sum(axis=0) + truth.sum(axis=0), 1)


def best_thresholds(probabilities: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each class the one of `THRESHOLDS` with the best F1, the lowest of equals, [classes]."""
    f1 = [threshold_f1(probabilities, truth, np.full(truth.shape[1], threshold)) for threshold in THRESHOLDS]
    return THRESHOLDS[np.argmax(f1, axis=0)]


def classification_scores(
    probabilities: NDArray[np.floating], truth: NDArray[np.bool_], thresholds: NDArray[np.floating], several: bool
) -> dict[str, float]:
    """Scores of a classifier on texts that decided nothing.

    Args:
        probabilities: [rows, classes].
        truth: [rows, classes], which classes hold.
        thresholds: [classes], chosen on other texts.
        several: whether several or no classes can hold of a text.

    Returns:
        f1, the class average with thresholds, of two classes that exclude each other that of the second alone (the
        positive one); and of classes that exclude each other accuracy and macro_f1, for the most probable class.
    """
    f1 = threshold_f1(probabilities, truth, thresholds)
    if several:
        return {"f1": float(f1.mean())}
    labels = truth.argmax(axis=1)
    return {
        "accuracy": top_k_accuracy(probabilities, labels, 1),
        "f1": float(f1[1] if len(f1) == 2 else f1.mean()),
        "macro_f1": macro_f1(probabilities, labels),
    }
