"""Measure a finished classify run on labels of its input, and print the figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from transforms import storage
from transforms.classify import measure, measure_lists
from transforms.core.text import counted, first_few, readable_json
from transforms.inputs.inspection import LABEL_LISTS
from transforms.runs.manifest import MANIFEST_FILE
from transforms.training.output import ResultFile

if TYPE_CHECKING:
    from pipelines.runtime.finish import Result
    from transforms.classify.staged import TrainedClassifier

_ROWS_SHOWN = 20


def measure_labels(
    result: Result, output: str, classifier: TrainedClassifier, label_column: str, *, overlapping: bool = False
) -> None:
    """Write OUT/metrics.json and print the accuracy, if the input has labels.

    Args:
        result: of the run.
        output: its folder.
        classifier: that predicted.
        label_column: of the input.
        overlapping: whether the input may hold a record several times, which is measured once.
    """
    uri = storage.join(output, ResultFile.METRICS)
    if not result.totals.embedded:
        if result.problems:  # A run that is only described has none, nor has it rows yet.
            storage.delete(uri)
        return
    about = json.loads(storage.read_bytes(storage.join(output, MANIFEST_FILE)))
    parts = [storage.join(output, part["path"]) for part in about["parts"]]
    lists = (label_column, LABEL_LISTS)
    label = measure.list_column(parts[0], lists) if classifier.multi_label else "label"
    if label is None:
        say("Not measured: the classifier gives an image several labels, and no column of the input holds such lists")
        storage.delete(uri)
        return
    chosen = measure.first_rows(parts, label) if overlapping else None
    if repeated := sum(int((~rows).sum()) for rows in chosen or ()):
        say(f"WARNING: {counted(repeated, 'row')} not measured whose record another run has too: an image counts once")
    tables = measure.read_outcomes(parts, label, chosen)
    outcomes: measure.Outcomes | measure_lists.ListOutcomes
    if classifier.multi_label:
        outcomes = measure_lists.count_lists(tables)
        metrics = measure_lists.measure_lists(outcomes, classifier.labels)
    else:
        outcomes = measure.count_outcomes(tables)
        metrics = measure.measure(outcomes, classifier.labels)
    if metrics is None:
        if outcomes.rows:
            names = first_few(sorted(outcomes.support))
            say(f"WARNING: the classifier knows none of the labels of {counted(outcomes.rows, 'image')}: {names}")
        storage.delete(uri)  # of an earlier run, whose input had labels
        return
    storage.publish(uri, readable_json(metrics, indent=2))
    _print_metrics(metrics)


def _accuracy(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval_95"]
    return f"Accuracy {figures['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})"


def _print_metrics(metrics: dict[str, Any]) -> None:
    rows, answered = metrics["rows"], metrics.get("answered")
    if metrics.get("abstained") == rows:
        say(f"No label of the {rows:,} labelled images reached the threshold")
        return
    line = _accuracy(metrics)
    if "label_accuracy" in metrics:
        line = f"Label accuracy {metrics['label_accuracy']:.4f}; rows with all labels right: {line}"
    say(
        f"{line} on {rows:,} labelled images; macro F1 {metrics['macro_f1']:.4f}",
        {"accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"]},
    )
    if answered and answered["rows"] < rows:
        share = answered["rows"] / rows
        say(f"{_accuracy(answered)} on the {answered['rows']:,} of them that reached the threshold ({share:.1%})")
    if unknown := metrics["unknown_labels"]:
        count, names = sum(unknown.values()), first_few(list(unknown))
        what = counted(count, "label") if "label_accuracy" in metrics else f"labels of {counted(count, 'image')}"
        say(f"WARNING: the classifier does not know {what}: {names}")
    scores = [(name, score) for name, score in metrics["per_class"].items() if score["support"]]
    scores.sort(key=lambda entry: entry[1]["f1"])
    for name, score in scores[:_ROWS_SHOWN]:
        say(
            f"  {name}: precision {score['precision']:.3f}, recall {score['recall']:.3f}, F1 {score['f1']:.3f}, "
            f"{score['support']:,} images"
        )
    if len(scores) > _ROWS_SHOWN:
        say(f"  and {len(scores) - _ROWS_SHOWN:,} classes with a higher F1, in metrics.json")
