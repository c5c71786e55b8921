"""HEIC, the photographs of phones, by libheif: with the extra ``heif``."""

from __future__ import annotations

import importlib

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.transparency import flatten


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
    return Decoded(flatten(primary.to_pillow()), width, height, "icc_profile" in primary.info)
