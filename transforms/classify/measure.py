"""How right a run of classify is on the images whose label is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from transforms import storage
from transforms.training.metrics import wilson_interval

_COUNTED = ("label", "predicted")


@dataclass(frozen=True)
class Outcomes:
    """How often each label got each prediction.

    Attributes:
        pairs: (label, predicted) -> rows; predicted is None for a row that was abstained on.
        unlabeled: rows without a label of their own.
    """

    pairs: Counter[tuple[str, str | None]]
    unlabeled: int


def count_outcomes(parts: Iterable[str]) -> Outcomes:
    """Read two columns of each part of predictions; memory goes by the pairs, not by the rows.

    Args:
        parts: uris.
    """
    pairs: Counter[tuple[str, str | None]] = Counter()
    unlabeled = 0
    for uri in parts:
        with storage.open_read(uri) as source:
            table = pq.ParquetFile(source).read(columns=list(_COUNTED))
        for row in table.group_by(list(_COUNTED)).aggregate([([], "count_all")]).to_pylist():
            if row["label"] is None:
                unlabeled += row["count_all"]
            else:
                pairs[row["label"], row["predicted"]] += row["count_all"]
    return Outcomes(pairs, unlabeled)


def measure(outcomes: Outcomes, classes: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy and figures per class, in JSON terms; None where no row has a label that the classifier knows.

    Then the labels are of something else: images in a folder "inbox" have that for a label.

    Args:
        outcomes: of all parts.
        classes: that the classifier knows. A row of any other is wrong whatever is predicted.

    Returns:
        rows (labelled ones), unlabeled, abstained, unknown_labels (label -> rows, of those that the classifier does not
        know), accuracy of the rows not abstained on with its 95 % interval (null where all are), macro_f1 (over the
        labels that occur), and precision, recall, F1 and support per class; a row abstained on is missed, not mistaken.
    """
    known = set(classes)
    if not any(label in known for label, _ in outcomes.pairs):
        return None
    total, answered, right = 0, 0, 0
    support: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for (label, guess), rows in outcomes.pairs.items():
        total += rows
        support[label] += rows
        if guess is None:
            continue
        answered += rows
        predicted[guess] += rows
        if label == guess:
            right += rows
            hits[label] += rows
    per_class = {name: _scores(hits[name], predicted[name], support[name]) for name in sorted(known | support.keys())}
    return {
        "rows": total,
        "unlabeled": outcomes.unlabeled,
        "abstained": total - answered,
        "unknown_labels": {name: support[name] for name in sorted(support.keys() - known)},
        "accuracy": right / answered if answered else None,
        "accuracy_interval_95": wilson_interval(right, answered) if answered else None,
        "macro_f1": float(np.mean([per_class[name]["f1"] for name in support])),
        "per_class": per_class,
    }


def _scores(hits: int, predicted: int, support: int) -> dict[str, Any]:
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (predicted + support) if predicted + support else 0.0,
        "support": support,
    }
