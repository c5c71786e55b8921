"""The flags of the grid search for a classifier head."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from pipelines.common.fields import Options, flag, refuse_both
from pipelines.options.training import FitOptions, HeadOptions, RowOptions, units
from transforms.core.errors import ImagebeamError
from transforms.core.text import spelled


def numbers(text: str) -> tuple[float, ...]:
    """Parse "0,0.01"."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"write numbers with commas between them, such as 0,0.01. Received: {text!r}"
        ) from None


def heads(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse "none/128/256,128"."""
    return tuple(units(head) for head in text.split("/"))


@dataclass(frozen=True)
class SearchOptions(Options):
    """A grid of heads to compare before the best is trained."""

    search: bool = flag(
        "cross-validate a grid of widths, weight decays and learning rates on the training rows, and train the best "
        "one; it replaces --hidden_units, --weight_decay and --learning_rate",
        False,
        action="store_true",
    )
    search_hidden_units: tuple[tuple[int, ...], ...] = flag(
        "hidden layers to try, separated by / (default: none/128/512)", (), type=heads, metavar="N,.../..."
    )
    search_weight_decay: tuple[float, ...] = flag(
        "weight decays to try (default: 0,0.01)", (), type=numbers, metavar="RATE,..."
    )
    search_learning_rate: tuple[float, ...] = flag(
        "learning rates to try (default: 0.001,0.01)", (), type=numbers, metavar="RATE,..."
    )
    search_folds: int | None = flag(
        "folds of the training rows; each is left out once (default: 3)", None, type=int, metavar="N"
    )

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ImagebeamError(f"--search_folds is at least 2. Received: {self.search_folds}.")
        given = [name for name, value in vars(self).items() if name != "search" and value not in (None, ())]
        if given and not self.search:
            raise ImagebeamError(f"--{given[0]} describes the grid of --search: give that too.")
        if any(width < 1 for head in self.search_hidden_units for width in head):
            raise ImagebeamError(
                f"--search_hidden_units are at least 1. Received: {spelled(self.search_hidden_units)}."
            )
        if not all(0 <= rate < math.inf for rate in self.search_weight_decay):
            raise ImagebeamError(f"--search_weight_decay is at least 0. Received: {spelled(self.search_weight_decay)}.")
        if not all(0 < rate < math.inf for rate in self.search_learning_rate):
            raise ImagebeamError(
                f"--search_learning_rate is more than 0. Received: {spelled(self.search_learning_rate)}."
            )

    def refuse_what_the_grid_decides(self, head: HeadOptions, fit: FitOptions) -> None:
        """Refuse flags in whose place the grid stands.

        Raises:
            ImagebeamError: for the first of them.
        """
        decided = [*head.given("hidden_units"), *fit.given("weight_decay", "learning_rate")]
        refuse_both(self.given("search"), decided, "The search decides that; --search_... says what it tries.")

    def values(self) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...], tuple[float, ...]]:
        """Hidden layers, weight decays and learning rates to try, each once."""
        return (
            tuple(dict.fromkeys(self.search_hidden_units or ((), (128,), (512,)))),
            tuple(dict.fromkeys(self.search_weight_decay or (0.0, 0.01))),
            tuple(dict.fromkeys(self.search_learning_rate or (0.001, 0.01))),
        )

    @property
    def folds(self) -> int:
        """Parts that the training rows are cut into."""
        return 3 if self.search_folds is None else self.search_folds


def asks_for_epochs(rows: RowOptions, head: HeadOptions, fit: FitOptions, search: SearchOptions) -> list[str]:
    """The flags given that the exact solver cannot serve, as they are written."""
    names = [name for name in vars(fit) if name not in _SERVED_BY_THE_EXACT_SOLVER]
    return [*search.given("search"), *head.given(), *fit.given(*names), *rows.given("multi_label")]


_SERVED_BY_THE_EXACT_SOLVER = ("seed", "balance_classes", "checkpoint_seconds")
"""Fields of `FitOptions` that it heeds, or that say nothing of the weights."""
