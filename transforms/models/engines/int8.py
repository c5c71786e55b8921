"""Quantise an embedder to int8 with NNCF, and measure the cost on held-out images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transforms.core.errors import ImagebeamError, last_line
from transforms.models.engines.openvino_model import import_openvino

if TYPE_CHECKING:
    import openvino

IMAGES = 200
"""Images that are drawn, where there are so many: half of them calibrate, the others measure."""

FEWEST_IMAGES = 24
"""Below it, ranges are guesses, and ten nearest neighbours are nearly all there are."""

NEIGHBOURS = 10

Vectors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cost:
    """What int8 changes, on images that it was not calibrated on.

    Attributes:
        images: measured.
        median_cosine: between float32 and int8 vectors of one image.
        lowest_cosine: of all of them.
        neighbours_kept: share of the ten nearest of each image, by cosine, that stay among the ten nearest, 0 to 1.
    """

    images: int
    median_cosine: float
    lowest_cosine: float
    neighbours_kept: float

    def describe(self) -> str:
        """In words: "100 images of the input: cosine 0.99981 in the median, ..."."""
        return (
            f"{self.images} images of the input: cosine {self.median_cosine:.5f} in the median, "
            f"{self.lowest_cosine:.5f} at the lowest; {self.neighbours_kept:.1%} of the ten nearest neighbours stay"
        )


def check_median(median_cosine: float, told: str, least: float) -> None:
    """Refuse an int8 model that costs too much.

    Args:
        median_cosine: what was measured.
        told: the same in words, and on which images.
        least: that it must reach.

    Raises:
        ImagebeamError: if it is lower, or no number.
    """
    if not median_cosine >= least:
        raise ImagebeamError(
            f"int8 costs too much: {told}. --int8_min_cosine is {least}. Choose another --precision, or a lower "
            "--int8_min_cosine."
        )


def measure(exact: Vectors, approximate: Vectors) -> Cost:
    """Compare vectors of the same images; of several columns, the worse figure counts.

    Args:
        exact: column name -> float32 [n, dimension], n of at least 2.
        approximate: likewise.
    """
    costs = [_measure(exact[column], approximate[column]) for column in exact]
    return Cost(
        costs[0].images,
        min(cost.median_cosine for cost in costs),
        min(cost.lowest_cosine for cost in costs),
        min(cost.neighbours_kept for cost in costs),
    )


def _measure(exact: np.ndarray, approximate: np.ndarray) -> Cost:
    before, after = _nearest(exact), _nearest(approximate)
    kept = np.mean([len(set(old) & set(new)) / len(old) for old, new in zip(before, after, strict=True)])
    between = cosines(exact, approximate)
    return Cost(len(exact), float(np.median(between)), float(between.min()), float(kept))


def cosines(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each row of [n, dimension] with the same row of another matrix: float64 [n]; 1 for two zeros."""
    between = np.asarray(np.sum(_unit_length(exact) * _unit_length(other), axis=1))
    between[(exact == other).all(axis=1)] = 1.0
    return between


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    scaled: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return scaled


def _nearest(vectors: np.ndarray) -> np.ndarray:
    similar = _unit_length(vectors) @ _unit_length(vectors).T
    np.fill_diagonal(similar, -np.inf)
    nearest: np.ndarray = np.argsort(-similar, axis=1, kind="stable")
    return nearest[:, : min(NEIGHBOURS, len(vectors) - 1)]


def quantize(
    model: openvino.Model,
    images: Sequence[np.ndarray],
    cost_of: Callable[[openvino.Model], Cost],
    least_median: float,
) -> tuple[openvino.Model, Cost, str]:
    """The int8 model that costs least, of the ways that NNCF knows; the first that is good enough.

    Args:
        model: of float32.
        images: uint8 RGB [height, width, 3], to calibrate on.
        cost_of: measures an int8 model; raises where OpenVINO cannot compile it.
        least_median: cosine that is good enough.

    Returns:
        The int8 model, its cost, and the name of NNCF's preset.

    Raises:
        ImagebeamError: if no way gives a model that OpenVINO compiles.
    """
    found: list[tuple[openvino.Model, Cost, str]] = []
    reasons = []
    for preset in ("MIXED", "PERFORMANCE"):
        try:
            approximate = _quantize(model, images, preset)
            cost = cost_of(approximate)
        except Exception as error:  # NNCF and OpenVINO raise RuntimeErrors of many lines, and others.
            reasons.append(f"{preset}: {last_line(error)}")
            continue
        found.append((approximate, cost, preset))
        if cost.median_cosine >= least_median:
            break
    if not found:
        raise ImagebeamError(f"There is no int8 model of this one ({'; '.join(reasons)}). Choose another --precision.")
    return max(found, key=lambda one: one[1].median_cosine)


def _quantize(model: openvino.Model, images: Sequence[np.ndarray], preset: str) -> openvino.Model:
    import_openvino()
    usual = logging.getLoggerClass()
    import nncf

    logging.setLoggerClass(usual)  # NNCF puts its own in place.
    # The logger's level alone: `nncf.set_log_level` sets that of its handlers too, which may be the program's.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model.clone(),
            nncf.Dataset([image[np.newaxis] for image in images]),
            preset=nncf.QuantizationPreset[preset],
            subset_size=len(images),
        )
