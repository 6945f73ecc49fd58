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


def class_f1(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """F1 of each class when the most probable class is predicted, [classes]; 0 for a class never right."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    total = np.bincount(predicted, minlength=classes) + np.bincount(labels, minlength=classes)
    return 2 * right / np.maximum(total, 1)


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
