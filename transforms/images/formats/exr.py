"""OpenEXR by tensorflow-io, in a process of its own (`transforms.images.isolated.isolated_decoder`).

tensorflow-io gives one channel at a time and says neither where it lies nor how it is sampled, so the header is read
here too, and what it would get wrong (subsampled channels) or allocate without bounds (tiles, deep data) is refused.
"""

from __future__ import annotations

import importlib
import struct
from dataclasses import dataclass

import numpy as np
import PIL.Image

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.formats.light import show

_TILED, _DEEP, _MULTI_PART = 0x200, 0x800, 0x1000
_MAX_HEADER = 1 << 20
_ROWS_OF_A_CHUNK = (1, 1, 1, 16, 32, 16, 32, 32, 32, 256)
"""By compression: none, RLE, ZIPS, ZIP, PIZ, PXR24, B44, B44A, DWAA, DWAB."""


@dataclass(frozen=True)
class Box:
    """Pixels from (left, top) to (right, bottom), both of them included."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left + 1

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top + 1


@dataclass(frozen=True)
class Header:
    """What the first part of a file is.

    Attributes:
        channels: name -> (x, y) sampling.
        data: where there are pixels.
        display: what is shown.
        tile: (width, height) of a tile in pixels; None for scanlines.
        chunks: where the table of the scanlines' places lies, and its length; None where the file has another.
    """

    channels: dict[str, tuple[int, int]]
    data: Box
    display: Box
    tile: tuple[int, int] | None
    chunks: tuple[int, int] | None


def decode(data: bytes, limits: Limits) -> Decoded:
    """The first part's display window in sRGB, whose white is 1.0; see `light.show`.

    R, G and B, or Y for grey; A, which OpenEXR has multiplied into the colours already, is laid over white, and so is
    what the data window leaves free of the display window.

    Raises:
        ImageError: for a damaged file, or one without such channels.
    """
    header = read_header(data)
    if header.chunks:
        _check_chunks(data, header.chunks)
    limits.check(header.display.width, header.display.height)
    limits.check(header.data.width, header.data.height, "The data window")
    if header.tile:
        limits.check(*header.tile, "A tile")
    names = _colours(header)
    # Of the first part alone: the file may have parts that would be allocated whole.
    light = np.stack([_channel(data, name) for name in names], axis=-1)
    cover = _channel(data, "A") if "A" in header.channels else np.ones(light.shape[:2], np.float32)
    if light.shape[:2] != (header.data.height, header.data.width):
        raise ImageError("undecodable", "The EXR's pixels are not as many as its header says.")
    shown = np.ones((header.display.height, header.display.width, 3), np.float32)
    there, here = _overlap(header)
    shown[there] = np.broadcast_to(light[here] + (1 - np.clip(cover[here], 0, 1))[..., None], shown[there].shape)
    return Decoded(PIL.Image.fromarray(show(shown)), header.display.width, header.display.height)


def _channel(data: bytes, name: str) -> np.ndarray:
    """float32 [height, width] of the data window."""
    image = importlib.import_module("tensorflow_io").experimental.image
    _, kinds, names = image.decode_exr_info(data)
    kind = dict(zip(names.numpy()[0].tolist(), kinds.numpy()[0].tolist(), strict=True))[name.encode()]
    return np.asarray(image.decode_exr(data, 0, name, kind).numpy(), np.float32)


def _colours(header: Header) -> tuple[str, ...]:
    """The channels that make the picture: three, or one."""
    names = next((names for names in (("R", "G", "B"), ("Y",)) if set(names) <= header.channels.keys()), None)
    if names is None or {"RY", "BY"} & header.channels.keys():
        raise ImageError("unsupported_exr", "The EXR's first part has neither R, G and B nor Y alone.")
    if any(header.channels[name] != (1, 1) for name in (*names, *({"A"} & header.channels.keys()))):
        raise ImageError("unsupported_exr", "The EXR has channels of fewer pixels than the picture.")
    return names


def _overlap(header: Header) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where data window and display window meet: as rows and columns of the one shown, and of the data."""
    left, right = max(header.data.left, header.display.left), min(header.data.right, header.display.right)
    top, bottom = max(header.data.top, header.display.top), min(header.data.bottom, header.display.bottom)
    if left > right or top > bottom:
        raise ImageError("undecodable", "The EXR has no pixels in its display window.")

    def within(box: Box) -> tuple[slice, slice]:
        return slice(top - box.top, bottom + 1 - box.top), slice(left - box.left, right + 1 - box.left)

    return within(header.display), within(header.data)


