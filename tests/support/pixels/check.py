"""Decodes the files of the matrix and compares, with what was written and with other readers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.support.pixels.case import Case
from tests.support.pixels.imagemagick import imagemagick_cases
from tests.support.pixels.jpeg import jpeg_cases
from tests.support.pixels.others import heic_cases, orientation_cases, other_cases
from tests.support.pixels.png import png_cases
from tests.support.pixels.tensorflow import tensorflow_cases
from tests.support.pixels.tiff import tiff_cases
from transforms.images.decode import ImageError, ImageOptions, decode_image

NOT_WRITTEN = (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError, NotImplementedError)
"""What the writers raise for what they, or their version here, cannot write."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case.

    Attributes:
        case: the file.
        problem: what is not as it should be; None if all is well.
        far: the largest difference from what is right, in 255ths; None for a failure.
        failure: the type of the failure; None for an image.
        readers: other reader -> the largest difference from ours, in 255ths.
        unwritten: why its writer could not write it; then nothing was checked.
    """

    case: Case
    problem: str | None = None
    far: int | None = None
    failure: str | None = None
    readers: Mapping[str, int] = field(default_factory=dict)
    unwritten: str | None = None


def cases() -> Iterator[Case]:
    """All files of the matrix."""
    yield from itertools.chain(
        png_cases(),
        tiff_cases(),
        jpeg_cases(),
        other_cases(),
        heic_cases(),
        orientation_cases(),
        tensorflow_cases(),
        imagemagick_cases(),
    )


def check(case: Case, readers: Mapping[str, Callable[[bytes], np.ndarray]]) -> Result:
    """Write a file, decode it, and compare."""
    try:
        data = bytes(case.make())
    except NOT_WRITTEN as error:
        return Result(case, unwritten=f"{type(error).__name__}: {error}")
    try:
        ours = decode_image(data, ImageOptions(image_size=None)).pixels
    except ImageError as error:
        as_wanted = case.failure == error.error_type
        return Result(case, None if as_wanted else f"{error.error_type}: {error.message}", failure=error.error_type)
    if case.failure is not None:
        return Result(case, f"an image rather than {case.failure}")
    found = {name: far for name, read in readers.items() if (far := _difference(read, data, ours)) is not None}
    if case.expected is None:
        # A lossy file: the readers say what is right, and upsampling of colours may differ between them.
        far = min(found.values(), default=None)
        problem = None if far is not None and far <= case.tolerance else f"no reader is as near as that: {found}"
        return Result(case, problem, far, readers=found)
    if ours.shape != case.expected.shape:
        return Result(case, f"shape {ours.shape}, not {case.expected.shape}", readers=found)
    far = int(np.abs(ours.astype(int) - case.expected).max())
    return Result(case, None if far <= case.tolerance else f"{far} of 255 away", far, readers=found)


def _difference(read: Callable[[bytes], np.ndarray], data: bytes, ours: np.ndarray) -> int | None:
    """Between a reader's image and ours; None where it reads no such file, or gives another shape."""
    try:
        theirs = np.asarray(read(data))
    except Exception:  # each library has its own
        return None
    return None if theirs.shape != ours.shape else int(np.abs(theirs.astype(int) - ours).max())
