"""Decide whether the exact solver trains the head, and build the head that it solves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.console import say
from pipelines.options.search import SearchOptions, asks_for_epochs
from pipelines.options.training import FitOptions, HeadOptions, RowOptions, SolverOptions
from pipelines.training.head_training import Lesson, check_searchable
from transforms.core.errors import ImagebeamError
from transforms.training.exact_solver import LARGEST, LARGEST_WITH_FOLDS, Solution, solve
from transforms.training.head import LOGITS, Normalization, Solver, VectorTransform, build_head
from transforms.training.metrics import wilson_interval
from transforms.training_data.vector_sources import MatrixSource

if TYPE_CHECKING:
    import keras


def is_exact(
    lesson: Lesson, solver: SolverOptions, head: HeadOptions, options: FitOptions, search: SearchOptions
) -> bool:
    """Whether the exact solver trains the head.

    Raises:
        ImagebeamError: if it is asked for and cannot, naming the flag or the size that it cannot serve; or if a flag of
            its own is given where it does not train.
    """
    reason = "--solver epochs" if solver.solver == Solver.EPOCHS else _obstacle(lesson, head, options, search)
    if reason is None:
        return True
    if solver.solver == Solver.EXACT:
        raise ImagebeamError(f"--solver exact is softmax regression on rows in memory. Received: {reason}.")
    if solver.vector_transform is not None:
        raise ImagebeamError(
            f"--vector_transform goes with the exact solver. Received: --vector_transform {solver.vector_transform} "
            f"with {reason}."
        )
    if solver.folds:
        raise ImagebeamError(
            f"--folds goes with the exact solver, which is quick enough to train anew for each. Received: --folds "
            f"{solver.folds} with {reason}."
        )
    return False


def _obstacle(lesson: Lesson, head: HeadOptions, options: FitOptions, search: SearchOptions) -> str | None:
    """What keeps the exact solver from training the head; None for nothing."""
    if flags := asks_for_epochs(RowOptions(multi_label=lesson.multi_label), head, options, search):
        return flags[0]
    if np.count_nonzero(lesson.counts) < 2:
        return "training rows of one class"
    sources = lesson.sources
    if not isinstance(sources.train, MatrixSource) or not isinstance(sources.validation, MatrixSource | None):
        return f"{sources.train.rows:,} training rows, more than --max_memory_mb holds"
    size = sources.train.rows * sources.train.dimension * len(lesson.counts)
    if size > LARGEST:
        return (
            f"{sources.train.rows:,} training rows of {sources.train.dimension:,} values and {len(lesson.counts):,} "
            f"classes, which take longer than minutes"
        )
    return None


def solve_head(
    lesson: Lesson,
    images: np.ndarray,
    solver: SolverOptions,
    options: FitOptions,
    *,
    keep_validation: bool,
    rows: HeldRows | None = None,
) -> tuple[keras.Model, Solution]:
    """Choose transform and penalty, solve, and put the solution into a Keras model.

    Args:
        lesson: what to learn; its rows are in memory.
        images: a number for each row of the set [rows], equal for images that stay together.
        solver: which transform to use.
        options: seed and class weights.
        keep_validation: leave the validation rows out of the last solution, because they are what metrics are measured
            on; they then choose nothing either.
        rows: what `rows_in_memory` gives, where that is known.

    Returns:
        The head, vectors -> probabilities; and the solution in it.
    """
    train, validation = check_searchable(lesson), lesson.sources.validation
    vectors, numbers, held_out = train.vectors, train.numbers, None
    if isinstance(validation, MatrixSource) and not keep_validation:
        vectors, numbers = rows or rows_in_memory(lesson)
        if vectors.size * len(lesson.counts) > LARGEST_WITH_FOLDS:
            held_out = np.arange(len(numbers)) >= train.rows
    solution = solve(
        vectors,
        lesson.targets(numbers),
        images[numbers],
        len(lesson.counts),
        transforms=_transforms(solver, few=held_out is None),
        held_out=held_out,
        balanced=options.balance_classes,
        seed=options.seed,
    )
    head = build_head(
        train.dimension,
        len(lesson.counts),
        normalization=Normalization.FITTED,
        mean=solution.mean,
        deviation=solution.deviation,
        transform=solution.best.transform,
        seed=options.seed,
    )
    head.get_layer(LOGITS).set_weights([solution.kernel, solution.bias])
    best = solution.best
    say(
        f"Solved softmax regression on {solution.rows:,} rows: L2 penalty 1/C with C = {best.inverse_penalty:.3g}, "
        f"vector transform {best.transform}; cross-validated log loss {best.log_loss:.4f}, accuracy {best.accuracy:.4f}"
    )
    return head, solution


HeldRows = tuple[np.ndarray, np.ndarray]
"""Vectors, float32 [n, dimension], and the numbers of their rows, int64 [n]."""


def rows_in_memory(lesson: Lesson) -> HeldRows:
    """Vectors and row numbers of the training rows, and behind them of the validation rows where there are some."""
    sources = [check_searchable(lesson), lesson.sources.validation]
    held = [source for source in sources if isinstance(source, MatrixSource)]
    return np.concatenate([source.vectors for source in held]), np.concatenate([source.numbers for source in held])


def _transforms(solver: SolverOptions, *, few: bool) -> tuple[VectorTransform, ...]:
    """Those to try; of many rows twice the length takes minutes and gains nothing."""
    if solver.vector_transform:
        return (solver.vector_transform,)
    return tuple(VectorTransform) if few else (VectorTransform.NONE, VectorTransform.ROOT)


def cross_validate(
    lesson: Lesson, rows: HeldRows, images: np.ndarray, solver: SolverOptions, options: FitOptions
) -> dict[str, Any]:
    """Accuracy over rows that were each left out once; penalty and transform are chosen anew within each fold.

    Args:
        lesson: what to learn.
        rows: its training and validation rows, as `rows_in_memory` gives them.
        images: a number for each row of the set [rows], equal for images that are left out together.
        solver: how many folds, and which transform to use.
        options: seed and class weights.

    Returns:
        folds, rows, accuracy, accuracy_interval_95, fold_accuracies; for metrics.json.
    """
    from transforms.training.compare import probe
    from transforms.training.exact_solver import cut_folds

    vectors, numbers = rows
    targets = lesson.targets(numbers)
    folds = cut_folds(targets, images[numbers], solver.folds, options.seed)
    answers = probe(
        vectors,
        targets,
        folds,
        options.seed,
        transforms=_transforms(solver, few=vectors.size * len(lesson.counts) <= LARGEST_WITH_FOLDS),
        balanced=options.balance_classes,
    )
    left_out = np.concatenate([rest for _, rest in folds])
    right = int(answers.right[left_out].sum())
    low, high = wilson_interval(right, len(left_out))
    say(
        f"Cross-validated in {len(folds)} folds: accuracy {right / len(left_out):.4f} (95 % interval {low:.4f} to "
        f"{high:.4f}) on {len(left_out):,} training and validation rows"
    )
    return {
        "folds": len(folds),
        "rows": len(left_out),
        "accuracy": right / len(left_out),
        "accuracy_interval_95": [low, high],
        "fold_accuracies": [float(answers.right[rest].mean()) for _, rest in folds],
    }


def describe_solution(solution: Solution) -> dict[str, Any]:
    """A solution for metrics.json."""
    return {
        "solver": str(Solver.EXACT),
        "rows": solution.rows,
        "inverse_penalty": solution.best.inverse_penalty,
        "vector_transform": str(solution.best.transform),
        "candidates": [dataclasses.asdict(candidate) for candidate in solution.candidates],
    }
