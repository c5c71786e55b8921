"""Predict any number of rows in batches of few sizes, since each size may cost a compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

_SMALLEST = 8
"""Rows of a batch, where sizes are rounded up."""


def predict_rows(model: keras.Model, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """What a model of one output gives for rows, `batch_size` of them at a time.

    JAX compiles the model for every size of a batch: there a smaller one is filled up with zeros to a power of two.

    Args:
        model: [n, ...] -> [n, outputs].
        rows: at least one, of the model's dtype.
        batch_size: rows computed at once at most.
    """
    import keras

    round_up = keras.backend.backend() == "jax"
    outputs = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        count = len(batch)
        if round_up:
            batch = fill_up(batch, min(batch_size, max(_SMALLEST, 1 << (count - 1).bit_length())))
        outputs.append(model.predict_on_batch(batch)[:count])
    return np.concatenate(outputs)


def fill_up(batch: np.ndarray, rows: int) -> np.ndarray:
    """A batch with zeros behind it, so that it has as many rows."""
    filled = np.zeros((rows, *batch.shape[1:]), batch.dtype)
    filled[: len(batch)] = batch
    return filled
