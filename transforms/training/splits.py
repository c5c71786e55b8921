"""Which rows train, which validate and which test: decided by the image alone, so that a larger set keeps its split."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

DROPPED = -1
"""Code of a row in no split."""


class Split(enum.StrEnum):
    """What a row is for. In arrays a split is its `code`."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"

    @property
    def code(self) -> int:
        """0 for train, 1 for validation, 2 for test."""
        return list(Split).index(self)


def image_numbers(sha256s: Iterable[str], seed: int) -> np.ndarray:
    """One number an image, the same on every machine and in every run.

    Args:
        sha256s: digests of the encoded images (any text is taken).
        seed: another seed gives other numbers, so another split.

    Returns:
        uint64 [n], uniform over the type's range.
    """
    digests = (hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8).digest() for digest in sha256s)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def assign(numbers: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Numbers of images -> codes of splits, int8 [n].

    An image's split is a function of its number and the two shares; the test rows do not depend on `validation`.

    Args:
        numbers: uint64 [n], as `image_numbers` gives them.
        validation: share of the images that validate, 0 to 1.
        test: share of the images that test.
    """
    position = numbers.astype(np.float64) / 2.0**64
    codes = np.full(len(numbers), Split.TRAIN.code, np.int8)
    codes[position < test + validation] = Split.VALIDATION.code
    codes[position < test] = Split.TEST.code
    return codes


def straddling(numbers: np.ndarray, codes: np.ndarray) -> int:
    """How many images stand in more than one split, which only a split of the user's own can bring about."""
    kept = codes != DROPPED
    pairs = np.unique(np.stack([numbers[kept], codes[kept].astype(np.uint64)], axis=1), axis=0)
    _, splits = np.unique(pairs[:, 0], return_counts=True)
    return int((splits > 1).sum())


def largest_shift(counts: np.ndarray) -> dict[str, float]:
    """How far from stratified: for each split that has rows, the largest difference of a class' share from its overall.

    Args:
        counts: int [3, classes], labels by split and class.

    Returns:
        Split -> difference, 0 to 1.
    """
    overall = counts.sum(axis=0) / max(1, counts.sum())
    return {
        str(split): float(np.abs(row / row.sum() - overall).max())
        for split, row in zip(Split, counts, strict=True)
        if row.sum()
    }


def describe_gaps(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """One line for each split that some classes are missing from, naming them.

    Args:
        counts: int [3, classes], labels by split and class.
        classes: their names.
    """
    lines = []
    for split, row in zip(Split, counts, strict=True):
        missing = [name for name, count in zip(classes, row, strict=True) if not count]
        if missing and row.sum():
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            lines.append(f"{len(missing)} of {len(classes)} classes have no {split} rows: {names}")
    return lines
