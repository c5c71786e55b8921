"""Build and train a head from flags, or compare a grid of heads."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.epochs import EpochBar
from pipelines.options.search import SearchOptions
from pipelines.options.training import FitOptions, HeadOptions
from transforms.core.errors import ImagebeamError
from transforms.training.checkpoint import Checkpoint
from transforms.training.fit import FitState, fit
from transforms.training.head import balanced_weights, build_head, compile_head
from transforms.training_data.batches import vector_batches
from transforms.training_data.vector_sources import EpochOrder, MatrixSource, Sources, moments

if TYPE_CHECKING:
    import keras

_INNER_VALIDATION = 0.1
"""Share of a fold's training rows that early stopping looks at, as it looks at the validation rows otherwise."""


@dataclass(frozen=True)
class Lesson:
    """What is to be learned.

    Attributes:
        sources: the vectors.
        targets: row numbers [n] -> what should be said of them, as `RowIndex.targets`.
        counts: training labels by class, int [classes].
        multi_label: whether a row has any number of labels.
    """

    sources: Sources
    targets: Callable[[np.ndarray], np.ndarray]
    counts: np.ndarray
    multi_label: bool


def train_head(
    lesson: Lesson,
    head: HeadOptions,
    options: FitOptions,
    *,
    checkpoint: Checkpoint | None = None,
    watched: bool = False,
) -> tuple[keras.Model, FitState]:
    """Build a head and train it.

    Args:
        lesson: what to learn.
        head: what the head is made of.
        options: how it learns.
        checkpoint: where an unfinished run keeps its state; None not to keep any.
        watched: show progress.

    Returns:
        The head, vectors -> probabilities, with the best epoch's weights; and how its training went.

    Raises:
        ImagebeamError: if training diverges.
    """
    sources, multi_label = lesson.sources, lesson.multi_label
    model = build_head(
        sources.train.dimension,
        len(lesson.counts),
        hidden_units=head.hidden_units,
        dropout=head.dropout,
        normalization=head.normalization,
        mean=sources.mean,
        deviation=sources.deviation,
        multi_label=multi_label,
        seed=options.seed,
    )
    state = fit_as_told(
        model,
        options,
        lesson.counts,
        sources.train.rows,
        lambda order: vector_batches(sources.train, lesson.targets, options.batch_size, order),
        sources.validation and vector_batches(sources.validation, lesson.targets, options.batch_size),
        multi_label=multi_label,
        checkpoint=checkpoint,
        watched=watched,
    )
    return model, state


