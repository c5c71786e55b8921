"""`imagebeam train`: embeddings -> a dense classifier."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import say
from pipelines.flags import JobParser, parse
from pipelines.training_options import (
    ClassifierOptions,
    EmbeddingOptions,
    FitOptions,
    HeadOptions,
    RowOptions,
    SearchOptions,
)

if TYPE_CHECKING:
    import keras
    import numpy as np

    from pipelines.head_training import Lesson
    from transforms.checkpoint import Checkpoint
    from transforms.classifier_folder import ResultFile
    from transforms.dataset import EmbeddingSet
    from transforms.row_index import RowIndex
    from transforms.spec import EmbedderSpec

DESCRIPTION = """\
Train a dense classifier on embeddings, and measure it on images held out. Run again after a crash, the same command
goes on where it was."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything `run` needs, checked when made."""

    embeddings: EmbeddingOptions
    classifier: ClassifierOptions
    rows: RowOptions = field(default_factory=RowOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    search: SearchOptions = field(default_factory=SearchOptions)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        metrics: the content of metrics.json.
        problems: what did not hold, one line each; empty for a good run.
    """

    metrics: dict[str, Any]
    problems: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam train`."""
    EmbeddingOptions.add_arguments(parser, "embeddings")
    RowOptions.add_arguments(parser, "rows")
    HeadOptions.add_arguments(parser, "head")
    FitOptions.add_arguments(parser, "fitting")
    SearchOptions.add_arguments(parser, "search")
    ClassifierOptions.add_arguments(parser, "output")


def run(options: TrainOptions) -> TrainResult:
    """Run the job.

    Raises:
        ImagebeamError: for what the user can mend; nothing is overwritten then.
    """
    from pipelines.head_training import Lesson, check_searchable, train_head, use_deterministic_ops
    from transforms.classifier_folder import ClassifierFolder, ResultFile
    from transforms.dataset import open_embeddings
    from transforms.plots import training_curves
    from transforms.results import evaluate
    from transforms.row_index import index_rows
    from transforms.sources import open_sources
    from transforms.splits import Split

    began = time.monotonic()
    output = ClassifierFolder(options.classifier.output, overwrite=options.classifier.overwrite)
    read = options.embeddings
    embeddings = open_embeddings(read.embeddings, read.embedding_column, allow_unfinished=read.allow_unfinished)
    embedder = None if options.classifier.skip_image_classifier else embeddings.staged_model()
    index = index_rows(embeddings, options.rows.label_rules(), options.rows.split_rules())
    rows = describe_rows(index)
    sources = open_sources(embeddings, index, read.max_memory_mb, local_copy=not read.no_local_copy)
    lesson = Lesson(sources, index.targets, index.counts[Split.TRAIN.code], index.multi_label)
    if options.search.search:
        check_searchable(lesson)
    if output.claim(_identity(options, embeddings, index)):
        say(f"Going on with the run in {output.uri}")
    use_deterministic_ops()
    head_options, fit_options, table = _choose_head(lesson, index.images, options, output.checkpoint)
    head, state = train_head(lesson, head_options, fit_options, checkpoint=output.checkpoint, watched=True)
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder) / ResultFile.PREDICTIONS
        evaluation = evaluate(head, embeddings, index, predictions)
        summary = {
            "evaluated_on": evaluation.split,
            **evaluation.metrics,
            "rows": rows,
            "training": {"seconds": round(time.monotonic() - began, 3), **dataclasses.asdict(state)},
            "search": table,
            **_provenance(embeddings, options, head_options, fit_options),
        }
        files = {
            **save_models(
                head, embedder and embedder.load().model, embeddings.column, embeddings.spec, index, Path(folder)
            ),
            ResultFile.PREDICTIONS: predictions,
            ResultFile.CURVES: training_curves(state.history, state.best_epoch),
            ResultFile.CONFUSION: evaluation.confusion,
        }
        output.publish(files, summary)
    return conclude(summary, output.uri, options.classifier.assert_accuracy_at_least)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("train", DESCRIPTION)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    result = run(
        TrainOptions(
            EmbeddingOptions.from_args(args),
            ClassifierOptions.from_args(args),
            RowOptions.from_args(args),
            HeadOptions.from_args(args),
            FitOptions.from_args(args),
            SearchOptions.from_args(args),
        )
    )
    return 3 if result.problems else 0


def describe_rows(index: RowIndex) -> dict[str, Any]:
    """How the rows are split, for metrics.json; what is odd about it is said at once."""
    from transforms.splits import Split, describe_gaps, largest_shift, straddling

    sizes = {str(split): len(index.rows(split)) for split in Split}
    straddle = straddling(index.images, index.codes)
    say(f"{len(index.classes)} classes; " + ", ".join(f"{count:,} {split}" for split, count in sizes.items()) + " rows")
    for gap in describe_gaps(index.counts, index.classes):
        say(f"WARNING: {gap}")
    if straddle:
        say(f"WARNING: {straddle:,} images stand in more than one split: the metrics will be too good")
    by_class = {name: index.counts[:, number].tolist() for number, name in enumerate(index.classes)}
    return {
        **sizes,
        "without_label": index.dropped,
        "images_in_several_splits": straddle,
        "largest_difference_of_a_class_share": largest_shift(index.counts),
        "by_class": {name: dict(zip(Split, counts, strict=True)) for name, counts in by_class.items()},
    }


