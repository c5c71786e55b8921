"""The matrix's files by tensorflow-io, beside Imagebeam: `.venv-tfio/bin/python -m tests.support.pixels.tensorflow_io`.

For the formats that both decode, what docs/tensorflow_io.md says. Each file is decoded in a forked process, since some
of them end it.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

from tests.support.pixels.check import NOT_WRITTEN
from tests.support.pixels.others import other_cases
from tests.support.pixels.tiff import tiff_cases
from transforms.images.decode import ImageError, ImageOptions, decode_image

FORMATS = {"AVIF": "AVIF", "TIFF": "TIFF", "WEBP": "WebP", "JPEG 2000": "JPEG 2000", "PNM": "PNM"}
ROUNDS = 20
TIFF_STEP = 10
"""Every so many of the 700 TIFF files."""


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Format -> tensorflow-io's decoder."""
    import tensorflow_io as tfio

    image = tfio.experimental.image
    return {
        "AVIF": lambda data: image.decode_avif(data).numpy(),
        "TIFF": lambda data: image.decode_tiff(data).numpy(),
        "WebP": lambda data: tfio.image.decode_webp(data).numpy(),
        "JPEG 2000": lambda data: image.decode_jp2(data).numpy(),
        "PNM": lambda data: image.decode_pnm(data).numpy(),
    }


def outcome(decode: Callable[[bytes], np.ndarray], data: bytes, expected: np.ndarray) -> str:
    """One word for what becomes of a file in a process of its own: right, wrong, refused or crashed; and its time."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            result = Path(folder, "result")
            try:
                found = decode(data)
                result.write_text("right" if is_right(found, expected) else "wrong")
            except Exception:
                result.write_text("refused")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return Path(folder, "result").read_text() if status == 0 else "crashed"


def is_right(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether pixels are within 1 of 255 of what was written, once alpha is laid on white."""
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[:2] != expected.shape[:2]:
        return False
    colours = found.astype(float)
    if found.shape[2] in (2, 4):
        cover = colours[..., -1:] / 255
        colours = colours[..., :-1] * cover + 255 * (1 - cover)
    return bool(np.abs(np.rint(np.broadcast_to(colours, expected.shape)) - expected).max() <= 1)


def rate(decode: Callable[[bytes], np.ndarray], data: bytes) -> float:
    """Files a second on one thread."""
    decode(data)
    started = time.perf_counter()
    for _ in range(ROUNDS):
        decode(data)
    return ROUNDS / (time.perf_counter() - started)


def larger() -> dict[str, bytes]:
    """A photograph-like picture of 500 x 375 in each format, by Pillow."""
    import PIL.Image

    from tests.support.image_samples import encode, picture

    pixels = np.asarray(PIL.Image.fromarray(picture(40, 56)).resize((500, 375), PIL.Image.Resampling.BICUBIC))
    names = {"AVIF": "AVIF", "TIFF": "TIFF", "WebP": "WEBP", "JPEG 2000": "JPEG2000", "PNM": "PPM"}
    return {name: encode(pixels, kind) for name, kind in names.items()}


def main() -> int:
    """Print the table."""
    table: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in FORMATS.values()}
    theirs = decoders()

    def ours(data: bytes) -> np.ndarray:
        return decode_image(data, ImageOptions(image_size=None)).pixels

    for case in itertools.chain(other_cases(), itertools.islice(tiff_cases(), 0, None, TIFF_STEP)):
        name = next((FORMATS[kind] for kind in FORMATS if case.kind.startswith(kind)), None)
        if name is None or case.failure is not None:
            continue
        try:
            data = bytes(case.make())
        except NOT_WRITTEN:
            continue
        try:
            shown = ours(data)
        except ImageError:
            continue
        expected = shown if case.expected is None else case.expected
        table[name][f"ours {'right' if is_right(shown, expected) else 'wrong'}"] += 1
        table[name][outcome(theirs[name], data, expected)] += 1
    samples = larger()
    for name, counts in table.items():
        rates = [rate(decode, samples[name]) for decode in (ours, theirs[name])]
        sys.stdout.write(f"{name}: {dict(counts)}; Imagebeam {rates[0]:.0f}/s, tensorflow-io {rates[1]:.0f}/s\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
