"""Plot training curves and confusion matrices as PNG, without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.plots.class_names import shown_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 100
"""Classes in a confusion matrix: of more, those with the most errors are drawn."""

_NUMBERS_UP_TO = 25
"""Classes up to which the cells of a confusion matrix hold their number: there is no room in smaller cells."""

_CHARACTERS_ACROSS = 36
"""Characters of all column names together up to which they stand upright."""

_COLORS = {"train": "#1f77b4", "validation": "#d95f02"}


def training_curves(history: Mapping[str, Sequence[float]], best_epoch: int) -> bytes:
    """Loss and accuracy over the epochs, with the epoch marked whose weights were kept.

    Args:
        history: loss and accuracy, and val_loss and val_accuracy where there was validation; a value an epoch.
        best_epoch: from 1.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(11, 4.2)
    for place, (name, unit) in enumerate((("loss", "nats per row"), ("accuracy", "share of labels right")), 1):
        axes = figure.add_subplot(1, 2, place)
        for split, key in (("train", name), ("validation", f"val_{name}")):
            if values := history.get(key):
                marker = "o" if len(values) == 1 else ""
                axes.plot(range(1, len(values) + 1), values, color=_COLORS[split], label=split, marker=marker)
        axes.axvline(best_epoch, color="grey", linestyle=":", label=f"epoch {best_epoch}: weights kept")
        axes.set(title=name.capitalize(), xlabel="epoch", ylabel=f"{name} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return to_png(figure)


def penalty_curves(candidates: Sequence[Mapping[str, Any]]) -> bytes:
    """Cross-validated log loss over the inverse L2 penalty, a line for each vector transform.

    Args:
        candidates: best first; each has transform, inverse_penalty and log_loss.

    Returns:
        PNG.
    """
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot(1, 1, 1)
    for transform in sorted({candidate["transform"] for candidate in candidates}):
        points = sorted((c["inverse_penalty"], c["log_loss"]) for c in candidates if c["transform"] == transform)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"vector transform: {transform}")
    best = candidates[0]
    axes.axvline(best["inverse_penalty"], color="grey", linestyle=":", label="chosen")
    axes.set(title="Cross-validated log loss", xlabel="inverse L2 penalty (C)", ylabel="log loss (nats per row)")
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    return to_png(figure)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str], split: str) -> bytes:
    """Rows by true and predicted class, coloured by the share of the true class.

    Args:
        truth: class numbers [n].
        predicted: likewise.
        classes: names by number.
        split: what the rows are, for the title.

    Returns:
        PNG.
    """
    from sklearn.metrics import confusion_matrix as count

    counts = count(truth, predicted, labels=np.arange(len(classes)))
    title = f"Confusion matrix: {len(truth):,} {split} rows, {np.trace(counts) / max(1, counts.sum()):.1%} right"
    chosen = np.arange(len(classes))
    if len(classes) > MAX_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        chosen = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
        counts, title = (
            counts[np.ix_(chosen, chosen)],
            f"{title}\nthe {MAX_CLASSES} of {len(classes)} classes with the most errors",
        )
    names, title = _names(classes, chosen, title)
    return _heatmap(counts, names, names, title, xlabel="predicted class", ylabel="true class")


def label_outcomes(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str], split: str) -> bytes:
    """What a confusion matrix is for several labels a row: found, missed and wrongly said, by class.

    Args:
        truth: 0 and 1, [n, classes].
        predicted: likewise.
        classes: names by number.
        split: what the rows are, for the title.

    Returns:
        PNG.
    """
    there, said = truth.astype(bool), predicted.astype(bool)
    table = np.stack([(there & said).sum(axis=0), (there & ~said).sum(axis=0), (said & ~there).sum(axis=0)], axis=1)
    title = f"Labels of {len(truth):,} {split} rows"
    chosen = np.arange(len(classes))
    if len(classes) > MAX_CLASSES:
        chosen = np.sort(np.argsort(-table[:, 1:].sum(axis=1), kind="stable")[:MAX_CLASSES])
        table, title = table[chosen], f"{title}\nthe {MAX_CLASSES} of {len(classes)} classes with the most errors"
    names, title = _names(classes, chosen, title)
    return _heatmap(table, names, ["found", "missed", "wrongly said"], title, xlabel="outcome", ylabel="class")


def _names(classes: Sequence[str], chosen: np.ndarray, title: str) -> tuple[list[str], str]:
    """Names of the chosen classes to draw, and the title with a note where some of them are numbers."""
    names, numbered = shown_names([classes[number] for number in chosen], chosen.tolist())
    note = "\n#: names that cannot be drawn here, by their place in labels.json, from 0" if numbered else ""
    return names, title + note


def _heatmap(
    counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, *, xlabel: str, ylabel: str
) -> bytes:
    """Counts as a grid, each row coloured by its shares."""
    from matplotlib.colors import PowerNorm

    height, width = counts.shape
    cell = float(np.interp(max(height, width), [10, 100], [0.55, 0.17]))  # inches
    font = float(np.interp(max(height, width), [10, 100], [10, 7]))
    margin = 0.075 * font / 7 * max(map(len, [*rows, *columns]))
    figure = new_figure(max(5.5, width * cell + margin + 2.0), max(3.5, height * cell + margin + 1.6))
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root lets a few per cent of errors be seen beside a diagonal of nearly one.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest", aspect="auto")
    fits = width * max(map(len, columns)) <= _CHARACTERS_ACROSS
    axes.set_xticks(range(width), columns, rotation=0 if fits else 90, fontsize=font, parse_math=False)
    axes.set_yticks(range(height), rows, fontsize=font, parse_math=False)
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    figure.colorbar(image, label="share of the row", fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    if max(height, width) <= _NUMBERS_UP_TO:
        _write_numbers(axes, counts, shares, font * 0.8)
    return to_png(figure)


def _write_numbers(axes: Axes, counts: np.ndarray, shares: np.ndarray, font: float) -> None:
    for (row, column), number in np.ndenumerate(counts):
        if number:
            color = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=color, fontsize=font)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure, drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
