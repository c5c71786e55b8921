"""Measure the accuracy of a classify run on images with known labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from transforms import storage
from transforms.training.metrics import SHOWN, per_class_scores, wilson_interval

_COUNTED = ("label", "predicted")

_NOTHING = ""
"""Stands for a prediction that was not made; no label is empty."""


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
        labels that occur), the pairs confused most often, and precision, recall, F1 and support per class; a row
        abstained on is missed, not mistaken.
    """
    from sklearn.metrics import precision_recall_fscore_support

    known = set(classes)
    if not any(label in known for label, _ in outcomes.pairs):
        return None
    support: Counter[str] = Counter()
    for (label, _), rows in outcomes.pairs.items():
        support[label] += rows
    names = sorted(known | support.keys())
    truths = [label for label, _ in outcomes.pairs]
    guesses = [guess or _NOTHING for _, guess in outcomes.pairs]
    weights = list(outcomes.pairs.values())
    scores = precision_recall_fscore_support(truths, guesses, labels=names, sample_weight=weights, zero_division=0.0)
    per_class = per_class_scores(names, scores)
    answered = sum(rows for (_, guess), rows in outcomes.pairs.items() if guess is not None)
    right = sum(rows for (label, guess), rows in outcomes.pairs.items() if guess == label)
    return {
        "rows": support.total(),
        "unlabeled": outcomes.unlabeled,
        "abstained": support.total() - answered,
        "unknown_labels": {name: support[name] for name in names if name not in known},
        "accuracy": right / answered if answered else None,
        "accuracy_interval_95": wilson_interval(right, answered) if answered else None,
        "macro_f1": float(np.mean([per_class[name]["f1"] for name in support])),
        "confused_pairs": [
            {"label": label, "predicted": guess, "rows": rows}
            for (label, guess), rows in sorted(outcomes.pairs.items(), key=lambda entry: (-entry[1], str(entry[0])))
            if guess not in (label, None)
        ][:SHOWN],
        "per_class": per_class,
    }