def fit_as_told(
    model: keras.Model,
    options: FitOptions,
    counts: np.ndarray,
    rows: int,
    train: Callable[[EpochOrder], Any],
    validation: Any | None,
    *,
    multi_label: bool,
    checkpoint: Checkpoint | None,
    watched: bool,
    each_epoch: bool = False,
    first_epochs: Mapping[int, int] | None = None,
) -> FitState:
    """Compile a model and fit it, in place.

    Args:
        model: what learns.
        options: how.
        counts: training labels by class, int [classes].
        rows: training rows.
        train: the order of each epoch -> batches of the training rows, `options.batch_size` each.
        validation: batches of the rows that early stopping looks at; None for none.
        multi_label: whether a row has any number of labels.
        checkpoint: where an unfinished run keeps its state; None not to keep any.
        watched: show progress.
        each_epoch: and a line for each epoch.
        first_epochs: `id` of a variable -> epoch with which it begins to learn, from 0, where that is not the first.

    Raises:
        ImagebeamError: if training diverges.
    """
    first_epochs = first_epochs or {}
    batches = -(-rows // options.batch_size)
    weights = balanced_weights(counts, rows, multi_label=multi_label) if options.balance_classes else None
    compiled = compile_head(
        model,
        steps=batches * options.epochs,
        learning_rate=options.learning_rate,
        schedule=options.learning_rate_schedule,
        weight_decay=options.weight_decay,
        label_smoothing=options.label_smoothing,
        class_weights=weights,
        multi_label=multi_label,
        first_steps={variable: epoch * batches for variable, epoch in first_epochs.items()},
    )
    order = EpochOrder(options.seed)
    with EpochBar(options.epochs, batches, options.batch_size, shown=watched, each_epoch=each_epoch) as bar:
        return fit(
            compiled,
            train(order),
            validation,
            epochs=options.epochs,
            patience=options.patience,
            patient_until=max(first_epochs.values(), default=0),
            begin_epoch=order.begin_epoch,
            checkpoint=checkpoint,
            checkpoint_seconds=options.checkpoint_seconds,
            watcher=bar,
        )


def use_deterministic_ops() -> None:
    """Let a GPU add up in the same order every time; a CPU does so by itself.

    To be called before anything is computed: that is when XLA, under JAX, reads its flags.
    """
    from transforms.models.keras_import import import_keras

    import_keras()  # settles Keras' global settings before anything is built
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()
    elif backend == "jax":
        flags = os.environ.get("XLA_FLAGS", "")
        if "--xla_gpu_deterministic_ops" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    elif backend == "torch":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def check_searchable(lesson: Lesson) -> MatrixSource:
    """The training rows, which a search must have in memory.

    Raises:
        ImagebeamError: if they are not.
    """
    rows = lesson.sources.train
    if not isinstance(rows, MatrixSource):
        needed = rows.rows * rows.dimension * 4 // 2**20 + 1
        raise ImagebeamError(
            f"--search needs the training rows in memory, about {needed:,} MB, and the validation rows with them. "
            "Raise --max_memory_mb."
        )
    return rows


def search_head(
    lesson: Lesson, images: np.ndarray, head: HeadOptions, options: FitOptions, grid: SearchOptions
) -> list[dict[str, Any]]:
    """Cross-validate a grid of heads on the training rows.

    Args:
        lesson: what to learn.
        images: a number for each row of the set [rows], equal for equal images.
        head: what the grid does not say.
        options: likewise.
        grid: the grid.

    Returns:
        One dict a point, best first: hidden_units, weight_decay, learning_rate, log_loss and accuracy with their
        standard deviations over the folds, which are None where training diverged in one of them.

    Raises:
        DivergedError: if training diverged at every point.
        ImagebeamError: as `check_searchable`.
    """
    import keras

    from transforms.training.fit import DivergedError
    from transforms.training.search import search

    rows = check_searchable(lesson)
    diverged: list[DivergedError] = []

    def train(
        vectors: np.ndarray, targets: np.ndarray, parameters: Mapping[str, Any]
    ) -> Callable[[np.ndarray], np.ndarray]:
        fold = _fold(vectors, targets, len(lesson.counts), options.seed)
        width = {
            "hidden_units": parameters["hidden_units"],
            "dropout": head.dropout if parameters["hidden_units"] else 0.0,
        }
        rates = {name: parameters[name] for name in ("weight_decay", "learning_rate")}
        try:
            model, _ = train_head(fold, dataclasses.replace(head, **width), dataclasses.replace(options, **rates))
        except DivergedError as error:
            diverged.append(error)
            return lambda vectors: np.full((len(vectors), len(lesson.counts)), np.nan)
        # Called eagerly: `predict` would trace anew for each of the grid's many small models.
        return lambda vectors: np.concatenate(
            [keras.ops.convert_to_numpy(model(vectors[start : start + 4096])) for start in range(0, len(vectors), 4096)]
        )

    names = ("hidden_units", "weight_decay", "learning_rate")
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*grid.values())]
    table = search(
        rows.vectors,
        lesson.targets(rows.numbers),
        images[rows.numbers],
        points,
        train,
        _score,
        rank_by="likelihood",
        folds=grid.folds,
        seed=options.seed,
    )
    if math.isnan(table[0]["likelihood"]):
        raise diverged[0]
    for row in table:
        row["log_loss"], row["log_loss_std"] = -row.pop("likelihood"), row.pop("likelihood_std")
    return [_without_nan(row) for row in table]


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def _fold(vectors: np.ndarray, targets: np.ndarray, classes: int, seed: int) -> Lesson:
    """A fold's training rows as a lesson of their own, with rows for early stopping put aside."""
    from sklearn.preprocessing import StandardScaler

    order = np.random.default_rng(seed).permutation(len(vectors))
    aside = max(1, round(len(order) * _INNER_VALIDATION))
    validation, train = (MatrixSource(vectors[rows], rows) for rows in (np.sort(order[:aside]), np.sort(order[aside:])))
    mine = targets[train.numbers]
    multi_label = targets.ndim == 2
    counts = mine.sum(axis=0) if multi_label else np.bincount(mine, minlength=classes)
    scaler = StandardScaler().fit(train.vectors)
    return Lesson(Sources(train, validation, *moments(scaler)), lambda rows: targets[rows], counts, multi_label)


def _score(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Mean log-likelihood (nats; of a row, or of a label with multi-label) and accuracy; NaN of such probabilities."""
    if np.isnan(probabilities).any():
        return {"likelihood": math.nan, "accuracy": math.nan}
    probabilities = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    if targets.ndim == 2:
        likelihood = np.where(targets > 0, np.log(probabilities), np.log1p(-probabilities)).mean()
        right = (probabilities >= 0.5) == (targets > 0)
    else:
        likelihood = np.log(np.take_along_axis(probabilities, targets[:, None], axis=1)).mean()
        right = probabilities.argmax(axis=1) == targets
    return {"likelihood": float(likelihood), "accuracy": float(right.mean())}
