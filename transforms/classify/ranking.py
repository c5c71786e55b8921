"""The most probable labels of each row, as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def most_probable(
    probabilities: np.ndarray, names: Sequence[str], top_k: int
) -> tuple[np.ndarray, np.ndarray, dict[str, pa.Array]]:
    """Order and values of probabilities [n, classes], highest first, and the columns of the first `top_k`."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).astype(np.float32)
    labels = np.asarray(names, object)[order[:, :top_k]]
    return (
        order,
        ranked,
        {
            "top_labels": pa.array(list(labels), pa.list_(pa.string())),
            "top_probabilities": pa.array(list(ranked[:, :top_k]), pa.list_(pa.float32())),
        },
    )
