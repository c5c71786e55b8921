"""Convert linear light of any range to 8 bits, for OpenEXR and Radiance HDR."""

from __future__ import annotations

import numpy as np


def show(linear: np.ndarray) -> np.ndarray:
    """Tone mapping: clip at 1.0, which is white, and apply the sRGB curve.

    That is exposure 0 of OpenEXR's viewers. Exposure is not adapted to the picture: it is the photographer's, and a
    picture that fits into 0 to 1 becomes what it was before somebody made its sRGB linear. NaN is black.

    Args:
        linear: floats of any shape.

    Returns:
        uint8 of the same shape.
    """
    light = np.clip(np.nan_to_num(linear.astype(np.float32), nan=0.0), 0.0, 1.0)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    return np.asarray(np.rint(curve * 255).astype(np.uint8))
