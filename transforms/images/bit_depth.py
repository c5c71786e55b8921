"""Convert samples of any bit depth to 8 bits."""

from __future__ import annotations

import numpy as np


def scale_to_8_bits(values: np.ndarray, top: int) -> np.ndarray:
    """Scale samples from 0..`top` to uint8 0..255, rounding to the nearest. Larger samples are clipped.

    Args:
        values: unsigned integers of any shape.
        top: the sample that means white, or opaque.
    """
    if top == 255 and values.dtype == np.uint8:
        return values
    if values.dtype == np.uint8:  # Every sample that can occur, looked up.
        return np.asarray(scale_to_8_bits(np.arange(256, dtype=np.uint16), top)[values])
    scaled: np.ndarray
    if top > 65_535:
        scaled = np.rint(np.minimum(values, top) * (255 / top))
    elif values.size > 65_536:  # Look each sample up, which needs the least memory.
        table = (np.minimum(np.arange(65_536, dtype=np.uint32), top) * 255 + top // 2) // top
        return np.asarray(table.astype(np.uint8)[np.minimum(values, 65_535)])
    else:
        scaled = (np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top
    return scaled.astype(np.uint8)
