"""Cross-validate a small grid of heads with scikit-learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold

from transforms.training.exact_solver import cut_folds

Train = Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], Callable[[np.ndarray], np.ndarray]]
"""(vectors [n, dimension], targets, parameters) -> a function from vectors to probabilities [n, classes]."""

Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""(probabilities, targets) -> scores by name, of which a larger one is better; NaN for probabilities that are."""


class Trainable(BaseEstimator):  # type: ignore[misc]
    """What scikit-learn needs to see of a head: parameters to set, and a `fit`.

    Attributes:
        train: makes a classifier from rows and parameters.
        parameters: those of the grid's point.
    """

    def __init__(self, train: Train, parameters: Mapping[str, Any] | None = None) -> None:
        self.train = train
        self.parameters = parameters

    def fit(self, vectors: np.ndarray, targets: np.ndarray) -> Self:
        """Train on rows."""
        self.predict_ = self.train(vectors, targets, self.parameters or {})
        return self


def search(
    vectors: np.ndarray,
    targets: np.ndarray,
    images: np.ndarray,
    points: Sequence[Mapping[str, Any]],
    train: Train,
    score: Score,
    *,
    rank_by: str,
    folds: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Cross-validate every point of a grid.

    Args:
        vectors: float32 [n, dimension].
        targets: class numbers [n], or 0 and 1 [n, classes].
        images: a number for each row's image [n]: equal images stay in one fold.
        points: parameters to try.
        train: makes a classifier.
        score: says how good it is on the fold left out.
        rank_by: name of the score to rank by.
        folds: parts the rows are cut into, at most, as `cut_folds`; stratified where rows have one class.
        seed: of the cut.

    Returns:
        One dict a point, best first: its parameters, and for each score the mean over the folds under the score's
        name and the standard deviation under "<name>_std". Those whose scores are NaN come last.
    """
    grid = GridSearchCV(
        Trainable(train),
        {"parameters": list(points)},
        scoring=lambda estimator, x, y: score(estimator.predict_(x), y),
        cv=_cut(targets, images, folds, seed),
        refit=False,
        error_score="raise",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One or more of the test scores are non-finite", UserWarning)
        results = grid.fit(vectors, targets).cv_results_
    names = [key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_")]
    table = [
        {
            **point,
            **{name: float(results[f"mean_test_{name}"][number]) for name in names},
            **{f"{name}_std": float(results[f"std_test_{name}"][number]) for name in names},
        }
        for number, point in enumerate(results["param_parameters"])
    ]
    return sorted(table, key=lambda row: (math.isnan(row[rank_by]), -row[rank_by]))


def _cut(targets: np.ndarray, images: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows left out) of each fold; fewer where there are fewer images, or rows of each class."""
    if targets.ndim == 1:
        return cut_folds(targets, images, folds, seed)
    groups = min(folds, len(np.unique(images)))
    if groups < 2:
        everything = np.arange(len(targets))
        return [(everything, everything)]
    return list(GroupKFold(groups, shuffle=True, random_state=seed).split(targets, groups=images))
