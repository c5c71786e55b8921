"""A file of the matrix, with the pixels that are right, and what writes it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import tifffile

from tests.support.image_samples import encode, picture

HEIGHT, WIDTH = 40, 56
CHANNELS = {"grey": 1, "grey+alpha": 2, "RGB": 3, "RGBA": 4}


@dataclass(frozen=True, slots=True)
class Case:
    """One file.

    Attributes:
        kind: format and what is special, as the table groups it.
        name: what tells it from others of its kind.
        writer: the program that wrote it.
        make: writes it; `ImportError` or `ValueError` of the writer leaves it out.
        expected: uint8 [height, width, 3], the pixels that are right; None where only other readers say it.
        failure: the type of the failure that is right instead.
        tolerance: of a sample, in 255ths.
    """

    kind: str
    name: str
    writer: str
    make: Callable[[], bytes | bytearray | memoryview]
    expected: np.ndarray | None = None
    failure: str | None = None
    tolerance: int = 1

    def __str__(self) -> str:
        return f"{self.kind}, {self.name} ({self.writer})"


def samples(channels: int, bits: int) -> np.ndarray:
    """[height, width, channels] from 0 to the top of the depth; every channel has both ends."""
    rgb = picture(HEIGHT, WIDTH).astype(np.float64) / 255
    colours = rgb if channels >= 3 else rgb[..., :1]
    ramp = np.linspace(0, 1, WIDTH)[None, :, None].repeat(HEIGHT, 0)
    stack = np.concatenate([colours, ramp] if channels in (2, 4) else [colours], axis=2)
    stack[0, :2] = 0
    stack[0, 2:4] = 1
    values: np.ndarray = np.rint(stack * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    return values


def right(values: np.ndarray, bits: int, *, premultiplied: bool = False) -> np.ndarray:
    """What samples look like over white, computed in floating point."""
    scaled = values.astype(np.float64) / (2**bits - 1)
    channels = scaled.shape[2]
    if channels in (2, 4):
        colour, alpha = scaled[..., :-1], scaled[..., -1:]
        scaled = colour + 1 - alpha if premultiplied else colour * alpha + 1 - alpha
    scaled = np.clip(scaled, 0, 1)
    return np.asarray(np.rint(np.broadcast_to(scaled, (*scaled.shape[:2], 3)) * 255), np.uint8)


def inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """Plain arithmetic: what the ink leaves of white."""
    left = 1 - inks.astype(np.float64) / 255
    return np.rint(left[..., :3] * left[..., 3:] * 255).astype(np.uint8)


def by_tifffile(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def by_opencv(values: np.ndarray, suffix: str, *parameters: int) -> bytes:
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(values.shape[2], [0])
    written, data = cv2.imencode(suffix, np.ascontiguousarray(values[..., order]), parameters)
    if not written:
        raise ValueError(f"OpenCV writes no such {suffix}")
    return bytes(data)


def by_pillow(values: np.ndarray, image_format: str, **options: Any) -> bytes:
    return encode(values[..., 0] if values.shape[2] == 1 else values, image_format, **options)
