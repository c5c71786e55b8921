"""BMP: run-length encoded and masked pixels by NumPy, the rest by Pillow.

Pillow has its run-length decoder in Python, a pixel at a time, and knows only some of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.formats import pillow
from transforms.images.transparency import image_from_samples

_RGB, _RLE8, _RLE4, _BITFIELDS, _JPEG, _PNG, _ALPHA_BITFIELDS = range(7)
_CORE, _WINDOWS = 12, (40, 52, 56, 64, 108, 124)
"""Bytes of the headers that Pillow knows; the others are OS/2's."""
_LINE, _STOP, _MOVE = 0, 1, 2
"""What follows a count of 0 in run-length encoded data; a larger number is that many pixels as they are."""


@dataclass(frozen=True, slots=True)
class _Header:
    """Of a bitmap.

    Attributes:
        width: in pixels.
        height: likewise.
        top_down: whether the first row stands first.
        bits: of a pixel.
        compression: as the header numbers it.
        colours: entries of the palette.
        palette: where it, or the masks behind a short header, begins.
        masks: of red, green, blue and alpha.
        pixels: where they begin.
    """

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    colours: int
    palette: int
    masks: tuple[int, ...]
    pixels: int


def decode(data: bytes, limits: Limits) -> Decoded:
    """The picture of a BMP file."""
    size = int.from_bytes(data[14:18], "little")
    if size == _CORE:  # The oldest header has neither masks nor runs.
        return pillow.decode_bmp(data, limits)
    if len(data) < 14 + max(size, 16):
        raise ImageError("truncated", "The BMP ends within its header.")
    if size not in _WINDOWS:
        data, size = _with_usual_header(data, size), 40
    header = _read_header(data, size)
    limits.check(header.width, header.height)
    if header.compression in (_RLE8, _RLE4):
        limits.require_killable()  # The loop over moves, two bytes each, is in Python.
        samples = _decode_runs(data, header)
    elif header.bits in (16, 32):
        samples = _decode_masked(data, header)
    elif header.bits in (1, 4, 8, 24) and header.compression == _RGB:
        if header.colours > 256:
            data = data[:46] + (256).to_bytes(4, "little") + data[50:]
        return pillow.decode_bmp(data, limits)
    elif header.compression == _RGB:
        raise ImageError("unsupported_depth", f"The BMP has {header.bits} bits a pixel.")
    else:
        raise ImageError(
            "unsupported_compression", f"The BMP has compression {header.compression} at {header.bits} bits a pixel."
        )
    rows = samples if header.top_down else samples[::-1]
    return Decoded(image_from_samples(rows), header.width, header.height)


def _with_usual_header(data: bytes, size: int) -> bytes:
    """The same bitmap with a header of 40 bytes in place of OS/2's, which may stop behind any field, or go on."""
    header = data[14 : 14 + size].ljust(40, b"\0")[:40]
    start = int.from_bytes(data[10:14], "little")
    start = max(start + 40 - size, 0) if start else 0
    usual = (40).to_bytes(4, "little") + header[4:]
    return data[:10] + start.to_bytes(4, "little") + usual + data[14 + size :]


def _read_header(data: bytes, size: int) -> _Header:
    def number(start: int, length: int = 4, *, signed: bool = False) -> int:
        return int.from_bytes(data[start : start + length], "little", signed=signed)

    bits, compression, colours, pixels = number(28, 2), number(30), number(46), number(10)
    height = number(22, signed=True)
    if compression in (_BITFIELDS, _ALPHA_BITFIELDS):
        alpha = size >= 56 or compression == _ALPHA_BITFIELDS
        masks = (number(54), number(58), number(62), number(66) if alpha else 0)
    elif bits == 16:
        masks = (0x7C00, 0x3E0, 0x1F, 0)
    else:
        masks = (0xFF0000, 0xFF00, 0xFF, 0)
    end = 14 + size
    if pixels < end or (pixels == end and bits <= 8):  # Some writers leave it out, or forget the palette.
        masks_behind = {_BITFIELDS: 3, _ALPHA_BITFIELDS: 4}.get(compression, 0) if size == 40 else 0
        pixels = end + 4 * (masks_behind + (colours or (1 << bits if bits <= 8 else 0)))
    return _Header(number(18, signed=True), abs(height), height < 0, bits, compression, colours, end, masks, pixels)


