"""`imagebeam train`: train a dense classifier on embeddings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.console import print_table, say
from pipelines.common.fields import refuse_both
from pipelines.common.flags import JobParser, parse
from pipelines.options.search import SearchOptions, asks_for_epochs
from pipelines.options.training import (
    ClassifierOptions,
    EmbeddingOptions,
    FitOptions,
    HeadOptions,
    RowOptions,
    SolverOptions,
    refuse_idle_patience,
)
from pipelines.training.result import TrainResult, conclude, describe_rows, installed_versions, save_models
from transforms.core.installed import require
from transforms.core.spec import Precision
from transforms.training.head import Solver

if TYPE_CHECKING:
    import keras
    import numpy as np

    from pipelines.training.head_training import Lesson
    from transforms.training.checkpoint import Checkpoint
    from transforms.training_data.embeddings import EmbeddingSet
    from transforms.training_data.row_index import RowIndex

DESCRIPTION = """\
Train a dense classifier on embeddings, and measure it on images that it was not trained on. After a crash, the same
command goes on where it stopped."""

EXAMPLES = (
    "imagebeam train --embeddings out/photos --output out/classifier",
    "imagebeam train --embeddings out/photos --output out/classifier --assert_accuracy_at_least 0.95",
)


@dataclass(frozen=True)
class TrainOptions:
    """Everything `run` needs, checked when made."""

    embeddings: EmbeddingOptions
    classifier: ClassifierOptions
    rows: RowOptions = field(default_factory=RowOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    solver: SolverOptions = field(default_factory=SolverOptions)

    def __post_init__(self) -> None:
        self.search.refuse_what_the_grid_decides(self.head, self.fit)
        refuse_idle_patience(self.rows, self.fit)
        epochs = asks_for_epochs(self.rows, self.head, self.fit, self.search)
        if self.solver.solver == Solver.EPOCHS:
            epochs = self.solver.given("solver")
        elif self.solver.solver == Solver.EXACT:
            refuse_both(
                self.solver.given("solver"), epochs, "The exact solver is of softmax regression, and knows no epochs."
            )
        exact = self.solver.given("folds", "vector_transform")
        refuse_both(exact, epochs, "The former goes with the exact solver, which the latter rules out.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam train`."""
    EmbeddingOptions.add_arguments(parser, "embeddings", most_used=["embeddings", "labels"])
    ClassifierOptions.add_arguments(parser, "output", most_used=["output", "overwrite", "assert_accuracy_at_least"])
    RowOptions.add_arguments(parser, "rows", most_used=["label_column", "test_split", "group_column"])
    SolverOptions.add_arguments(parser, "how the classifier is solved", most_used=["folds"])
    HeadOptions.add_arguments(parser, "what the classifier is made of", most_used=["hidden_units"])
    FitOptions.add_arguments(parser, "training by epochs, which --hidden_units and each of these choose")
    SearchOptions.add_arguments(parser, "search")


