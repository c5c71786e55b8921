"""Composite transparent pixels, and what a frame does not cover, over white."""

from __future__ import annotations

import numpy as np
import PIL.Image


def image_from_samples(samples: np.ndarray) -> PIL.Image.Image:
    """uint8 samples [height, width] or [height, width, 1 to 4] -> an RGB image.

    One channel is grey, two are grey and alpha, three RGB, four RGB and alpha; alpha is laid over white.
    """
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[..., 0]
    return flatten(PIL.Image.fromarray(np.ascontiguousarray(samples)))


def flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image of any 8-bit mode to RGB, composited over white."""
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
    """Drop an alpha channel that is 0 everywhere: it is an unused byte.

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
