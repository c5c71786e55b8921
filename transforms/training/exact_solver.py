"""Solve softmax regression exactly, and choose its penalty and vector transform by cross-validation."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from transforms.training.head import VectorTransform, transform_vectors
from transforms.training_data.vector_sources import moments

FOLDS = 5

LARGEST = 500_000_000
"""Rows x dimension x classes up to which a problem is solved in minutes on two cores."""

LARGEST_WITH_FOLDS = 200_000_000
"""Likewise with `FOLDS` folds; of larger ones the validation rows choose the candidate."""

INVERSE_PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Values of scikit-learn's `C` to try: the range of its `LogisticRegressionCV`."""

_WORSE_BEFORE_GIVING_UP = 2
"""The loss over C has one valley: a path ends after so many values behind the lowest one."""

_SEARCH_ITERATIONS, _FINAL_ITERATIONS = 200, 2000

_FINAL_TOLERANCE = 1e-6
"""Largest entry of the gradient at which the final fit ends. scikit-learn's 1e-4 ends it before its optimum where the
penalty is weak."""

_WORTH_THREADS = 20_000_000
"""Values of a matrix from which its products run in several threads; for smaller ones the threads mostly wait for each
other: 300 x 512 takes ten times longer with two than with one when another process has one of the two cores."""


@dataclass(frozen=True)
class Candidate:
    """One point of the search.

    Attributes:
        transform: of the vectors, before they are standardised.
        inverse_penalty: scikit-learn's `C`: the smaller, the stronger the L2 penalty.
        log_loss: of the rows left out, in nats a row; mean over the folds.
        accuracy: likewise.
    """

    transform: VectorTransform
    inverse_penalty: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class Solution:
    """A solved softmax regression.

    Attributes:
        rows: that it was solved on.
        best: the candidate it was solved with.
        candidates: all that were tried, best first.
        mean: of the transformed vectors, float32 [dimension], or twice as many.
        deviation: standard deviation, likewise.
        kernel: weights on the standardised vectors, float32 [length of `mean`, classes].
        bias: float32 [classes].
    """

    rows: int
    best: Candidate
    candidates: tuple[Candidate, ...]
    mean: np.ndarray
    deviation: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Silence scikit-learn's advice. Entered by the thread that starts others: what is silenced is the process's."""
    with warnings.catch_warnings():
        # At its iteration limit a nearly separable problem is solved as far as its predictions can tell.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # With few images of each class it suspects a regression.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


@without_advice()
def solve(
    vectors: np.ndarray,
    targets: np.ndarray,
    images: np.ndarray,
    classes: int,
    *,
    transforms: Sequence[VectorTransform] = tuple(VectorTransform),
    held_out: np.ndarray | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Solution:
    """Choose transform and penalty by the log loss of rows left out, then solve on all rows with L-BFGS.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers, int [n].
        images: a number for each row's image or group [n]: equal ones are left out together.
        classes: number of outputs; a class without rows gets probability 0 almost.
        transforms: those to try.
        held_out: bool [n], rows to choose by; None for `FOLDS` stratified folds.
        balanced: weigh rows so that every class counts the same.
        seed: of the folds.
    """
    if held_out is None:
        parts = cut_folds(targets, images, FOLDS, seed)
    else:
        parts = [(np.flatnonzero(~held_out), np.flatnonzero(held_out))]
    found: list[Candidate] = []
    with (
        threadpool_limits(_threads(vectors, len(parts))),
        ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool,
    ):
        for transform in transforms:
            values = transform_vectors(vectors, transform)
            found += _search_path(_prepare(values, targets, parts, classes, balanced), transform, pool)
    candidates = tuple(sorted(found, key=lambda candidate: candidate.log_loss))
    best = candidates[0]
    values = transform_vectors(vectors, best.transform)
    mean, deviation = moments(StandardScaler().fit(values))
    model = _model(balanced, _FINAL_ITERATIONS, best.inverse_penalty, _FINAL_TOLERANCE)
    with threadpool_limits(_threads(values, 1)):
        model.fit(((values - mean) / deviation).astype(np.float64), targets)
    kernel, bias = _weights(model, classes)
    return Solution(len(vectors), best, candidates, mean, deviation, kernel, bias)


def _threads(vectors: np.ndarray, at_once: int) -> int | None:
    """Threads for the products of one solver of several that run at once; None for as many as there are cores."""
    return None if at_once == 1 and vectors.size >= _WORTH_THREADS else 1


def cut_folds(targets: np.ndarray, images: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows left out) of each fold, stratified by class.

    There are fewer folds where there are fewer images, or where no class has as many rows. Where no fold leaves two
    classes to train on, all rows are both trained on and left out.

    Args:
        targets: class numbers, int [n].
        images: a number for each row's image or group [n]: equal ones are left out together.
        folds: how many at most.
        seed: of the cut.
    """
    folds = min(folds, len(np.unique(images)), int(np.bincount(targets).max()))
    found = []
    if folds >= 2:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # fewer rows than folds
            found = list(splitter.split(targets, targets, images))
    usable = [(train, rest) for train, rest in found if len(np.unique(targets[train])) > 1 and len(rest)]
    everything = np.arange(len(targets))
    return usable or [(everything, everything)]


