"""Read the orientation from EXIF or XMP. Unreadable metadata gives no orientation."""

from __future__ import annotations

import re
from typing import Literal

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


_ORIENTATION = 274
_IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
"""Bytes of a whole number by its type. The standard has SHORT (3); exiv2 writes SLONG (9), and readers take others."""


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """1 to 8, as the EXIF standard numbers them; XMP's counts where EXIF has none."""
    found = _in_exif(exif) if exif else None
    if found is None and xmp and (match := _IN_XMP.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _in_exif(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF structure, with or without ``Exif`` before it."""
    block = block.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(block[:4])
    if order is None:
        return None
    start = int.from_bytes(block[4:8], order)
    count = int.from_bytes(block[start : start + 2], order)
    for position in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        if int.from_bytes(block[position : position + 2], order) == _ORIENTATION:
            size = _SIZES.get(int.from_bytes(block[position + 2 : position + 4], order))
            return None if size is None else int.from_bytes(block[position + 8 : position + 8 + size], order)
    return None


def turn_upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """Apply an EXIF orientation, 1 to 8; any other number leaves the image as it is."""
    transpose = TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)