def _identity(options: TrainOptions, embeddings: EmbeddingSet, index: RowIndex) -> dict[str, Any]:
    """Everything that decides the weights: what two runs must share for one to go on where the other was killed."""
    groups = (options.rows, options.head, options.fit, options.search)
    flags = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
    del flags["checkpoint_seconds"]
    return {
        **flags,
        "max_memory_mb": options.embeddings.max_memory_mb,
        "no_local_copy": options.embeddings.no_local_copy,
        "embedding_column": embeddings.column,
        "fingerprint": embeddings.spec.fingerprint,
        "rows_sha256": index.sha256,
    }


def _choose_head(
    lesson: Lesson, images: np.ndarray, options: TrainOptions, checkpoint: Checkpoint
) -> tuple[HeadOptions, FitOptions, list[dict[str, Any]] | None]:
    """The head to train: the one asked for, or the best of a grid, which a resumed run takes from the checkpoint."""
    if not options.search.search:
        return options.head, options.fit, None
    from pipelines.head_training import search_head

    table = checkpoint.load_json("search.json")
    if table is None:
        say("Searching: cross-validating every head of the grid")
        table = search_head(lesson, images, options.head, options.fit, options.search)
        checkpoint.save_json("search.json", table)
    _print_grid(table)
    units = tuple(table[0]["hidden_units"])
    head = dataclasses.replace(options.head, hidden_units=units, dropout=options.head.dropout if units else 0.0)
    rates = {name: table[0][name] for name in ("weight_decay", "learning_rate")}
    return head, dataclasses.replace(options.fit, **rates), table


def _print_grid(table: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("hidden units", "weight decay", "learning rate", "log loss", "accuracy")
    printed = Table(*columns, title="Cross-validated on the training rows, best first")
    for row in table:
        printed.add_row(
            ",".join(map(str, row["hidden_units"])) or "none",
            f"{row['weight_decay']:g}",
            f"{row['learning_rate']:g}",
            f"{row['log_loss']:.3f} ± {row['log_loss_std']:.3f}",
            f"{row['accuracy']:.3f} ± {row['accuracy_std']:.3f}",
        )
    Console().print(printed)


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
    from transforms import classifier
    from transforms.classifier_folder import ResultFile

    labels = {
        "labels": index.classes,
        "multi_label": index.multi_label,
        "embedding_column": column,
        "fingerprint": spec.fingerprint,
        "spec": spec.to_dict(),
    }
    models = {ResultFile.CLASSIFIER: head}
    if embedder is not None:
        models[ResultFile.IMAGE_CLASSIFIER] = classifier.join(embedder, column, head)
    for name, model in models.items():
        classifier.save(model, labels, folder / name)
    return {**{name: folder / name for name in models}, ResultFile.LABELS: classifier.to_json(labels)}


def _provenance(embeddings: EmbeddingSet, options: TrainOptions, head: HeadOptions, fit: FitOptions) -> dict[str, Any]:
    """What the classifier was made from, with what."""
    used = dataclasses.replace(options, head=head, fit=fit)
    return {
        "embeddings": embeddings.folders,
        "embedding_column": embeddings.column,
        "fingerprint": embeddings.spec.fingerprint,
        "spec": embeddings.spec.to_dict(),
        "options": dataclasses.asdict(used),
        "versions": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Versions of what a classifier is made with, for metrics.json."""
    from transforms.manifest import versions

    scikit_learn = importlib.metadata.version("scikit-learn")
    return {"python": platform.python_version(), "scikit-learn": scikit_learn, **versions()}


def conclude(metrics: dict[str, Any], output: str, least_accuracy: float | None) -> TrainResult:
    """Print the summary, and check what was to be checked."""
    accuracy, split = metrics["accuracy"], metrics["evaluated_on"]
    training, count = metrics["training"], metrics["rows"][split]
    say(
        f"Accuracy {accuracy:.4f} on {count:,} {split} rows (baseline {metrics['baseline']['accuracy']:.4f}), macro F1 "
        f"{metrics['macro_f1']:.4f}, log loss {metrics['log_loss']:.4f}; {training['epochs']} epochs in "
        f"{training['seconds']:,.1f} s, the weights of epoch {training['best_epoch']}"
    )
    say(f"  {output}")
    problems = []
    if least_accuracy is not None and accuracy < least_accuracy:
        wanted = f"--assert_accuracy_at_least {least_accuracy}"
        problems.append(f"accuracy {accuracy:.4f} on {count:,} {split} rows is lower than {wanted}")
    for problem in problems:
        say(f"PROBLEM: {problem}")
    return TrainResult(metrics, tuple(problems))


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("train"))
