"""Measure a multi-label classify run on images with known lists of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from transforms.readers.columns import as_labels
from transforms.training.metrics import label_scores, wilson_interval


@dataclass
class ListOutcomes:
    """How often each label was there, was predicted, and was both.

    Attributes:
        rows: labelled ones, an empty list among them.
        unlabeled: rows without a list.
        right: labelled rows of which all labels are right.
        support: label -> rows that have it.
        predicted: label -> labelled rows it was predicted for.
        hits: label -> rows that have it and for which it was predicted.
    """

    rows: int = 0
    unlabeled: int = 0
    right: int = 0
    support: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)


def count_lists(tables: Iterable[pa.Table]) -> ListOutcomes:
    """Count over tables of two columns, the lists of labels and of predictions; memory goes by the labels."""
    found = ListOutcomes()
    for table in tables:
        for known, guesses in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if known is None:
                found.unlabeled += 1
                continue
            labels, predicted = set(as_labels(known)), set(guesses)
            found.rows += 1
            found.right += labels == predicted
            found.support.update(labels)
            found.predicted.update(predicted)
            found.hits.update(labels & predicted)
    return found


def measure_lists(outcomes: ListOutcomes, classes: Sequence[str]) -> dict[str, Any] | None:
    """Figures in JSON terms; None where no row has a label that the classifier knows.

    Args:
        outcomes: of all parts.
        classes: that the classifier knows. A label of any other is missed in every row that has it.

    Returns:
        rows (labelled ones), unlabeled, unknown_labels (label -> rows), accuracy (rows of which every label is right)
        with its 95 % interval, label_accuracy (over rows and labels), macro_f1 (over the labels that occur), micro_f1,
        and precision, recall, F1 and support per class.
    """
    known, support = set(classes), outcomes.support
    if not known & support.keys():
        return None
    names = sorted(known | support.keys())
    per_class = {name: label_scores(outcomes.hits[name], outcomes.predicted[name], support[name]) for name in names}
    hits, said = outcomes.hits.total(), outcomes.predicted.total() + support.total()
    return {
        "rows": outcomes.rows,
        "unlabeled": outcomes.unlabeled,
        "unknown_labels": {name: support[name] for name in names if name not in known},
        "accuracy": outcomes.right / outcomes.rows,
        "accuracy_interval_95": wilson_interval(outcomes.right, outcomes.rows),
        "label_accuracy": 1 - (said - 2 * hits) / (outcomes.rows * len(names)),
        "macro_f1": float(np.mean([per_class[name]["f1"] for name in support])),
        "micro_f1": 2 * hits / said,
        "per_class": per_class,
    }
