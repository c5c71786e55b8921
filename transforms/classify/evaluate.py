"""Evaluate a trained classifier on held-out rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.classify.ranking import rank, top_columns
from transforms.models.engines.prediction import predict_rows
from transforms.parts.part_files import FINGERPRINT_KEY
from transforms.plots import training
from transforms.training import metrics
from transforms.training_data.embeddings import RowSet
from transforms.training_data.row_index import RowIndex
from transforms.training_data.splits import Split

if TYPE_CHECKING:
    import keras

_BATCH_ROWS = 4096

MANY_CLASSES = 100
"""Above so many classes predictions.parquet holds the most probable ones only, unless all are asked for."""

TOP_K = 5


@dataclass(frozen=True)
class Evaluation:
    """How a classifier did.

    Attributes:
        split: the rows it was tried on: test, or validation where there are no test rows.
        metrics: as `transforms.training.metrics` gives them.
        confusion: the confusion matrix, PNG.
    """

    split: Split
    metrics: dict[str, Any]
    confusion: bytes


def evaluate(
    head: keras.Model, embeddings: RowSet, index: RowIndex, predictions: Path, *, all_probabilities: bool = False
) -> Evaluation:
    """Try a classifier on the held-out rows, read once, and write what it says of each.

    Args:
        head: vectors -> probabilities.
        embeddings: all rows.
        index: their splits and labels.
        predictions: local Parquet file to write: key, uri, label and predicted of each row; with one label a row also
            the probability of what was predicted; and probabilities in order of the classes, or with more than
            `MANY_CLASSES` the `TOP_K` most probable as top_labels and top_probabilities.
        all_probabilities: write probabilities for any number of classes.
    """
    split = Split.TEST if len(index.rows(Split.TEST)) else Split.VALIDATION
    complete = all_probabilities or len(index.classes) <= MANY_CLASSES
    schema = _predictions_schema(index, embeddings, complete=complete)
    truths: list[np.ndarray] = []
    outputs: list[Any] = []
    mistakes: list[dict[str, Any]] = []
    with pq.ParquetWriter(predictions, schema, compression="zstd", write_page_checksum=True) as writer:
        for table, probabilities, truth in _predict(head, embeddings, index, split):
            if index.multi_label:
                rows = _multi_label_columns(probabilities, truth, index.classes)
                outputs.append(probabilities)
            else:
                rows = _single_label_columns(probabilities, truth, index.classes)
                outputs.append(metrics.Ranked.of(probabilities, truth))
                mistakes = _most_confident(mistakes, outputs[-1], table, index.classes)
            truths.append(truth)
            if complete:
                flat = pa.array(probabilities.ravel())
                rows["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, len(index.classes))
            else:
                rows |= top_columns(*rank(probabilities), index.classes, TOP_K)
            columns = {"key": table.column("key"), "uri": table.column("uri"), **rows}
            writer.write_table(pa.table(columns, schema=schema))
    truth = np.concatenate(truths)
    train = index.counts[Split.TRAIN.code]
    if index.multi_label:
        probabilities = np.concatenate(outputs)
        shares = train / len(index.rows(Split.TRAIN))
        measured = metrics.multi_label_metrics(probabilities, truth, index.classes, shares)
        confusion = training.label_outcomes(truth, probabilities >= 0.5, index.classes, split)
    else:
        ranked = metrics.Ranked.concatenate(outputs)
        measured = metrics.single_label_metrics(ranked, index.classes, train)
        measured["confident_mistakes"] = mistakes
        confusion = training.confusion_matrix(ranked.truth, ranked.predicted, index.classes, split)
    return Evaluation(split, measured, confusion)


def _most_confident(
    known: list[dict[str, Any]], rows: metrics.Ranked, table: pa.Table, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The mistakes of the highest confidence, of those known and those among further rows.

    Args:
        known: so far, the most confident first.
        rows: what was said of the further rows.
        table: their keys and uris.
        classes: names by number.
    """
    wrong = np.flatnonzero(rows.truth != rows.predicted)
    worst = wrong[np.argsort(-rows.confidence[wrong], kind="stable")[: metrics.SHOWN]]
    named = table.select(["key", "uri"]).take(worst).to_pylist()
    found = [
        {
            **name,
            "label": classes[rows.truth[row]],
            "predicted": classes[rows.predicted[row]],
            "probability": float(rows.confidence[row]),
        }
        for row, name in zip(worst.tolist(), named, strict=True)
    ]
    return sorted(known + found, key=lambda mistake: -float(mistake["probability"]))[: metrics.SHOWN]


def _predict(
    head: keras.Model, embeddings: RowSet, index: RowIndex, split: Split
) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
    """(rows with key and uri, probabilities, targets) of a split, in stored order."""
    groups = [group for group in embeddings.groups if len(index.chosen(group, split))]
    for group, table in embeddings.read(groups, ["key", "uri", embeddings.column]):
        chosen = index.chosen(group, split)
        vectors = embeddings.vectors(group, table)[chosen]
        probabilities = predict_rows(head, vectors, _BATCH_ROWS)
        yield table.take(chosen), probabilities, index.targets(group.start + chosen)


def _predictions_schema(index: RowIndex, embeddings: RowSet, *, complete: bool) -> pa.Schema:
    label = pa.list_(pa.string()) if index.multi_label else pa.string()
    fields = [("key", pa.string()), ("uri", pa.string()), ("label", label), ("predicted", label)]
    if not index.multi_label:
        fields.append(("probability", pa.float32()))
    if complete:
        fields.append(("probabilities", pa.list_(pa.float32(), len(index.classes))))
    else:
        fields += [("top_labels", pa.list_(pa.string())), ("top_probabilities", pa.list_(pa.float32()))]
    metadata = {
        FINGERPRINT_KEY: embeddings.spec.fingerprint.encode(),
        b"imagebeam.labels": json.dumps(index.classes, ensure_ascii=False).encode(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata)


def _single_label_columns(probabilities: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    names = pa.array(classes, pa.string())
    best = probabilities.argmax(axis=1)
    return {
        "label": names.take(pa.array(truth)),
        "predicted": names.take(pa.array(best)),
        "probability": probabilities.max(axis=1),
    }


def _multi_label_columns(probabilities: np.ndarray, truth: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    names = np.asarray(classes, object)
    kind = pa.list_(pa.string())
    return {
        "label": pa.array([names[row > 0].tolist() for row in truth], kind),
        "predicted": pa.array([names[row >= 0.5].tolist() for row in probabilities], kind),
    }
