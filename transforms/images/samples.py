"""Samples of any depth to 8 bits, transparency to white, orientation to upright."""

from __future__ import annotations

import numpy as np
import PIL.Image

TRANSPOSES = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""


def scale_to_8_bits(values: np.ndarray, top: int) -> np.ndarray:
    """Samples from 0 to `top` -> uint8, 0 to 255, to the nearest; larger samples are clipped, never wrapped.

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


def image_from_samples(samples: np.ndarray) -> PIL.Image.Image:
    """uint8 samples [height, width] or [height, width, 1 to 4] -> an RGB image.

    One channel is grey, two are grey and alpha, three RGB, four RGB and alpha; alpha is laid over white.
    """
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[..., 0]
    return flatten(PIL.Image.fromarray(np.ascontiguousarray(samples)))


def flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn an image of any 8-bit mode into RGB, and lay what is transparent over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode not in ("RGBA", "LA"):
        image = image.convert("RGBA")
    over_white = PIL.Image.new("RGB", image.size, "white")
    over_white.paste(image, mask=image)
    return over_white


def drop_unused_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    """Take an alpha channel that is 0 everywhere for a byte that is not used: RGBA -> RGB.

    For formats that have 32-bit pixels without saying whether the fourth byte means anything. Nobody draws a picture
    that is wholly transparent, and many programs leave the byte empty.
    """
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def blank_outside(image: PIL.Image.Image, box: tuple[int, int, int, int]) -> PIL.Image.Image:
    """Make an RGB image white outside of (left, top, right, bottom), the part of its canvas that a frame covers."""
    if box == (0, 0, *image.size):
        return image
    canvas = PIL.Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(box), box[:2])
    return canvas


def turn_upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """Apply an EXIF orientation, 1 to 8; any other number leaves the image as it is."""
    transpose = TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)
