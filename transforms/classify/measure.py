"""Measure the accuracy of a classify run on images with known labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.readers.column_types import is_list_type
from transforms.training.metrics import SHOWN, per_class_scores, wilson_interval
from transforms.training_data.splits import record_numbers

_RECORD = ("uri", "key", "sha256")

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

    @property
    def rows(self) -> int:
        """Labelled ones."""
        return self.pairs.total()

    @property
    def support(self) -> Counter[str]:
        """Label -> rows that have it."""
        found: Counter[str] = Counter()
        for (label, _), rows in self.pairs.items():
            found[label] += rows
        return found


def list_column(part: str, columns: Iterable[str]) -> str | None:
    """The first of some columns that holds lists in a part of predictions; None where none does."""
    with storage.open_read(part) as source:
        schema = pq.ParquetFile(source).schema_arrow
    return next((name for name in columns if name in schema.names and is_list_type(schema.field(name).type)), None)


def first_rows(parts: Sequence[str], label: str) -> list[np.ndarray]:
    """For each part which rows to measure, bool [rows], where inputs overlap: one of each record, labelled if any is.

    A record is known by uri, key and image. 8 bytes of each row are held.

    Args:
        parts: uris.
        label: column of the labels.
    """
    records, unlabeled = [], []
    for table in _tables(parts, [*_RECORD, label]):
        records.append(record_numbers(table, _RECORD, 0))
        unlabeled.append(table.column(label).is_null().to_numpy())
    order = np.argsort(np.concatenate(unlabeled), kind="stable")
    _, first = np.unique(np.concatenate(records)[order], return_index=True)
    chosen = np.zeros(len(order), bool)
    chosen[order[first]] = True
    return np.split(chosen, np.cumsum([len(numbers) for numbers in records])[:-1])


def read_outcomes(parts: Sequence[str], label: str, chosen: Sequence[np.ndarray] | None = None) -> Iterator[pa.Table]:
    """Labels and predictions of each part, as columns `label` and predicted.

    Args:
        parts: uris.
        label: column of the labels.
        chosen: for each part the rows to read, bool [rows]; None for all.
    """
    for number, table in enumerate(_tables(parts, [label, "predicted"])):
        yield table if chosen is None else table.filter(pa.array(chosen[number]))


def _tables(parts: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    for uri in parts:
        with storage.open_read(uri) as source:
            yield pq.ParquetFile(source).read(columns=list(columns)).select(list(columns))


def count_outcomes(tables: Iterable[pa.Table]) -> Outcomes:
    """Count over tables of columns label and predicted; memory goes by the pairs, not by the rows."""
    pairs: Counter[tuple[str, str | None]] = Counter()
    unlabeled = 0
    for table in tables:
        for row in table.group_by(["label", "predicted"]).aggregate([([], "count_all")]).to_pylist():
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

    known, support, rows = set(classes), outcomes.support, outcomes.rows
    if not known & support.keys():
        return None
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