@dataclass(frozen=True)
class _Fold:
    """Rows to train on and rows left out, standardised by the former, and a model that goes along the path of C.

    Attributes:
        model: each fit of it starts from its last solution.
        train: float32 [n, dimension].
        train_targets: class numbers [n].
        rest: float32 [m, dimension].
        rest_targets: class numbers [m].
        classes: number of all classes.
    """

    model: LogisticRegression
    train: np.ndarray
    train_targets: np.ndarray
    rest: np.ndarray
    rest_targets: np.ndarray
    classes: int

    def measure(self, inverse_penalty: float) -> tuple[float, int]:
        """Solve with this C; the log loss, summed over the rows left out, and how many of them are right."""
        self.model.set_params(C=inverse_penalty)
        self.model.fit(self.train, self.train_targets)
        probabilities = np.zeros((len(self.rest), self.classes))
        probabilities[:, self.model.classes_] = self.model.predict_proba(self.rest)
        loss = log_loss(self.rest_targets, _smoothed(probabilities), labels=np.arange(self.classes), normalize=False)
        return float(loss), int((probabilities.argmax(axis=1) == self.rest_targets).sum())


def _prepare(
    values: np.ndarray,
    targets: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    classes: int,
    balanced: bool,
) -> list[_Fold]:
    """A fold for each (rows to train on, rows left out) of a matrix [n, dimension]."""
    folds = []
    for train, rest in parts:
        mean, deviation = moments(StandardScaler().fit(values[train]))
        inside, outside = (((values[rows] - mean) / deviation).astype(np.float32) for rows in (train, rest))
        model = _model(balanced, _SEARCH_ITERATIONS)
        folds.append(_Fold(model, inside, targets[train], outside, targets[rest], classes))
    return folds


def _search_path(folds: Sequence[_Fold], transform: VectorTransform, pool: Executor) -> list[Candidate]:
    """Candidates of one transform: the powers of ten of C up to the valley's far side, then the halves beside the best.

    The folds go along the path together, each from where its last solution was.
    """
    left_out = sum(len(fold.rest) for fold in folds)

    def measure(inverse_penalty: float) -> Candidate:
        losses, right = zip(*pool.map(lambda fold: fold.measure(inverse_penalty), folds), strict=True)
        return Candidate(transform, inverse_penalty, sum(losses) / left_out, sum(right) / left_out)

    found: list[Candidate] = []
    for inverse_penalty in INVERSE_PENALTIES:
        found.append(measure(inverse_penalty))
        best = min(found, key=lambda candidate: candidate.log_loss)
        if len(found) - found.index(best) > _WORSE_BEFORE_GIVING_UP:
            break
    return [*found, *(measure(best.inverse_penalty * factor) for factor in (10**-0.5, 10**0.5))]


def _smoothed(probabilities: np.ndarray) -> np.ndarray:
    """Clip probabilities above 0, so that a class missing from a fold does not dominate the loss."""
    clipped = np.maximum(probabilities, 1e-7)
    return np.asarray(clipped / clipped.sum(axis=1, keepdims=True))


def _model(
    balanced: bool, iterations: int, inverse_penalty: float = 1.0, tolerance: float = 1e-4
) -> LogisticRegression:
    weights = "balanced" if balanced else None
    return LogisticRegression(
        C=inverse_penalty, tol=tolerance, class_weight=weights, max_iter=iterations, warm_start=True
    )


def _weights(model: LogisticRegression, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [dimension, classes] and bias [classes] of a softmax. Of two classes scikit-learn keeps one row."""
    rows, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = np.zeros((rows.shape[1], classes), np.float32)
    biases = np.full(classes, np.float32(-1e4))
    kernel[:, model.classes_], biases[model.classes_] = rows.T, bias
    return kernel, biases
