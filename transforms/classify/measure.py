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
        Of all labelled rows, one abstained on being missed, not mistaken: rows, accuracy with its 95 % interval,
        macro_f1 (over the labels that occur), the pairs confused most often, and precision, recall, F1 and support per
        class. Of the rows not abstained on, `answered`: rows and accuracy with its interval; null where there are none.
        Besides unlabeled, abstained, and unknown_labels (label -> rows, of those that the classifier does not know).
    """
    from sklearn.metrics import precision_recall_fscore_support

    known = set(classes)
    if not any(label in known for label, _ in outcomes.pairs):
        return None
    support: Counter[str] = Counter()
    for (label, _), count in outcomes.pairs.items():
        support[label] += count
    rows = support.total()
    names = sorted(known | support.keys())
    truths = [label for label, _ in outcomes.pairs]
    guesses = [guess or _NOTHING for _, guess in outcomes.pairs]
    weights = list(outcomes.pairs.values())
    scores = precision_recall_fscore_support(truths, guesses, labels=names, sample_weight=weights, zero_division=0.0)
    per_class = per_class_scores(names, scores)
    answered = sum(count for (_, guess), count in outcomes.pairs.items() if guess is not None)
    right = sum(count for (label, guess), count in outcomes.pairs.items() if guess == label)
    return {
        "rows": rows,
        "unlabeled": outcomes.unlabeled,
        "abstained": rows - answered,
        "unknown_labels": {name: support[name] for name in names if name not in known},
        **_accuracy(right, rows),
        "answered": {"rows": answered, **_accuracy(right, answered)} if answered else None,
        "macro_f1": float(np.mean([per_class[name]["f1"] for name in support])),
        "confused_pairs": [
            {"label": label, "predicted": guess, "rows": count}
            for (label, guess), count in sorted(outcomes.pairs.items(), key=lambda entry: (-entry[1], str(entry[0])))
            if guess not in (label, None)
        ][:SHOWN],
        "per_class": per_class,
    }


def _accuracy(right: int, rows: int) -> dict[str, Any]:
    return {"accuracy": right / rows, "accuracy_interval_95": wilson_interval(right, rows)}