def read_header(data: bytes) -> Header:
    """The first part's header.

    Raises:
        ImageError: if there is none, or it is of a kind that is not decoded.
    """
    if len(data) < 8:
        raise ImageError("truncated", "The EXR ends within its header.")
    (flags,) = struct.unpack_from("<I", data, 4)
    if flags & 0xFF != 2:
        raise ImageError("unsupported_exr", f"The EXR is of version {flags & 0xFF}; 2 is decoded.")
    if flags & _DEEP:
        raise ImageError("unsupported_exr", "The EXR holds deep data: many samples a pixel.")
    attributes, end = _attributes(data)
    try:
        if attributes.get("type", b"").startswith(b"deep"):
            raise ImageError("unsupported_exr", "The EXR holds deep data: many samples a pixel.")
        tiles = attributes.get("tiles") if flags & _TILED or attributes.get("type", b"") == b"tiledimage" else None
        window = Box(*struct.unpack("<4i", attributes["dataWindow"]))
        chunks = -(-window.height // _ROWS_OF_A_CHUNK[attributes["compression"][0]])
        return Header(
            _channels(attributes["channels"]),
            window,
            Box(*struct.unpack("<4i", attributes["displayWindow"])),
            struct.unpack_from("<2I", tiles) if tiles is not None else None,
            None if flags & (_TILED | _MULTI_PART) else (end + 1, chunks),
        )
    except (KeyError, ValueError, IndexError, struct.error) as error:
        raise ImageError("undecodable", f"The EXR's header is damaged ({type(error).__name__}).") from None


def _check_chunks(data: bytes, table: tuple[int, int]) -> None:
    """Refuse a file that is cut short, at which OpenEXR 2.4 crashes."""
    place, count = table
    if place + 8 * count > len(data):
        raise ImageError("truncated", "The EXR ends before its first scanline.")
    offsets = np.frombuffer(data, "<u8", count, place)
    if count and not offsets.all():
        raise ImageError("truncated", "The EXR was never finished: scanlines are missing.")
    last = int(offsets.max(initial=0))
    if last + 8 > len(data) or last + 8 + int.from_bytes(data[last + 4 : last + 8], "little") > len(data):
        raise ImageError("truncated", "The EXR ends before its last scanline.")


def _attributes(data: bytes) -> tuple[dict[str, bytes], int]:
    """The first header's attributes, by name, and the place of the zero byte behind them."""
    found: dict[str, bytes] = {}
    place, end = 8, min(len(data), _MAX_HEADER)
    while place < end and data[place]:
        name, place = _text(data, place)
        _, place = _text(data, place)
        size = int.from_bytes(data[place : place + 4], "little")
        place += 4
        found[name] = data[place : place + size]
        place += size
    if place >= end:
        raise ImageError("truncated", "The EXR ends within its header.")
    return found, place


def _text(data: bytes, place: int) -> tuple[str, int]:
    """A text that a zero byte ends, and the place behind it."""
    end = data.find(b"\0", place, place + 256)
    if end < 0:
        raise ImageError("undecodable", "The EXR's header is damaged: a name has no end.")
    return data[place:end].decode("latin-1"), end + 1


def _channels(value: bytes) -> dict[str, tuple[int, int]]:
    """Name -> (x, y) sampling, of the attribute ``channels``."""
    found: dict[str, tuple[int, int]] = {}
    place = 0
    while value[place : place + 1] not in (b"\0", b""):
        name, place = _text(value, place)
        found[name] = struct.unpack_from("<2i", value, place + 8)
        place += 16
    return found
