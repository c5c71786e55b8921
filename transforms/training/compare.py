"""Embeddings held against each other on the same images: what a linear probe and nearest neighbours make of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from transforms.training.exact import Solution, solve
from transforms.training.head import transform_vectors
from transforms.training.metrics import wilson_interval

_CHOOSING = 0.2
"""Share of a fold's training rows that choose the penalty of its linear probe."""


@dataclass(frozen=True)
class Answers:
    """Which rows a classifier got right while they were left out of its training.

    Attributes:
        right: bool [n].
    """

    right: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the rows."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(int(self.right.sum()), len(self.right))

    def difference(self, other: Answers) -> tuple[float, float, float]:
        """Accuracy less that of `other` on the same rows, with the ends of its 95 % interval.

        The interval is that of the mean of paired differences, row by row, under the normal approximation: what both
        get right or wrong does not widen it.
        """
        paired = self.right.astype(np.float64) - other.right
        mean = float(paired.mean())
        half = 1.96 * float(paired.std(ddof=1)) / math.sqrt(len(paired))
        return mean, mean - half, mean + half


def cut_folds(targets: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows left out) of each fold, stratified by class.

    Args:
        targets: class numbers, int [n]; every class has at least two rows.
        folds: how many.
        seed: of the cut.
    """
    rows = np.arange(len(targets))
    folds = min(folds, int(np.bincount(targets).max()))
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, targets, rows))


def probe(
    vectors: np.ndarray, targets: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], seed: int
) -> Answers:
    """Softmax regression as `imagebeam train` solves it, its penalty chosen within each fold's training rows.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers, int [n].
        folds: as `cut_folds` gives them.
        seed: of the choice's cut.
    """
    right = np.zeros(len(targets), bool)
    classes = int(targets.max()) + 1
    for train, rest in folds:
        held_out = _choosing_rows(targets[train], seed)
        solution = solve(vectors[train], targets[train], np.arange(len(train)), classes, held_out=held_out, seed=seed)
        right[rest] = _predict(solution, vectors[rest]) == targets[rest]
    return Answers(right)


def _choosing_rows(targets: np.ndarray, seed: int) -> np.ndarray | None:
    """Mask of the rows that choose; None where a class has too few, so that `solve` cuts folds of its own."""
    held_out = np.zeros(len(targets), bool)
    if np.bincount(targets)[np.unique(targets)].min() < 2:
        return None
    splitter = StratifiedShuffleSplit(
        1, test_size=max(_CHOOSING, len(np.unique(targets)) / len(targets)), random_state=seed
    )
    ((_, rows),) = splitter.split(targets, targets)
    held_out[rows] = True
    return held_out


def _predict(solution: Solution, vectors: np.ndarray) -> np.ndarray:
    values = transform_vectors(vectors, solution.best.transform)
    logits = (values - solution.mean) / np.sqrt(solution.variance) @ solution.kernel + solution.bias
    return np.asarray(logits.argmax(axis=1))


def nearest_neighbours(
    vectors: np.ndarray, targets: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], neighbours: int
) -> Answers:
    """The vote of the rows nearest by cosine, nearer ones weighing more; nothing is trained.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers, int [n].
        folds: as `cut_folds` gives them.
        neighbours: how many vote, at most.
    """
    right = np.zeros(len(targets), bool)
    unit = normalize(vectors)
    for train, rest in folds:
        voters = KNeighborsClassifier(min(neighbours, len(train)), weights="distance")  # Euclidean, of unit vectors
        right[rest] = voters.fit(unit[train], targets[train]).predict(unit[rest]) == targets[rest]
    return Answers(right)


def common_rows(digests: Sequence[Sequence[str]], max_rows: int, seed: int) -> list[np.ndarray]:
    """For each set the row numbers of the images that all sets have, in one order; an image counts once.

    Args:
        digests: SHA-256 of each row's image, for each set.
        max_rows: how many to take at most, drawn by `seed`.
        seed: of the draw.
    """
    first_rows = [dict(reversed([(digest, row) for row, digest in enumerate(rows)])) for rows in digests]
    shared = sorted(set(first_rows[0]).intersection(*first_rows[1:]))
    if len(shared) > max_rows:
        chosen = np.random.default_rng(seed).permutation(len(shared))[:max_rows]
        shared = [shared[number] for number in sorted(chosen)]
    return [np.array([rows[digest] for digest in shared], np.int64) for rows in first_rows]


def keep_measurable(targets: np.ndarray) -> np.ndarray:
    """Rows whose class has two rows or more: of the others nothing can be left out and learned; bool [n]."""
    return np.asarray(np.bincount(targets)[targets] >= 2)
