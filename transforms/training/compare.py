"""Compare embeddings on the same images by a linear probe and nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from transforms.training.exact_solver import Solution, solve, without_advice
from transforms.training.head import VectorTransform, transform_vectors
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
        get right or wrong does not widen it. One row tells no deviation: any difference is possible then.
        """
        paired = self.right.astype(np.float64) - other.right
        mean = float(paired.mean())
        if len(paired) < 2:
            return mean, -1.0, 1.0
        half = 1.96 * float(paired.std(ddof=1)) / math.sqrt(len(paired))
        return mean, mean - half, mean + half


def read_answers(predictions: Path) -> Answers:
    """Which rows of a predictions.parquet, in order, are right."""
    table = pq.read_table(predictions, columns=["label", "predicted"])
    return Answers(pc.equal(table["label"], table["predicted"]).to_numpy())


Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""(rows to train on, rows left out) of each, as `exact.cut_folds` gives them."""


def probe(
    vectors: np.ndarray,
    targets: np.ndarray,
    folds: Folds,
    seed: int,
    *,
    transforms: Sequence[VectorTransform] = tuple(VectorTransform),
    balanced: bool = False,
) -> Answers:
    """Softmax regression as `imagebeam train` solves it, its penalty chosen within each fold's training rows.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers, int [n].
        folds: of the rows.
        seed: of the choice's cut.
        transforms: of the vectors, those to choose from.
        balanced: weigh rows so that every class counts the same.
    """
    classes = int(targets.max()) + 1

    def predict(train: np.ndarray, rest: np.ndarray) -> np.ndarray:
        held_out = _choosing_rows(targets[train], seed)
        solution = solve(
            vectors[train],
            targets[train],
            np.arange(len(train)),
            classes,
            transforms=transforms,
            held_out=held_out,
            balanced=balanced,
            seed=seed,
        )
        return _predict(solution, vectors[rest])

    return _left_out(targets, folds, predict)


def _left_out(targets: np.ndarray, folds: Folds, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Answers:
    """Compare with `targets` what `predict`, given rows to train on and rows left out, says of the latter."""
    right = np.zeros(len(targets), bool)
    for train, rest in folds:
        right[rest] = predict(train, rest) == targets[rest]
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
    logits = (values - solution.mean) / solution.deviation @ solution.kernel + solution.bias
    return np.asarray(logits.argmax(axis=1))


@without_advice()
def nearest_neighbours(vectors: np.ndarray, targets: np.ndarray, folds: Folds, neighbours: int) -> Answers:
    """The vote of the rows nearest by cosine, nearer ones weighing more; nothing is trained.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers, int [n].
        folds: of the rows.
        neighbours: how many vote, at most.
    """
    unit = normalize(vectors)

    def predict(train: np.ndarray, rest: np.ndarray) -> np.ndarray:
        voters = KNeighborsClassifier(min(neighbours, len(train)), weights="distance")  # Euclidean, of unit vectors
        return np.asarray(voters.fit(unit[train], targets[train]).predict(unit[rest]))

    return _left_out(targets, folds, predict)


def agreed_labels(labels: Sequence[Sequence[str | None]]) -> tuple[list[str | None], list[int]]:
    """The label of each image, and the numbers of those whose labels differ between sets.

    Args:
        labels: of the same images, for each set; None where it has none.

    Returns:
        For each image the label of the first set that has one; positions, rising.
    """
    found, differing = [], []
    for position, given in enumerate(zip(*labels, strict=True)):
        known = [label for label in given if label is not None]
        found.append(known[0] if known else None)
        if len(set(known)) > 1:
            differing.append(position)
    return found, differing


def common_rows(digests: Sequence[Sequence[str]], max_rows: int, seed: int) -> list[np.ndarray]:
    """For each set the row numbers of the images that all sets have, in one order; an image counts once.

    Args:
        digests: SHA-256 of each row's image, for each set.
        max_rows: how many to take at most, drawn by `seed`.
        seed: of the draw.
    """
    first_rows = [{digest: len(rows) - row for row, digest in enumerate(reversed(rows), 1)} for rows in digests]
    shared = sorted(set(first_rows[0]).intersection(*first_rows[1:]))
    if len(shared) > max_rows:
        chosen = np.random.default_rng(seed).permutation(len(shared))[:max_rows]
        shared = [shared[number] for number in sorted(chosen)]
    return [np.array([rows[digest] for digest in shared], np.int64) for rows in first_rows]
