"""PBM, PGM, PPM and PAM (P1 to P7) by NumPy: any depth, plain or binary."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.transparency import image_from_samples

_COMMENT = re.compile(rb"#[^\r\n]*")
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,10})")
_HEADER_LINES = re.compile(rb"(?:#[^\n]*|([A-Z]+)(?:[ \t]+([^\n]*))?|[ \t]*)\r?\n")
_NEITHER_DIGIT_NOR_SPACE = re.compile(rb"[^0-9\s]")
_DIGITS_AND_SPACE = b"0123456789 \t\n\v\f\r"
_MAX_HEADER = 65_536


@dataclass(frozen=True, slots=True)
class _Header:
    """Of an image: size in pixels, channels, the sample that means white, and where the samples begin."""

    width: int
    height: int
    channels: int
    top: int
    start: int


def decode(data: bytes, limits: Limits) -> Decoded:
    """The first image of a file of this family."""
    kind = data[1:2]
    if data.startswith(b"P7 332"):
        raise ImageError("unsupported_xv", "The file is a thumbnail of the program xv; convert it to JPEG or PNG.")
    if kind in b"fF":
        raise ImageError(
            "unsupported_mode",
            "The image has floating-point samples, which define no range that white could be read from.",
        )
    header = _read_pam_header(data) if kind == b"7" else _read_header(data, kind)
    limits.check(header.width, header.height)
    if not 1 <= header.top <= 65_535:
        raise ImageError("undecodable", f"The header's largest sample is {header.top}, not 1 to 65,535.")
    if kind in b"14":
        samples = 1 - (_plain_bits(data, header) if kind == b"1" else _packed_bits(data, header))
    elif kind in b"23":
        samples = _plain_samples(data, header)
    else:
        samples = _binary_samples(data, header)
    image = image_from_samples(scale_to_8_bits(samples, header.top))
    return Decoded(image, header.width, header.height)


def _read_header(data: bytes, kind: bytes) -> _Header:
    numbers = []
    position = 2
    for _ in range(2 if kind in b"14" else 3):
        match = _TOKEN.match(data, position, _MAX_HEADER)
        if match is None:
            raise ImageError("undecodable", "The header lacks a number: width, height or the largest sample.")
        numbers.append(int(match[1]))
        position = match.end()
    if kind in b"456":  # One character of white space parts header and samples, which may be the end of a comment.
        comment = _COMMENT.match(data, position, _MAX_HEADER)
        position = (comment.end() if comment else position) + 1
    width, height, top = (*numbers, 1)[:3]
    return _Header(width, height, 3 if kind in b"36" else 1, top, position)


def _read_pam_header(data: bytes) -> _Header:
    fields: dict[bytes, bytes] = {}
    position = data.find(b"\n", 0, _MAX_HEADER) + 1
    while b"ENDHDR" not in fields:
        match = _HEADER_LINES.match(data, position, _MAX_HEADER)
        if match is None:
            raise ImageError("undecodable", "The PAM header has no end (ENDHDR).")
        if match[1]:
            fields[match[1]] = match[2] or b""
        position = match.end()
    try:
        width, height, depth, top = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    except (KeyError, ValueError):
        raise ImageError("undecodable", "The PAM header lacks WIDTH, HEIGHT, DEPTH or MAXVAL.") from None
    if b"CMYK" in fields.get(b"TUPLTYPE", b""):
        raise ImageError("unsupported_colour", "The PAM image has inks (TUPLTYPE CMYK), which are not decoded.")
    if not 1 <= depth <= 4:
        raise ImageError("unsupported_colour", f"The PAM image has {depth} channels; 1 to 4 are decoded.")
    return _Header(width, height, depth, top, position)


def _binary_samples(data: bytes, header: _Header) -> np.ndarray:
    count = header.width * header.height * header.channels
    kind = np.dtype(np.uint8 if header.top < 256 else ">u2")
    _check_length(len(data) - header.start, count * kind.itemsize)
    samples = np.frombuffer(data, kind, count, header.start)
    return samples.reshape(header.height, header.width, header.channels)


def _packed_bits(data: bytes, header: _Header) -> np.ndarray:
    stride = -(-header.width // 8)
    _check_length(len(data) - header.start, stride * header.height)
    packed = np.frombuffer(data, np.uint8, stride * header.height, header.start)
    bits: np.ndarray = np.unpackbits(packed.reshape(header.height, stride), axis=1)
    return bits[:, : header.width]


def _plain_bits(data: bytes, header: _Header) -> np.ndarray:
    """Digits that need no space between them."""
    text = _COMMENT.sub(b"", data[header.start :]).translate(None, b" \t\n\v\f\r")
    count = header.width * header.height
    _check_length(len(text), count)
    bits = np.frombuffer(text, np.uint8, count) - ord("0")
    if bits.max() > 1:
        raise ImageError("undecodable", "A plain PBM holds other characters than 0 and 1.")
    return bits.reshape(header.height, header.width)


def _plain_samples(data: bytes, header: _Header) -> np.ndarray:
    text = _COMMENT.sub(b" ", data[header.start :])
    count = header.width * header.height * header.channels
    if text.translate(None, _DIGITS_AND_SPACE):
        text = _before_other_characters(text, count)
    _check_length(len(text), 2 * count - 1)  # One digit and one space each, before memory is asked for.
    samples = np.fromstring(text, np.int64, count, sep=" ") if text.strip() else np.zeros(0, np.int64)
    _check_length(len(samples), count)
    return samples.reshape(header.height, header.width, header.channels).astype(np.uint32)


def _before_other_characters(text: bytes, count: int) -> bytes:
    """The digits and white space that a plain image begins with.

    Raises:
        ImageError: if these are not all of its samples. What follows them is no part of the image.
    """
    other = _NEITHER_DIGIT_NOR_SPACE.search(text)
    start = text[: other.start()] if other else text
    if len(start.split(maxsplit=count)) < count:
        raise ImageError("undecodable", "A plain PGM or PPM holds other characters than digits and white space.")
    return start


def _check_length(actual: int, needed: int) -> None:
    if actual < needed:
        raise ImageError("truncated", f"The file ends before its last row: {max(actual, 0)} of {needed} are there.")
