"""The result of a training job: row counts, models, versions and a summary."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.console import say
from pipelines.common.log import add_totals
from transforms.core.text import counted

if TYPE_CHECKING:
    import keras

    from transforms.core.spec import EmbedderSpec
    from transforms.training.output import ResultFile
    from transforms.training_data.row_index import RowIndex


@dataclass(frozen=True)
class TrainResult:
    """The result of a training job.

    Attributes:
        metrics: the content of metrics.json.
        problems: what did not hold, one line each; empty for a good run.
    """

    metrics: dict[str, Any]
    problems: tuple[str, ...]


def describe_rows(index: RowIndex) -> dict[str, Any]:
    """How the rows are split, for metrics.json; what is odd about it is said at once."""
    from transforms.training_data.splits import Split, describe_gaps, describe_small, largest_shift, straddling

    sizes = {str(split): len(index.rows(split)) for split in Split}
    straddle = straddling(index.images, index.codes)
    say(f"{len(index.classes)} classes; " + ", ".join(f"{count:,} {split}" for split, count in sizes.items()) + " rows")
    if index.repeated:
        rows = counted(index.repeated, "row is", "rows are")
        say(f"WARNING: {rows} left out whose uri and key another run has too: an image counts once, in the first run")
    for gap in describe_gaps(index.counts, index.classes):
        say(f"WARNING: {gap}")
    measured = Split.TEST if sizes[Split.TEST] else Split.VALIDATION
    if small := describe_small(index.counts, index.classes, measured):
        say(f"WARNING: {small}")
    if straddle:
        say(f"WARNING: {counted(straddle, 'image is', 'images are')} in more than one split: metrics will be too good")
    by_class = {name: index.counts[:, number].tolist() for number, name in enumerate(index.classes)}
    return {
        **sizes,
        "without_label": index.dropped,
        "in_several_runs": index.repeated,
        "images_in_several_splits": straddle,
        "largest_difference_of_a_class_share": largest_shift(index.counts),
        "by_class": {name: dict(zip(Split, counts, strict=True)) for name, counts in by_class.items()},
    }


def save_models(
    head: keras.Model,
    embedder: keras.Model | None,
    column: str,
    spec: EmbedderSpec,
    index: RowIndex,
    folder: Path,
) -> dict[ResultFile, bytes | Path]:
    """Write the models into a local folder; what to publish.

    Args:
        head: vectors -> probabilities.
        embedder: images -> vectors; None for no classifier of images.
        column: which of the embedder's vectors the head takes.
        spec: of the vectors.
        index: the classes.
        folder: local.
    """
    from transforms.models.weights.load import values_sha256
    from transforms.training.head import embedder_of, join, save, to_json
    from transforms.training.output import ResultFile

    whole = None if embedder is None else join(embedder, column, head)
    labels = {
        "labels": index.classes,
        "multi_label": index.multi_label,
        "embedding_column": column,
        "fingerprint": spec.fingerprint,
        "spec": spec.to_dict(),
    }
    models = {ResultFile.CLASSIFIER: head}
    if whole is not None:
        labels["embedder_sha256"] = values_sha256(embedder_of(whole))
        models[ResultFile.IMAGE_CLASSIFIER] = whole
    for name, model in models.items():
        save(model, labels, folder / name)
    return {**{name: folder / name for name in models}, ResultFile.LABELS: to_json(labels)}


def installed_versions() -> dict[str, str]:
    """Versions of what a classifier is made with, for metrics.json."""
    from transforms.runs.manifest import versions

    scikit_learn = importlib.metadata.version("scikit-learn")
    return {"python": platform.python_version(), "scikit-learn": scikit_learn, **versions()}


def conclude(metrics: dict[str, Any], output: str, least_accuracy: float | None) -> TrainResult:
    """Print the summary, and check the required accuracy."""
    accuracy, split = metrics["accuracy"], metrics["evaluated_on"]
    training, count = metrics["training"], metrics["rows"][split]
    low, high = metrics["accuracy_interval_95"]
    epochs = ""
    if "epochs" in training:
        epochs = f", {training['epochs']} epochs, the weights of epoch {training['best_epoch']}"
    measured = counted(count, f"{split} row")
    measure = "Accuracy"
    if "label_accuracy" in metrics:
        measure = f"Label accuracy {metrics['label_accuracy']:.4f}; rows with all labels right:"
    say(
        f"{measure} {accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on {measured}, baseline "
        f"{metrics['baseline']['accuracy']:.4f}; macro F1 {metrics['macro_f1']:.4f}, log loss "
        f"{metrics['log_loss']:.4f}; {training['seconds']:,.1f} s{epochs}"
    )
    say(f"  {output}")
    add_totals(accuracy=accuracy, macro_f1=metrics["macro_f1"], evaluated_on=split, rows=count)
    problems = []
    if least_accuracy is not None and accuracy < least_accuracy:
        wanted = f"--assert_accuracy_at_least {least_accuracy}"
        problems.append(f"accuracy {accuracy:.4f} on {measured} is lower than {wanted}")
    for problem in problems:
        say(f"PROBLEM: {problem}")
    return TrainResult(metrics, tuple(problems))
