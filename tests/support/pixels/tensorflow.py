"""Files that TensorFlow writes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from tests.support.pixels.case import CHANNELS, Case, right, samples


def _encode(values: np.ndarray, writer: str, **options: object) -> bytes:
    import tensorflow as tf

    return bytes(getattr(tf.io, writer)(values, **options).numpy())


def tensorflow_cases() -> Iterator[Case]:
    """PNG in every depth and colour model it has; JPEG with its options."""
    for colour, bits in itertools.product(CHANNELS, (8, 16)):
        values = samples(CHANNELS[colour], bits)
        make = functools.partial(_encode, values, "encode_png")
        yield Case("PNG", f"{colour} {bits} bits", "TensorFlow", make, right(values, bits))
    for colour, progressive, down in itertools.product(("grey", "RGB"), (False, True), (False, True)):
        options = {"quality": 90, "progressive": progressive, "chroma_downsampling": down}
        name = f"{colour}{', progressive' * progressive}{', chroma halved' * down}"
        yield Case(
            "JPEG",
            name,
            "TensorFlow",
            functools.partial(_encode, samples(CHANNELS[colour], 8), "encode_jpeg", **options),
        )
