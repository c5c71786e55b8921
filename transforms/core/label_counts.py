"""Count labelled rows and classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from transforms.core.text import first_few, printable

CLASSES_KEPT = 1_000
"""Classes whose names are kept, the first by name; whether there are more is kept too."""

_NAME_CHARACTERS = 40


@dataclass
class LabelCount:
    """The labels of some rows.

    Attributes:
        rows: counted.
        labelled: rows that have a label.
        classes: the different labels, sorted, `CLASSES_KEPT` at most.
        has_more: whether there are classes beyond those.
    """

    rows: int = 0
    labelled: int = 0
    classes: list[str] = field(default_factory=list)
    has_more: bool = False

    @classmethod
    def of(cls, labels: Iterable[str | None]) -> LabelCount:
        """Count the labels of rows, None where a row has none."""
        rows = list(labels)
        count = cls(len(rows), sum(label is not None for label in rows))
        count._take({label for label in rows if label is not None})
        return count

    def __add__(self, other: LabelCount) -> LabelCount:
        total = LabelCount(self.rows + other.rows, self.labelled + other.labelled, has_more=self.has_more)
        total.has_more |= other.has_more
        total._take({*self.classes, *other.classes})
        return total

    def _take(self, classes: set[str]) -> None:
        self.classes = sorted(classes)[:CLASSES_KEPT]
        self.has_more |= len(classes) > CLASSES_KEPT

    def describe(self) -> str:
        """One line for the user."""
        if not self.labelled:
            return "labels: no row has one (see --label_column and --label_from)"
        number = f"{'more than ' if self.has_more else ''}{len(self.classes):,}"
        names = first_few([_shortened(name) for name in self.classes])
        rows = "all" if self.labelled == self.rows else f"{self.labelled:,} of {self.rows:,}"
        noun = "class" if number == "1" else "classes"
        return f"labels: {rows} rows have one, {number} {noun}: {names}"


def _shortened(name: str) -> str:
    shown = printable(" ".join(name.split()))
    return shown if len(shown) <= _NAME_CHARACTERS else f"{shown[: _NAME_CHARACTERS - 3]}..."