def _decode_masked(data: bytes, header: _Header) -> np.ndarray:
    """Pixels of 16 or 32 bits -> uint8 [height, width, 3 or 4], as stored."""
    if header.compression not in (_RGB, _BITFIELDS, _ALPHA_BITFIELDS):
        raise ImageError("unsupported_compression", f"The BMP has compression {header.compression}.")
    size = header.bits // 8
    stride = (header.width * size + 3) // 4 * 4
    needed, there = stride * header.height, len(data) - header.pixels
    padding = stride - header.width * size
    if there < needed - padding:
        raise ImageError("truncated", "The BMP ends before its last row.")
    if there < needed:  # What lacks is what fills up the last row.
        data += bytes(padding)
    rows = np.frombuffer(data, np.uint8, needed, header.pixels).reshape(header.height, stride)
    words = np.ascontiguousarray(rows[:, : header.width * size]).view("<u2" if size == 2 else "<u4")
    masks = header.masks if header.masks[3] else header.masks[:3]
    channels = []
    for mask in masks:
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        values = (words & mask) >> shift
        channels.append(scale_to_8_bits(values, max(mask >> shift, 1)))
    samples = np.dstack(channels)
    return samples[..., :3] if len(masks) == 4 and not samples[..., 3].any() else samples


def _decode_runs(data: bytes, header: _Header) -> np.ndarray:
    """Run-length encoded indices -> uint8 [height, width, 3], as stored; what is passed over has colour 0."""
    deep = header.compression == _RLE8
    if header.bits != (8 if deep else 4):
        raise ImageError("undecodable", f"The BMP has runs of {8 if deep else 4} bits and pixels of {header.bits}.")
    colours = min(header.colours or 1 << header.bits, 256)
    entries = np.frombuffer(data[header.palette : header.palette + 4 * colours].ljust(1024, b"\0"), np.uint8)
    palette = entries[:1024].reshape(256, 4)[:, 2::-1]
    body = data[header.pixels :]
    pairs = np.frombuffer(body, np.uint8, len(body) // 2 * 2).reshape(-1, 2)
    return np.ascontiguousarray(palette[_indices(pairs, header, deep)])


def _indices(pairs: np.ndarray, header: _Header, deep: bool) -> np.ndarray:
    """Pairs of bytes -> palette indices [height, width], row by row.

    Every command begins at an even byte. Runs are repeated by NumPy, all at once between two commands that have data
    of their own behind them (pixels as they are, or a move), which Python goes through.
    """
    out = np.zeros((header.height, header.width), np.uint8)
    special = np.flatnonzero((pairs[:, 0] == 0) & (pairs[:, 1] != _LINE))
    row = column = start = 0
    for index in special.tolist():
        if index < start:
            continue  # It is data of the command before.
        row, column = _write_runs(out, pairs[start:index], row, column, deep)
        code = int(pairs[index, 1])
        if code == _STOP:
            return out
        if code == _MOVE:
            if index + 1 >= len(pairs):
                break
            column, row = column + int(pairs[index + 1, 0]), row + int(pairs[index + 1, 1])
            start = index + 2
        else:
            length = code if deep else (code + 1) // 2
            start = index + 1 + (length + 1) // 2
            values = pairs[index + 1 : start].ravel()[:length]
            _write(out, values if deep else _nibbles(values)[:code], row, column)
            column += code
    row, column = _write_runs(out, pairs[start:], row, column, deep)
    if row < header.height - 1 or (row == header.height - 1 and column < header.width):
        raise ImageError("truncated", "The BMP's runs stop before its last row.")
    return out


def _write_runs(out: np.ndarray, pairs: np.ndarray, row: int, column: int, deep: bool) -> tuple[int, int]:
    """Write runs and ends of lines; where the next pixel goes."""
    if not len(pairs):
        return row, column
    lengths = pairs[:, 0].astype(np.int64)
    ends = np.flatnonzero(lengths == 0)
    height, width = out.shape
    written = np.cumsum(lengths)
    # The line of each run, and the pixels written before that line.
    line = np.cumsum(lengths == 0)
    before = np.concatenate([[-column], written[ends]])
    columns = written - lengths - before[line]
    fits = (lengths > 0) & (line + row < height) & (columns < width)
    lengths = np.minimum(lengths, width - columns)[fits]
    starts = ((line + row) * width + columns)[fits]
    total = int(lengths.sum())
    offsets = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = np.repeat(pairs[fits, 1], lengths)
    if not deep:
        values = np.where(offsets % 2, values & 15, values >> 4)
    out.reshape(-1)[np.repeat(starts, lengths) + offsets] = values
    return row + len(ends), int(written[-1] - before[-1])


def _write(out: np.ndarray, values: np.ndarray, row: int, column: int) -> None:
    if row < len(out) and column < out.shape[1]:
        fitting = values[: out.shape[1] - column]
        out[row, column : column + len(fitting)] = fitting


def _nibbles(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values >> 4, values & 15]).ravel()