def run(options: TrainOptions) -> TrainResult:
    """Run the job.

    Raises:
        ImagebeamError: for what the user can mend; nothing is overwritten then.
    """
    from transforms.training.output import ClassifierFolder, ResultFile
    from transforms.training_data.embeddings import open_embeddings
    from transforms.training_data.splits import Split

    require("matplotlib", "sklearn")
    began = time.monotonic()
    output = ClassifierFolder(options.classifier.output, overwrite=options.classifier.overwrite)
    read = options.embeddings
    embeddings = open_embeddings(read.embeddings, read.embedding_column, allow_unfinished=read.allow_unfinished)
    embedder = None if options.classifier.skip_image_classifier else embeddings.staged_model()
    if embedder is not None and embedder.spec.precision == Precision.INT8:
        say(
            f"No {ResultFile.IMAGE_CLASSIFIER}: Keras has no int8 models. To classify images, extract them with "
            f"--precision int8 --int8_model {embeddings.folders[0]}, then classify --embeddings"
        )
        embedder = None
    index = _index(embeddings, options)
    rows = describe_rows(index)

    # These take seconds, which an error above does not wait for.
    from pipelines.training.exact_head import is_exact
    from pipelines.training.head_training import Lesson, check_searchable
    from transforms.classify.evaluate import evaluate
    from transforms.training_data.vector_sources import open_sources

    sources = open_sources(embeddings, index, read.max_memory_mb, local_copy=not read.no_local_copy)
    lesson = Lesson(sources, index.targets, index.counts[Split.TRAIN.code], index.multi_label)
    if options.search.search:
        check_searchable(lesson)
    exact = is_exact(lesson, options.solver, options.head, options.fit, options.search)
    if output.claim(_identity(options, embeddings, index)):
        say(f"Going on with the run in {output.uri}")
    trained = _solve(lesson, index, options) if exact else _fit(lesson, index, options, output.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder) / ResultFile.PREDICTIONS
        evaluation = evaluate(
            trained.head, embeddings, index, predictions, all_probabilities=options.classifier.all_probabilities
        )
        summary = {
            "evaluated_on": evaluation.split,
            **evaluation.metrics,
            "rows": rows,
            "training": {"seconds": round(time.monotonic() - began, 3), **trained.summary},
            "search": trained.search,
            **_provenance(embeddings, trained.options),
        }
        files = {
            **save_models(
                trained.head,
                embedder and embedder.load_keras().model,
                embeddings.column,
                embeddings.spec,
                index,
                Path(folder),
            ),
            ResultFile.PREDICTIONS: predictions,
            ResultFile.CURVES: trained.curves,
            ResultFile.CONFUSION: evaluation.confusion,
        }
        output.publish(files, summary)
    return conclude(summary, output.uri, options.classifier.assert_accuracy_at_least)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where the run finished but a check did not hold."""
    parser = JobParser("train", DESCRIPTION, EXAMPLES)
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
            SolverOptions.from_args(args),
        )
    )
    return 3 if result.problems else 0


def _index(embeddings: EmbeddingSet, options: TrainOptions) -> RowIndex:
    """Splits and labels of all rows, corrected by `--labels` where it is given."""
    from transforms.training_data.relabel import relabel
    from transforms.training_data.row_index import index_rows

    labels, splits = options.rows.label_rules(), options.rows.split_rules()
    if options.embeddings.labels is None:
        return index_rows(embeddings, labels, splits)
    relabelled = relabel(embeddings, labels.column, options.embeddings.labels)
    index = index_rows(relabelled, labels, splits)
    say(f"{relabelled.matched:,} of {embeddings.rows:,} rows have their label from {options.embeddings.labels}")
    if relabelled.unmatched > 0:
        say(f"WARNING: {relabelled.unmatched:,} keys of {options.embeddings.labels} are those of no row")
    return index


def _identity(options: TrainOptions, embeddings: EmbeddingSet, index: RowIndex) -> dict[str, Any]:
    """Everything that decides the weights: what two runs must share for one to go on where the other was killed."""
    groups = (options.rows, options.head, options.fit, options.search, options.solver)
    flags = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
    del flags["checkpoint_seconds"], flags["folds"]
    return {
        **flags,
        "max_memory_mb": options.embeddings.max_memory_mb,
        "no_local_copy": options.embeddings.no_local_copy,
        "embedding_column": embeddings.column,
        "fingerprint": embeddings.spec.fingerprint,
        "rows_sha256": index.sha256,
    }


@dataclass(frozen=True)
class _Trained:
    """A head, and what metrics.json says of its training.

    Attributes:
        head: vectors -> probabilities.
        options: as given, with what a search chose, in JSON terms.
        summary: in JSON terms.
        curves: PNG.
        search: the table of a search, or None.
    """

    head: keras.Model
    options: dict[str, Any]
    summary: dict[str, Any]
    curves: bytes
    search: list[dict[str, Any]] | None = None


def _solve(lesson: Lesson, index: RowIndex, options: TrainOptions) -> _Trained:
    """Train by the exact solver."""
    from pipelines.training.exact_head import cross_validate, describe_solution, rows_in_memory, solve_head
    from transforms.plots.training import penalty_curves
    from transforms.training_data.splits import Split

    measured_on_validation = not len(index.rows(Split.TEST))
    rows = rows_in_memory(lesson) if options.solver.folds or not measured_on_validation else None
    head, solution = solve_head(
        lesson, index.images, options.solver, options.fit, keep_validation=measured_on_validation, rows=rows
    )
    summary = describe_solution(solution)
    curves = penalty_curves(summary["candidates"])
    if options.solver.folds and rows is not None:
        summary["cross_validated"] = cross_validate(lesson, rows, index.images, options.solver, options.fit)
    return _Trained(head, dataclasses.asdict(options), summary, curves)


def _fit(lesson: Lesson, index: RowIndex, options: TrainOptions, checkpoint: Checkpoint) -> _Trained:
    """Train by epochs."""
    from pipelines.training.head_training import train_head, use_deterministic_ops
    from transforms.plots.training import training_curves
    from transforms.training.fit import DivergedError

    use_deterministic_ops()
    try:
        head_options, fit_options, table = _choose_head(lesson, index.images, options, checkpoint)
        head, state = train_head(lesson, head_options, fit_options, checkpoint=checkpoint, watched=True)
    except DivergedError as error:
        if not options.search.search:
            raise
        checkpoint.remove()  # The next run will try other rates.
        raise DivergedError(error.what, "--search_learning_rate") from None
    summary = {"solver": str(Solver.EPOCHS), **dataclasses.asdict(state)}
    used = dataclasses.asdict(options) | {
        "head": dataclasses.asdict(head_options),
        "fit": dataclasses.asdict(fit_options),
    }
    return _Trained(head, used, summary, training_curves(state.history, state.best_epoch), table)


def _choose_head(
    lesson: Lesson, images: np.ndarray, options: TrainOptions, checkpoint: Checkpoint
) -> tuple[HeadOptions, FitOptions, list[dict[str, Any]] | None]:
    """The head to train: the one asked for, or the best of a grid, which a resumed run takes from the checkpoint."""
    if not options.search.search:
        return options.head, options.fit, None
    from pipelines.training.head_training import search_head

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
    from rich.table import Table

    columns = ("hidden units", "weight decay", "learning rate", "log loss", "accuracy")
    printed = Table(*columns, title="Cross-validated on the training rows, best first")
    for row in table:
        printed.add_row(
            ",".join(map(str, row["hidden_units"])) or "none",
            f"{row['weight_decay']:g}",
            f"{row['learning_rate']:g}",
            *(_cross_validated(row, name) for name in ("log_loss", "accuracy")),
        )
    print_table(printed)


def _cross_validated(row: Mapping[str, Any], name: str) -> str:
    return "diverged" if row[name] is None else f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"


def _provenance(embeddings: EmbeddingSet, options: dict[str, Any]) -> dict[str, Any]:
    """What the classifier was made from, with what."""
    return {
        "embeddings": embeddings.folders,
        "embedding_column": embeddings.column,
        "fingerprint": embeddings.spec.fingerprint,
        "spec": embeddings.spec.to_dict(),
        "options": options,
        "versions": installed_versions(),
    }


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("train"))
