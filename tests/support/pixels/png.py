"""PNG: every colour type and depth, interlaced and not, animated, cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import imagecodecs
import numpy as np

from tests.support.image_samples import animation, filter_rows, picture, png, png_file
from tests.support.pixels.case import CHANNELS, HEIGHT, WIDTH, Case, by_opencv, right, samples


def png_cases() -> Iterator[Case]:
    types = {"grey": 0, "RGB": 2, "grey+alpha": 4, "RGBA": 6}
    for (colour, colour_type), bits, layout in itertools.product(types.items(), (1, 2, 4, 8, 16), ("", "interlaced")):
        if bits < 8 and colour != "grey":
            continue
        values = samples(CHANNELS[colour], bits)
        make = (
            partial(interlaced_png, values, bits, colour_type)
            if layout
            else partial(png, WIDTH, HEIGHT, bits, colour_type, pack(values, bits))
        )
        yield Case(f"PNG {layout}".strip(), f"{colour} {bits} bits", "by hand", make, right(values, bits))
    for colour, bits in itertools.product(CHANNELS, (8, 16)):
        values = samples(CHANNELS[colour], bits)
        yield Case(
            "PNG",
            f"{colour} {bits} bits",
            "imagecodecs",
            partial(imagecodecs.png_encode, values.squeeze()),
            right(values, bits),
        )
        if colour != "grey+alpha":
            make = partial(by_opencv, values, ".png")
            yield Case("PNG", f"{colour} {bits} bits", "OpenCV", make, right(values, bits))
    palette = picture(1, 16).reshape(16, 3)
    for bits, layout in itertools.product((1, 2, 4, 8), ("", "interlaced")):
        indices = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1) % min(2**bits, 16)).astype(np.uint8)
        alpha = np.linspace(0, 255, 2).astype(np.uint8)
        over = palette.astype(np.float64)
        over[:2] = over[:2] * alpha[:, None] / 255 + 255 - alpha[:, None]
        chunks = ((b"PLTE", palette[: 2**bits].tobytes()), (b"tRNS", alpha.tobytes()))
        make = (
            partial(interlaced_png, indices, bits, 3, *chunks)
            if layout
            else partial(png, WIDTH, HEIGHT, bits, 3, pack(indices, bits), *chunks)
        )
        expected = np.rint(over[indices[..., 0]]).astype(np.uint8)
        yield Case(f"PNG {layout}".strip(), f"palette {bits} bits, transparent colours", "by hand", make, expected)
    values = samples(3, 8)
    animated = partial(animation, "PNG", [values, 255 - values])
    yield Case("PNG animated", "first frame", "Pillow", animated, values)
    yield Case("PNG", "fewer rows than the header says", "by hand", lambda: _fewer_rows(values), failure="truncated")


def pack(values: np.ndarray, bits: int) -> bytes:
    """Samples of 1, 2, 4, 8 or 16 bits -> rows of whole bytes, big end first."""
    rows = values.reshape(len(values), -1)
    if bits == 16:
        return rows.astype(">u2").tobytes()
    wide = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    return np.packbits(wide.reshape(len(rows), -1), axis=1).tobytes()


def interlaced_png(values: np.ndarray, bits: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Adam7, by hand: no writer in Python has it."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [values[top::down, left::across] for top, left, down, across in passes]
    data = b"".join(filter_rows(pack(part, bits), len(part)) for part in parts if part.size)
    return png_file(values.shape[1], len(values), bits, colour_type, data, *chunks, interlaced=True)


def _fewer_rows(values: np.ndarray) -> bytes:
    """A PNG whose header says twice as many rows as its data, which is whole and checks."""
    return png_file(WIDTH, 2 * HEIGHT, 8, 2, filter_rows(values.tobytes(), HEIGHT))
