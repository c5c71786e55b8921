"""JPEG 2000 by OpenJPEG: through Pillow at 8 bits, through imagecodecs, which keeps the samples, at any other depth.

Pillow asks OpenJPEG to pass over palettes and channel definitions, and knows only the plainest of them itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import imagecodecs
import numpy as np
import PIL.Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.formats import pillow
from transforms.images.formats.isobmff import boxes
from transforms.images.transparency import flatten, image_from_samples

CODESTREAM = b"\xff\x4f\xff\x51"
_CMYK, _LAB, _SYCC = 12, 14, 18
_COLOUR, _ALPHA, _MULTIPLIED_ALPHA = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Header:
    """Of the image and of the file around it.

    Attributes:
        width: in pixels.
        height: likewise.
        components: of a pixel, before a palette is applied.
        precision: bits of a sample; 0 where components differ.
        signed: whether samples are.
        subsampled: whether some components have fewer pixels.
        colour_space: as ``colr`` numbers it, None where an ICC profile says it.
        palette: bits of a palette's samples; 0 where it has several depths or signed ones, None without a palette.
        channels: what ``cdef`` says of each channel, by number: (kind, colour), where kind 0 is a colour, 1 alpha, 2
            alpha that the colours are multiplied by.
        icc_profile: whether there is one.
    """

    width: int
    height: int
    components: int
    precision: int
    signed: bool
    subsampled: bool
    colour_space: int | None
    palette: int | None
    channels: dict[int, tuple[int, int]]
    icc_profile: bool

    @property
    def alpha(self) -> int | None:
        """The kind of the first channel that is no colour; None where all are, or nothing is said."""
        return next((kind for _, (kind, _) in sorted(self.channels.items()) if kind != _COLOUR), None)

    @property
    def in_order(self) -> bool:
        """Whether channels are grey or red, green and blue, and alpha behind them, as they are without ``cdef``."""
        count = len(self.channels)
        plain = {index: (_COLOUR, index + 1) for index in range(count - 1 + count % 2)}
        return self.channels in (plain, {**plain, count - 1: (_ALPHA, 0)})


def decode(data: bytes, limits: Limits) -> Decoded:
    """The picture of a JP2 file or of a bare codestream."""
    header = _read_header(data)
    limits.check(header.width, header.height)
    if header.components > 4:
        raise ImageError("unsupported_colour", f"The JPEG 2000 image has {header.components} components.")
    if header.signed:
        raise ImageError("unsupported_mode", "The JPEG 2000 image has signed samples: no value is said to be white.")
    if header.colour_space == _LAB:
        raise ImageError("unsupported_colour", "The JPEG 2000 image is in CIE Lab.")
    if header.palette is None and header.precision == 8 and (header.in_order or _is_for_pillow(header)):
        return Decoded(flatten(pillow.load(Jpeg2KImageFile, data)), header.width, header.height, header.icc_profile)
    bits = header.precision if header.palette is None else header.palette
    if bits == 0 or bits > 16:
        raise ImageError(
            "unsupported_depth", "The JPEG 2000 image has components of different depths, or of more than 16 bits."
        )
    if _is_for_pillow(header):
        raise ImageError(
            "unsupported_colour",
            f"The JPEG 2000 image has {header.precision} bits a sample in a colour space, or with subsampled colours,"
            " that are decoded at 8 bits only.",
        )
    samples: np.ndarray = scale_to_8_bits(imagecodecs.jpeg2k_decode(data), (1 << bits) - 1)
    return Decoded(_to_rgb(samples, header.alpha), header.width, header.height, header.icc_profile)


def _is_for_pillow(header: _Header) -> bool:
    """Whether there are colours to convert, or to enlarge, which imagecodecs leaves as they are."""
    return header.subsampled or header.colour_space in (_CMYK, _SYCC)


def _to_rgb(samples: np.ndarray, alpha: int | None) -> PIL.Image.Image:
    """uint8 samples, colours in order -> RGB, without a channel behind them that is neither colour nor alpha."""
    if samples.ndim == 2 or samples.shape[2] % 2 or alpha in (None, _ALPHA):
        return image_from_samples(samples)
    colours = samples[..., :-1]
    if alpha != _MULTIPLIED_ALPHA:
        return image_from_samples(colours)
    return image_from_samples(np.minimum(colours.astype(np.uint16) + (255 - samples[..., -1:]), 255).astype(np.uint8))


def read_size(codestream: bytes) -> tuple[int, int]:
    """(width, height) in pixels by a codestream's header."""
    right, bottom, left, top = (int.from_bytes(codestream[at : at + 4], "big") for at in range(8, 24, 4))
    return right - left, bottom - top


def _read_header(data: bytes) -> _Header:
    colour_space, palette, icc_profile = None, None, False
    channels: dict[int, tuple[int, int]] = {}
    start = 0
    if not data.startswith(CODESTREAM):
        start = -1
        for name, begin, end in boxes(data, 0, len(data)):
            if name == b"jp2h":
                for inner, first, last in boxes(data, begin, end):
                    if inner == b"colr" and data[first] == 1 and colour_space is None:
                        colour_space = int.from_bytes(data[first + 3 : first + 7], "big")
                    icc_profile |= inner == b"colr" and data[first] == 2 and last > first
                    if inner == b"pclr":
                        palette = _palette_depth(data[first:last])
                    elif inner == b"cdef":
                        channels = _read_channels(data[first:last])
            elif name == b"jp2c":
                start = begin
                break
    siz = data[start : start + 42] if start >= 0 else b""
    count = int.from_bytes(siz[40:42], "big")
    parts = data[start + 42 : start + 42 + 3 * count]
    if not siz.startswith(CODESTREAM) or len(parts) < 3 * max(count, 1):
        raise ImageError("truncated", "The JPEG 2000 file has no whole header.")
    depths = set(parts[::3])
    width, height = read_size(siz)
    return _Header(
        width,
        height,
        count,
        (depths.pop() & 127) + 1 if len(depths) == 1 else 0,
        any(depth & 128 for depth in parts[::3]),
        set(parts[1::3]) | set(parts[2::3]) != {1},
        colour_space,
        palette,
        channels,
        icc_profile,
    )


def _palette_depth(pclr: bytes) -> int:
    """Bits of a palette's samples; 0 where they are signed or of several depths."""
    depths = set(pclr[3 : 3 + pclr[2]]) if len(pclr) > 2 else set()
    depth = depths.pop() if len(depths) == 1 else 128
    return 0 if depth & 128 else depth + 1


def _read_channels(cdef: bytes) -> dict[int, tuple[int, int]]:
    """Number of a channel -> its kind, and which colour it is, from 1."""
    found = (struct.unpack_from(">3H", cdef, at) for at in range(2, len(cdef) - 5, 6))
    return {number: (kind, colour) for number, kind, colour in found}
