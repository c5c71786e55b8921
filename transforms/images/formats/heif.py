"""HEIC, the photographs of phones, by libheif: with the extra ``heif``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
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
    """Whether the primary image is stored with its width and height exchanged (ISO/IEC 23008-12, ``irot``).

    pillow-heif does not say: it gives the size after turning.
    """
    meta = dict(_boxes(next(_contents(data, b"meta"), b"")[4:]))
    pitm, iprp = meta.get(b"pitm", b""), meta.get(b"iprp", b"")
    primary = int.from_bytes(pitm[4:8] if pitm[:1] > b"\0" else pitm[4:6], "big")
    properties = list(_boxes(next(_contents(iprp, b"ipco"), b"")))
    turns = 0
    for associations in _contents(iprp, b"ipma"):
        for index in _properties_of(primary, associations):
            kind, content = properties[index - 1] if 0 < index <= len(properties) else (b"", b"")
            turns += content[0] & 3 if kind == b"irot" and content else 0
    return turns % 2 == 1


def _properties_of(item: int, associations: bytes) -> Iterator[int]:
    """The numbers, from 1, of an item's properties in an ``ipma`` box."""
    id_bytes, index_bytes = 4 if associations[:1] > b"\0" else 2, 1 + (int.from_bytes(associations[1:4], "big") & 1)
    place = 8
    while place + id_bytes < len(associations):
        found = int.from_bytes(associations[place : place + id_bytes], "big")
        start = place + id_bytes + 1
        place = start + index_bytes * associations[start - 1]
        if found == item:
            for at in range(start, place, index_bytes):
                yield int.from_bytes(associations[at : at + index_bytes], "big") & (
                    0x7FFF if index_bytes == 2 else 0x7F
                )


def _contents(data: bytes, kind: bytes) -> Iterator[bytes]:
    return (content for found, content in _boxes(data) if found == kind)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes that stand one behind the other."""
    place = 0
    while place + 8 <= len(data):
        size, start = int.from_bytes(data[place : place + 4], "big"), place + 8
        if size == 1:  # A 64-bit size follows.
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = place + size if size else len(data)
        if end < start:
            return
        yield data[place + 4 : place + 8], data[start:end]
        place = end
