"""Metrics of a classifier on held-out rows, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

SHOWN = 20
"""Confused pairs, and mistakes, that metrics.json names at most."""

_TOP = 5
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Ranked:
    """What single-label metrics need of each row, so that no [rows, classes] matrix has to be held.

    Attributes:
        truth: class of each row, int32 [n].
        predicted: the most probable class, int32 [n].
        confidence: its probability, float32 [n].
        truth_probability: the true class' probability, float32 [n].
        truth_rank: classes that are more probable than the true one, and as probable ones with lower numbers, which
            `predicted` prefers too; int32 [n].
    """

    truth: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    truth_probability: np.ndarray
    truth_rank: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, truth: np.ndarray) -> Self:
        """From probabilities [n, classes] and true classes [n]."""
        truth_probability = np.take_along_axis(probabilities, truth[:, None], axis=1)
        before = np.arange(probabilities.shape[1]) < truth[:, None]
        ahead = (probabilities > truth_probability) | (before & (probabilities == truth_probability))
        return cls(
            truth.astype(np.int32),
            probabilities.argmax(axis=1).astype(np.int32),
            probabilities.max(axis=1),
            truth_probability[:, 0],
            ahead.sum(axis=1, dtype=np.int32),
        )

    @classmethod
    def concatenate(cls, pieces: Iterable[Ranked]) -> Self:
        """All pieces' rows."""
        arrays = zip(*(vars(piece).values() for piece in pieces), strict=True)
        return cls(*(np.concatenate(array) for array in arrays))


