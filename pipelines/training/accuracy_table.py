"""Format accuracies on the same rows and their differences, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.common.console import print_table
from transforms.core.text import printable

if TYPE_CHECKING:
    from transforms.training.compare import Answers


def describe(answers: Answers, other: Answers) -> dict[str, Any]:
    """Accuracy and difference to `other` with their 95 % intervals, in JSON terms."""
    difference, low, high = answers.difference(other)
    return {
        "accuracy": answers.accuracy,
        "interval_95": answers.interval,
        "difference": difference,
        "difference_interval_95": (low, high),
    }


def accuracy_cell(found: dict[str, Any]) -> str:
    """The accuracy of what `describe` gives, as text."""
    low, high = found["interval_95"]
    return f"{found['accuracy']:.4f} ({low:.4f} to {high:.4f})"


def difference_cell(found: dict[str, Any]) -> str:
    """Format the difference and its interval as text."""
    low, high = found["difference_interval_95"]
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def print_accuracies(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Print rows of text on stdout; names of folders among them are neither markup nor obeyed by a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    print_table(table)
