"""Plots of a run, as PNG: image sizes and embeddings. They contain no text from the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transforms.plots.training import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE = "#2f6db5"
_OTHERS = "#b8c2cc"
_BINS = 30


def image_sizes(widths: Mapping[int, int], heights: Mapping[int, int]) -> bytes:
    """Histograms of image widths and heights.

    Args:
        widths: in pixels -> images.
        heights: likewise.
    """
    figure = new_figure(11, 3.6)
    for place, (name, counts) in enumerate((("width", widths), ("height", heights)), 1):
        axes = figure.add_subplot(1, 2, place)
        _histogram(axes, counts)
        axes.set(title=f"Stored image {name}", xlabel="pixels", ylabel="images")
    return to_png(figure)


def _histogram(axes: Axes, counts: Mapping[int, int]) -> None:
    """A bar a value where they lie close together, else bins of whole pixels."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // _BINS)
    edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(
        list(counts), bins=edges.tolist(), weights=list(counts.values()), color=_BLUE, edgecolor="white", linewidth=0.5
    )
    if len(edges) < 5:
        axes.set_xlim(low - 4, high + 4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def colours(count: int) -> list[str]:
    """So many colours that can be told apart, 18 at most, as in "#1f77b4"; none is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = [to_hex(colormaps["tab20"](index)) for index in range(20) if index not in (14, 15)]
    return (palette[::2] + palette[1::2])[:count]


def embeddings(vectors: np.ndarray, labels: Sequence[str | None], shown: Mapping[str, str]) -> bytes:
    """The first two principal components, and the lengths of the vectors.

    Args:
        vectors: float32 [n, dimension], n and dimension at least 2.
        labels: of each.
        shown: label -> colour; vectors of other labels are grey.
    """
    from matplotlib.ticker import MaxNLocator
    from sklearn.decomposition import PCA

    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    centred = vectors - vectors.mean(axis=0)
    total = float(np.square(centred, dtype=np.float64).sum())
    if total > 1e-12 * float(np.square(vectors, dtype=np.float64).sum()):  # The mean of equal floats is rounded.
        pca = PCA(2, random_state=0)
        points = pca.fit_transform(centred)
        shares = pca.explained_variance_ratio_
    else:  # Equal vectors vary in no direction at all.
        points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    # In any order of labels one would cover another: the points are drawn as they come, mixed; grey ones lie beneath.
    rest = _OTHERS if shown else _BLUE
    colour_of = np.array([rest if label is None else shown.get(label, rest) for label in labels])
    order = np.argsort(colour_of != rest, kind="stable")
    size = float(np.interp(len(vectors), [100, 5000], [24, 5]))
    left.scatter(*points[order].T, s=size, c=colour_of[order], linewidths=0, alpha=0.85)
    left.set(
        title="First two principal components",
        xlabel=f"component 1 ({shares[0]:.0%} of the variance)",
        ylabel=f"component 2 ({shares[1]:.0%})",
    )
    lengths = np.linalg.norm(vectors, axis=1)
    low, high = float(lengths.min()), float(lengths.max())
    if high - low <= 1e-6 * high:  # Bins would be narrower than what float32 can tell apart.
        low, high = low - 0.5, high + 0.5
    right.hist(lengths, bins=40, range=(low, high), color=_BLUE)
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(title="Length of the vectors", xlabel="L2 norm", ylabel="embeddings")
    return to_png(figure)
