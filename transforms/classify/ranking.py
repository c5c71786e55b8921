"""The most probable labels of each row, as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def rank(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, int [n, classes], and their probabilities, float32, of each row, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return order, np.take_along_axis(probabilities, order, axis=1).astype(np.float32)


def top_columns(order: np.ndarray, ranked: np.ndarray, names: Sequence[str], top_k: int) -> dict[str, pa.Array]:
    """The first `top_k` of what `rank` gives, as columns of lists."""
    labels = np.asarray(names, object)[order[:, :top_k]]
    return {
        "top_labels": pa.array(list(labels), pa.list_(pa.string())),
        "top_probabilities": pa.array(list(ranked[:, :top_k]), pa.list_(pa.float32())),
    }
