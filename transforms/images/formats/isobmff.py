"""Read the boxes of HEIF, AVIF and JPEG 2000 (ISO/IEC 14496-12), and the properties of a HEIF's image (23008-12)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction


def primary_properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each property of the primary image, in order."""
    meta = dict(_boxes(next(_contents(data, b"meta"), b"")[4:]))
    pitm, iprp = meta.get(b"pitm", b""), meta.get(b"iprp", b"")
    primary = int.from_bytes(pitm[4:8] if pitm[:1] > b"\0" else pitm[4:6], "big")
    properties = list(_boxes(next(_contents(iprp, b"ipco"), b"")))
    for associations in _contents(iprp, b"ipma"):
        for index in _properties_of(primary, associations):
            if 0 < index <= len(properties):
                yield properties[index - 1]


def clean_aperture(data: bytes, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the part of the primary image that is to be shown (``clap``); None for all of it.

    Args:
        data: the file.
        size: (width, height) in pixels of the image as stored, of which a part must lie inside and on whole pixels.
    """
    content = next((content for kind, content in primary_properties(data) if kind == b"clap"), b"")
    if len(content) < 32:
        return None
    numbers = [int.from_bytes(content[at : at + 4], "big", signed=at % 8 == 0) for at in range(0, 32, 4)]
    if 0 in numbers[1::2]:
        return None
    width, height, right_of_middle, below_middle = map(Fraction, numbers[::2], numbers[1::2])
    left, top = right_of_middle + (size[0] - width) / 2, below_middle + (size[1] - height) / 2
    box = (left, top, left + width, top + height)
    is_whole = all(edge.denominator == 1 for edge in box)
    if not is_whole or not (0 <= left < box[2] <= size[0] and 0 <= top < box[3] <= size[1]):
        return None
    return int(left), int(top), int(box[2]), int(box[3])


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


def boxes(data: bytes, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and start and end of the content, of the boxes that stand one behind the other between two places."""
    while place + 8 <= end:
        size, start = int.from_bytes(data[place : place + 4], "big"), place + 8
        if size == 1:  # A 64-bit size follows.
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        stop = place + size if size else end
        if stop < start:
            return
        yield data[place + 4 : place + 8], start, min(stop, end)
        place = stop


def _contents(data: bytes, kind: bytes) -> Iterator[bytes]:
    return (content for found, content in _boxes(data) if found == kind)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes that stand one behind the other."""
    return ((kind, data[start:end]) for kind, start, end in boxes(data, 0, len(data)))
