"""Radiance HDR (RGBE) by tensorflow-io, in a process of its own (`transforms.images.isolated.isolated_decoder`).

tensorflow-io's reader takes what a file lacks for black, and knows one order of scanlines. So the header is read here,
the runs are counted, and the decoder is given a header of three lines.
"""

from __future__ import annotations

import importlib
import re

import numpy as np
import PIL.Image

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.formats.light import show

_RESOLUTION = re.compile(rb"\n([-+][XY]) +(\d{1,9}) +([-+][XY]) +(\d{1,9})\n")
_FORMAT = re.compile(rb"\nFORMAT *= *(\S+)")


def decode(data: bytes, limits: Limits) -> Decoded:
    """The picture in sRGB, whose white is 1.0; see `light.show`. EXPOSURE is not undone.

    Raises:
        ImageError: for a file of another layout, one that is cut short, or one in XYZ.
    """
    found = _RESOLUTION.search(data, 0, 1 << 16)
    if found is None:
        raise ImageError("undecodable", "The HDR's header names no size.")
    layout = _FORMAT.search(data, 0, found.start() + 1)
    if layout is None or layout[1] != b"32-bit_rle_rgbe":
        raise ImageError("unsupported_hdr", "The HDR holds no 32-bit_rle_rgbe, the one layout that is decoded.")
    slow_axis, rows, fast_axis, columns = found[1], int(found[2]), found[3], int(found[4])
    if slow_axis[1:] == fast_axis[1:]:
        raise ImageError("undecodable", "The HDR's header names one axis twice.")
    is_turned = slow_axis[1:] == b"X"
    width, height = (rows, columns) if is_turned else (columns, rows)
    limits.check(width, height)
    scanlines = data[found.end() :]
    _check_length(scanlines, rows, columns)
    plain = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (rows, columns) + scanlines
    linear = importlib.import_module("tensorflow_io").experimental.image.decode_hdr(plain).numpy()
    # Upright as a program reads it: rows from the top (-Y), each from the left (+X).
    linear = linear[:: 1 if slow_axis in (b"-Y", b"+X") else -1, :: 1 if fast_axis in (b"+X", b"-Y") else -1]
    if is_turned:
        linear = linear.swapaxes(0, 1)
    return Decoded(PIL.Image.fromarray(np.ascontiguousarray(show(linear))), width, height)


def _check_length(data: bytes, rows: int, columns: int) -> None:
    """Refuse scanlines that end early, or that are in the run-lengths of before 1991.

    Raises:
        ImageError: ``truncated``, ``undecodable`` or ``unsupported_hdr``.
    """
    if not 8 <= columns < 32_768 or data[:2] != b"\2\2" or data[2:3] >= b"\x80":
        if len(data) >= rows * columns * 4:
            return
        is_old = b"\1\1\1" in data
        raise ImageError(
            "unsupported_hdr" if is_old else "truncated",
            "The HDR is in old run-lengths, which are not decoded, or it is cut short."
            if is_old
            else "The HDR ends before its last scanline.",
        )
    place = 0
    for _ in range(rows):
        if data[place : place + 4] != b"\2\2" + columns.to_bytes(2, "big"):
            if place + 4 > len(data):
                raise ImageError("truncated", "The HDR ends before its last scanline.")
            raise ImageError("undecodable", "The HDR is damaged between two scanlines.")
        place = _after_scanline(data, place + 4, columns)


def _after_scanline(data: bytes, place: int, columns: int) -> int:
    """Where the scanline ends whose four components begin at `place`."""
    for _ in range(4):
        left = columns
        while left > 0:
            if place >= len(data):
                raise ImageError("truncated", "The HDR ends before its last scanline.")
            count = data[place]
            is_run = count > 128
            count -= 128 * is_run
            if not 0 < count <= left:
                raise ImageError("undecodable", "A run of the HDR is longer than its scanline.")
            left -= count
            place += 2 if is_run else count + 1
    if place > len(data):
        raise ImageError("truncated", "The HDR ends before its last scanline.")
    return place
