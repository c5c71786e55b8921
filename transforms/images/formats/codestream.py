"""Read the headers of JPEG, JPEG-LS and JPEG 2000 frames without decoding them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from transforms.images.errors import ImageError

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class Stream:
    """Size in pixels, components and bits of a sample."""

    width: int
    height: int
    components: int
    bits: int


def read_stream(data: bytes) -> Stream:
    """The frame header of a JPEG, JPEG-LS or JPEG 2000 codestream; bare, or JPEG 2000 in a JP2 file.

    Raises:
        ImageError: ``undecodable``, or ``truncated`` for a frame without its end.
    """
    if data[4:8] == b"jP  ":
        data = data[max(0, data.find(b"\xff\x4f\xff\x51")) :]
    is_jpeg_2000 = data.startswith(b"\xff\x4f\xff\x51")
    if not is_jpeg_2000 and not data.startswith(b"\xff\xd8"):
        raise ImageError("undecodable", "A compressed frame begins as none of its kind does.")
    if b"\xff\xd9" not in data[-1024:]:
        raise ImageError("truncated", "A compressed frame ends before its end marker.")
    try:
        return _read_siz(data) if is_jpeg_2000 else _read_sof(data)
    except (struct.error, IndexError):
        raise ImageError("truncated", "A compressed frame ends within its header.") from None


def _read_siz(data: bytes) -> Stream:
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    parts = [struct.unpack_from(">3B", data, 42 + 3 * index) for index in range(min(components, 4))]
    if any(part[1:] != (1, 1) for part in parts) or len({part[0] for part in parts}) != 1:
        raise ImageError("unsupported_dicom", "The DICOM's JPEG 2000 has components of several sizes.")
    width, height = right - left, bottom - top
    # More tiles than pixels are a way to ask for memory without bounds.
    if not tile_width or not tile_height or width * height > 65_535 * tile_width * tile_height:
        raise ImageError("undecodable", "A compressed frame has tiles of no size.")
    return Stream(width, height, components, (parts[0][0] & 0x7F) + 1)


def _read_sof(data: bytes) -> Stream:
    place = 2
    while True:
        if data[place] != 0xFF:
            raise ImageError("undecodable", "A compressed frame's header is damaged.")
        marker = data[place + 1]
        if marker == 0xFF:  # Fill bytes may stand before a marker.
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            return Stream(width, height, components, bits)
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
