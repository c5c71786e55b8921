"""HEIC, the photographs of phones, by libheif: with the extra ``heif``."""

from __future__ import annotations

import importlib

import numpy as np

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.formats.isobmff import primary_properties
from transforms.images.transparency import flatten, image_from_samples


def decode(data: bytes, limits: Limits) -> Decoded:
    """The primary image, which libheif turns upright; depth maps and thumbnails are left out.

    Its orientation is the file's own (``irot``, ``imir``). EXIF repeats it, and is not applied a second time.

    Raises:
        ImageError: ``unsupported_heic`` without pillow-heif.
    """
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        raise ImageError(
            "unsupported_heic", "HEIC files are decoded by an extra: pip install 'imagebeam[heif]'."
        ) from None
    container = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    primary = container[container.primary_index]
    limits.check(*primary.size)
    width, height = primary.size
    if _lies_on_its_side(data):
        width, height = height, width
    if primary.mode == "I;16":  # Grey of 10 or 12 bits, which libheif leaves as it is, in the upper bits of 16.
        bits = primary.info["bit_depth"]
        image = image_from_samples(scale_to_8_bits(np.asarray(primary) >> (16 - bits), (1 << bits) - 1))
    else:
        image = flatten(primary.to_pillow())
    return Decoded(image, width, height, "icc_profile" in primary.info)


def _lies_on_its_side(data: bytes) -> bool:
    """Whether the primary image is stored with its width and height exchanged (``irot``).

    pillow-heif does not say: it gives the size after turning.
    """
    turns = sum(content[0] & 3 for kind, content in primary_properties(data) if kind == b"irot" and content)
    return turns % 2 == 1
