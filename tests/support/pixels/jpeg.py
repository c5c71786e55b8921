"""JPEG: subsampling, progressive, depths, inks, and data that stops."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import partial

import cv2
import imagecodecs
import numpy as np
import PIL.Image

from tests.support.image_samples import encode
from tests.support.pixels.case import HEIGHT, Case, by_opencv, by_pillow, inks_to_rgb, right, samples


def jpeg_cases() -> Iterator[Case]:
    values = samples(3, 8)
    for subsampling, progressive, restart in itertools.product((0, 1, 2), (False, True), (0, 2)):
        options = {"subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": restart}
        yield Case(
            "JPEG",
            f"RGB, subsampling {subsampling}{', progressive' * progressive}{', restarts' * bool(restart)}",
            "Pillow",
            partial(by_pillow, values, "JPEG", quality=90, **options),
        )
    for progressive in (False, True):
        yield Case(
            "JPEG",
            f"RGB{', progressive' * progressive}",
            "OpenCV",
            partial(by_opencv, values, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)),
        )
        yield Case(
            "JPEG",
            f"grey{', progressive' * progressive}",
            "Pillow",
            partial(encode, values[..., 0], "JPEG", progressive=progressive),
        )
    for ratio in ("444", "422", "420", "411", "440"):
        yield Case(
            "JPEG",
            f"RGB, {ratio}",
            "imagecodecs",
            partial(imagecodecs.jpeg8_encode, values, subsampling=ratio),
        )
    deep = samples(3, 12)
    yield Case(
        "JPEG 12 bits",
        "RGB",
        "imagecodecs",
        lambda: imagecodecs.jpeg8_encode(deep, bitspersample=12, level=100, subsampling="444"),
        right(deep, 12),
        tolerance=4,
    )
    yield Case(
        "JPEG lossless",
        "grey",
        "imagecodecs",
        lambda: imagecodecs.ljpeg_encode(values[..., 0]),
        failure="unsupported_compression",
    )
    yield Case(
        "JPEG-LS", "RGB", "imagecodecs", lambda: imagecodecs.jpegls_encode(values), failure="unsupported_compression"
    )
    frames = [PIL.Image.fromarray(values), PIL.Image.fromarray(255 - values)]
    yield Case(
        "JPEG multi-picture",
        "first picture",
        "Pillow",
        lambda: encode(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=90),
    )
    inks = samples(4, 8)
    yield Case(
        "JPEG CMYK",
        "Adobe's marker, inverted",
        "Pillow",
        lambda: encode(PIL.Image.fromarray(255 - inks, "CMYK"), "JPEG", quality=100, subsampling=0),
        inks_to_rgb(255 - inks),
        tolerance=12,
    )
    for share in (0.3, 0.6, 0.9):
        stopped = _stopped(values, share)
        yield Case("JPEG", f"data stops at {share:.0%}", "Pillow", partial(bytes, stopped), failure="truncated")
        yield Case(
            "JPEG",
            f"data stops at {share:.0%} before a proper end",
            "Pillow",
            partial(bytes, stopped + b"\xff\xd9"),
            failure="truncated",
        )
    yield Case("JPEG", "end marker missing", "Pillow", lambda: encode(values, "JPEG", quality=90)[:-2])
    yield Case("JPEG", "fewer rows than the header says", "Pillow", lambda: _more_rows(values), failure="truncated")


def _stopped(values: np.ndarray, share: float) -> bytes:
    data = encode(values, "JPEG", quality=90)
    start = data.index(b"\xff\xda") + 14
    return data[: start + int((len(data) - start) * share)].rstrip(b"\xff")


def _more_rows(values: np.ndarray) -> bytes:
    data = bytearray(encode(values, "JPEG", quality=90, subsampling=0))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = struct.pack(">H", 2 * HEIGHT)
    return bytes(data)