def single_label_metrics(rows: Ranked, classes: Sequence[str], train_counts: np.ndarray) -> dict[str, Any]:
    """Metrics of a softmax classifier.

    Args:
        rows: the held-out rows.
        classes: names by number.
        train_counts: training rows by class, for the baseline that always says the most frequent one.

    Returns:
        accuracy with its 95 % interval, top_5_accuracy (null with five classes or fewer), macro_f1 (over the classes
        that occur), log_loss
        (nats), expected_calibration_error and its bins, the pairs confused most often, baseline, and precision, recall,
        F1 and support per class.
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    everywhere = np.arange(len(classes))
    majority = int(train_counts.argmax())
    per_class = precision_recall_fscore_support(rows.truth, rows.predicted, labels=everywhere, zero_division=0.0)
    smallest = np.finfo(np.float32).tiny  # a true class of probability 0 would make the mean infinite
    return {
        "accuracy": float(accuracy_score(rows.truth, rows.predicted)),
        "accuracy_interval_95": wilson_interval(int((rows.truth == rows.predicted).sum()), len(rows.truth)),
        "top_5_accuracy": float((rows.truth_rank < _TOP).mean()) if len(classes) > _TOP else None,
        "macro_f1": float(f1_score(rows.truth, rows.predicted, average="macro", zero_division=0.0)),
        "log_loss": float(0.0 - np.log(np.maximum(rows.truth_probability, smallest), dtype=np.float64).mean()),
        "expected_calibration_error": calibration_error(rows.confidence, rows.truth == rows.predicted),
        "calibration": calibration_bins(rows.confidence, rows.truth == rows.predicted),
        "confused_pairs": confused_pairs(zip(rows.truth.tolist(), rows.predicted.tolist(), strict=True), classes),
        "baseline": {"class": classes[majority], "accuracy": float((rows.truth == majority).mean())},
        "per_class": per_class_scores(classes, per_class),
    }


def multi_label_metrics(
    probabilities: np.ndarray, truth: np.ndarray, classes: Sequence[str], train_shares: np.ndarray
) -> dict[str, Any]:
    """Metrics of a classifier with one sigmoid a class; a label is said to be there from a probability of 0.5.

    Args:
        probabilities: float [n, classes].
        truth: 0 and 1, [n, classes].
        classes: names by number.
        train_shares: share of the training rows that have each label, for the baseline that says those over a half.

    Returns:
        accuracy (rows of which every label is right) with its 95 % interval, label_accuracy, macro_f1 and micro_f1,
        mean_average_precision
        (over the classes that occur), log_loss (nats a label), expected_calibration_error, baseline, and precision,
        recall, F1, average precision and support per class.
    """
    from sklearn.metrics import average_precision_score

    truth = truth.astype(bool)
    predicted = probabilities >= 0.5
    right = truth == predicted
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    baseline = np.broadcast_to(train_shares > 0.5, truth.shape)
    counts = [matrix.sum(axis=0).tolist() for matrix in (truth & predicted, predicted, truth)]
    per_class = {name: label_scores(*found) for name, *found in zip(classes, *counts, strict=True)}
    precisions = {
        name: float(average_precision_score(truth[:, number], probabilities[:, number]))
        if truth[:, number].any()
        else None
        for number, name in enumerate(classes)
    }
    for name, value in precisions.items():
        per_class[name]["average_precision"] = value
    known = [value for value in precisions.values() if value is not None]
    return {
        "accuracy": float(right.all(axis=1).mean()),
        "accuracy_interval_95": wilson_interval(int(right.all(axis=1).sum()), len(truth)),
        "label_accuracy": float(right.mean()),
        "macro_f1": float(np.mean([scores["f1"] for scores in per_class.values()])),
        "micro_f1": label_scores(*map(sum, counts))["f1"],
        "mean_average_precision": float(np.mean(known)) if known else None,
        "log_loss": float(-np.where(truth, np.log(clipped), np.log1p(-clipped)).mean()),
        "expected_calibration_error": calibration_error(
            np.maximum(probabilities, 1 - probabilities).ravel(), right.ravel()
        ),
        "baseline": {"accuracy": float((truth == baseline).all(axis=1).mean())},
        "per_class": per_class,
    }


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """95 % confidence interval of a share, by Wilson's score (JASA 1927): sound near 0 and 1 and for few rows."""
    from scipy.stats import binomtest

    interval = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, over 15 bins of equal width.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    sums = np.bincount(bins, confidence.astype(np.float64) - correct, minlength=_CALIBRATION_BINS)
    return float(np.abs(sums).sum() / len(confidence))


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The bins of `calibration_error` that have rows: their bounds, rows, mean confidence and accuracy."""
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=_CALIBRATION_BINS)
    sums, right = (
        np.bincount(bins, values.astype(np.float64), _CALIBRATION_BINS) / np.maximum(counts, 1)
        for values in (confidence, correct)
    )
    return [
        {
            "from": number / _CALIBRATION_BINS,
            "to": (number + 1) / _CALIBRATION_BINS,
            "rows": int(counts[number]),
            "confidence": float(sums[number]),
            "accuracy": float(right[number]),
        }
        for number in np.flatnonzero(counts).tolist()
    ]


def confused_pairs(pairs: Iterable[tuple[int, int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of true and predicted class with the most mistakes, the most frequent first.

    Args:
        pairs: class numbers of each row.
        classes: names by number.

    Returns:
        label, predicted and rows of at most `SHOWN` pairs.
    """
    mistakes = Counter((label, guess) for label, guess in pairs if label != guess)
    return [
        {"label": classes[label], "predicted": classes[guess], "rows": rows}
        for (label, guess), rows in sorted(mistakes.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN]
    ]


def label_scores(hits: int, predicted: int, support: int) -> dict[str, Any]:
    """Precision, recall, F1 and support of one label, or of all together, in JSON terms; 0 where there is none.

    scikit-learn takes a single label for two classes, one of rows without it.

    Args:
        hits: rows that have the label and for which it was predicted.
        predicted: rows for which it was predicted.
        support: rows that have it.
    """
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
        "support": support,
    }


def per_class_scores(classes: Sequence[str], scores: Sequence[np.ndarray]) -> dict[str, dict[str, Any]]:
    """What scikit-learn's `precision_recall_fscore_support` gives of all classes, in JSON terms."""
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(classes, *scores, strict=True)
    }
