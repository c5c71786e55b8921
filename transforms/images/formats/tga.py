"""TGA by NumPy: every depth, with a colour map or without. Pillow expands the runs.

Pillow reads TGA too, but neither 15 bits, maps of 15 or 32 bits and indices of 16, nor a map beside colours, nor runs
that go on in the next row, which the first version of the format allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.transparency import drop_unused_alpha, flatten

_FOOTER = b"TRUEVISION-XFILE.\0"
_PREMULTIPLIED = 4
_MAPPED, _COLOURS, _GREY = 1, 2, 3
_RUNS = 8
"""This bit of the kind says that there are runs."""
_RIGHT_TO_LEFT, _TOP_DOWN, _ALPHA_BITS = 0x10, 0x20, 0x0F
_DEPTHS = {_MAPPED: (8, 15, 16), _COLOURS: (15, 16, 24, 32), _GREY: (1, 8, 16)}
_MAP_DEPTHS = (15, 16, 24, 32)
_RAW = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode whose bytes are those of a stored pixel, by their number."""


@dataclass(frozen=True, slots=True)
class _Header:
    """Of an image.

    Attributes:
        kind: what a pixel is: an index of a map, colours, or grey.
        runs: whether pixels are run-length encoded.
        width: in pixels.
        height: likewise.
        depth: bits of a stored pixel.
        flags: bits of alpha, and which corner comes first.
        map_entries: how many there are, of any kind of image.
        map_first: the index of the first.
        map_depth: bits of one.
        map_start: where they begin.
    """

    kind: int
    runs: bool
    width: int
    height: int
    depth: int
    flags: int
    map_entries: int
    map_first: int
    map_depth: int
    map_start: int

    @property
    def pixels(self) -> int:
        """Where the pixels begin."""
        return self.map_start + self.map_entries * _bytes_of(self.map_depth)


def decode(data: bytes, limits: Limits) -> Decoded:
    """A Targa file; its alpha counts where header and footer say that it means something."""
    header = _read_header(data)
    limits.check(header.width, header.height)
    if header.depth not in _DEPTHS[header.kind] or (header.depth == 1 and header.runs):
        raise ImageError("unsupported_depth", f"The TGA has {header.depth} bits a pixel, of kind {data[2]}.")
    if header.kind == _MAPPED and header.map_depth not in _MAP_DEPTHS:
        raise ImageError("unsupported_depth", f"The TGA has a colour map of {header.map_depth} bits.")
    samples = _upright(_read_samples(data, header), header.flags)
    image = PIL.Image.fromarray(np.ascontiguousarray(samples))
    kind = _kind_of_alpha(data)
    if image.mode == "RGBA" and header.kind != _MAPPED:
        if header.flags & _ALPHA_BITS == 0 or (kind is not None and kind < 3):
            image = image.convert("RGB")
        elif kind == _PREMULTIPLIED:
            image = PIL.Image.frombytes("RGBa", image.size, image.tobytes()).convert("RGBA")
    return Decoded(flatten(drop_unused_alpha(image)), header.width, header.height)


def _read_header(data: bytes) -> _Header:
    def number(start: int) -> int:
        return int.from_bytes(data[start : start + 2], "little")

    entries = number(5) if data[1] else 0
    kind = data[2] & ~_RUNS
    return _Header(
        kind,
        bool(data[2] & _RUNS),
        number(12),
        number(14),
        data[16],
        data[17],
        entries,
        number(3),
        data[7],
        18 + data[0],
    )


def _kind_of_alpha(data: bytes) -> int | None:
    """What the extension area says of it: 3 or more where it means something; None where there is none."""
    footer = data[-26:]
    extension = int.from_bytes(footer[:4], "little") if footer.endswith(_FOOTER) else 0
    return data[extension + 494] if extension and extension + 494 < len(data) else None


def _read_samples(data: bytes, header: _Header) -> np.ndarray:
    """uint8 [height, width] of grey, or [height, width, channels], as stored."""
    if header.depth == 1:
        stride = -(-header.width // 8)
        rows = _stored(data, header.pixels, stride * header.height, 1).reshape(header.height, stride)
        bits: np.ndarray = np.unpackbits(rows, axis=1)[:, : header.width] * np.uint8(255)
        return bits
    size, count = _bytes_of(header.depth), header.width * header.height
    if header.runs:
        mode = _RAW[size]
        image = PIL.Image.frombytes(mode, (count, 1), data[header.pixels :], "tga_rle", mode, 1, 8 * size)
        pixels = np.asarray(image).reshape(count, size)
    else:
        pixels = _stored(data, header.pixels, count, size)
    shape = (header.height, header.width)
    if header.kind == _MAPPED:
        indices = pixels[:, 0] if size == 1 else pixels.view("<u2")[:, 0]
        return np.asarray(_read_map(data, header)[indices]).reshape(*shape, -1)
    if header.kind == _GREY:
        return pixels.reshape(shape if size == 1 else (*shape, size))
    return _to_colours(pixels, header.depth).reshape(*shape, -1)


def _read_map(data: bytes, header: _Header) -> np.ndarray:
    """uint8 [indices, channels]; an index that has no entry is black."""
    stored = _stored(data, header.map_start, header.map_entries, _bytes_of(header.map_depth))
    colours = _to_colours(stored, header.map_depth)
    table = np.zeros((header.map_first + 65_536, colours.shape[1]), np.uint8)
    table[:, 3:] = 255
    table[header.map_first : header.map_first + len(colours)] = colours
    return table


def _to_colours(stored: np.ndarray, depth: int) -> np.ndarray:
    """Bytes [pixels, bytes of a pixel] -> uint8 [pixels, 3 or 4], red first."""
    if depth > 16:
        return stored[:, [2, 1, 0, 3][: depth // 8]]
    words = np.ascontiguousarray(stored).view("<u2")[:, 0]
    channels = [((words >> shift) & 31) * 255 // 31 for shift in (10, 5, 0)]
    if depth == 16:
        channels.append(np.where(words >> 15, 0, 255))
    return np.stack(channels, axis=1).astype(np.uint8)


def _upright(samples: np.ndarray, flags: int) -> np.ndarray:
    rows = samples if flags & _TOP_DOWN else samples[::-1]
    return rows[:, ::-1] if flags & _RIGHT_TO_LEFT else rows


def _stored(data: bytes, start: int, count: int, size: int) -> np.ndarray:
    """Bytes [count, size]."""
    if len(data) - start < count * size:
        raise ImageError("truncated", "The TGA ends before its last row, or within its colour map.")
    return np.frombuffer(data, np.uint8, count * size, start).reshape(count, size)


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)
