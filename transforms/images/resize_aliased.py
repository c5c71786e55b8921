"""Resize without antialiasing, like TensorFlow's default."""

from __future__ import annotations

import functools

import numpy as np
import PIL.Image


def resize_aliased(image: PIL.Image.Image, height: int, width: int, *, nearest: bool = False) -> PIL.Image.Image:
    """Interpolate bilinearly between the four nearest pixels, however many others there are, or take the nearest.

    These are the values of ``tf.image.resize(image, (height, width))``, with which
    ``keras.utils.image_dataset_from_directory`` resizes, rounded to the nearest of 0 to 255: half-pixel centres,
    weights in float32.

    Args:
        image: RGB.
        height: of the result, in pixels.
        width: likewise.
        nearest: take the one nearest pixel.
    """
    pixels = np.asarray(image)
    if nearest:
        return PIL.Image.fromarray(pixels[_nearest(image.height, height)][:, _nearest(image.width, width)])
    above, below, down = _neighbours(image.height, height)
    left, right, across = _neighbours(image.width, width)
    upper, lower = (
        _between(rows[:, left].astype(np.float32), rows[:, right], across[:, None])
        for rows in (pixels[above], pixels[below])
    )
    return PIL.Image.fromarray(np.rint(_between(upper, lower, down[:, None, None])).astype(np.uint8))


def _between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    between: np.ndarray = low + (high - low) * weight
    return between


@functools.lru_cache(maxsize=256)
def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place of the new axis the two old ones it lies between, and how far it is from the first, float32."""
    scale = np.float32(size) / np.float32(new_size)
    places = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    first = np.floor(places)
    low = np.maximum(first, 0).astype(np.intp)
    high = np.minimum(np.ceil(places), size - 1).astype(np.intp)
    return low, high, places - first


def _nearest(size: int, new_size: int) -> np.ndarray:
    """For each place of the new axis the old one it lies in."""
    scale = np.float32(size) / np.float32(new_size)
    places = np.floor((np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale)
    nearest: np.ndarray = np.minimum(places.astype(np.intp), size - 1)
    return nearest
