"""Split rows into train, validation and test by image digest, stratified by class."""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from transforms.core.text import first_few

DROPPED = -1
"""Code of a row in no split."""

SHARE_TOLERANCE = 0.02
"""How far a class's share of a split may be off before `stratify` moves images."""

FEW_ROWS = 10
"""Held-out rows of a class below which its figures mean little: its recall moves in steps of a tenth or more."""


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


def record_numbers(table: pa.Table, columns: Sequence[str], seed: int) -> np.ndarray:
    """A number for each row, uint64 [rows], equal where all of some columns are."""
    values = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return image_numbers(map(repr, values), seed)


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


def stratify(numbers: np.ndarray, codes: np.ndarray, labels: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Even out the classes whose shares the digests alone leave too far off; int8 [n].

    A class's share of test images, and of test and validation images together, may be off by `SHARE_TOLERANCE`, or by
    half an image. Where it is off by more, the images whose numbers are next to the border change sides, as few as will
    do. So small classes are split exactly, and as a class grows fewer and fewer of its images ever change sides.

    Args:
        numbers: uint64 [n], as for `assign`; an image's class is that of its first row.
        codes: int8 [n], as `assign` gives them.
        labels: class numbers, int [n].
        validation: share of the images that validate.
        test: share of the images that test.
    """
    _, first, row_image = np.unique(numbers, return_index=True, return_inverse=True)
    image_codes, image_labels = codes[first], labels[first]
    for label in np.unique(image_labels):
        members = np.flatnonzero(image_labels == label)  # in order of their numbers
        found = image_codes[members]
        tested = _within(int((found == Split.TEST.code).sum()), test * len(members), len(members))
        held = _within(int((found != Split.TRAIN.code).sum()), (test + validation) * len(members), len(members))
        image_codes[members[held:]] = Split.TRAIN.code
        image_codes[members[:held]] = Split.VALIDATION.code
        image_codes[members[:tested]] = Split.TEST.code
    return np.asarray(image_codes[row_image.ravel()], np.int8)


def _within(count: int, wanted: float, members: int) -> int:
    """The number nearest to `count` that is close enough to `wanted`."""
    allowed = max(SHARE_TOLERANCE * members, 0.5)
    return min(max(count, math.ceil(wanted - allowed)), math.floor(wanted + allowed))


def grouped_numbers(images: np.ndarray, groups: Iterable[str], seed: int) -> np.ndarray:
    """Numbers that are equal for rows of one group, and for rows of groups that share an image; uint64 [n].

    Args:
        images: uint64 [n], as `image_numbers` gives them.
        groups: a text for each row.
        seed: as for `image_numbers`.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers = image_numbers((f"group:{group}" for group in groups), seed)
    group_numbers, group_ids = np.unique(numbers, return_inverse=True)
    _, image_ids = np.unique(images, return_inverse=True)
    nodes = len(group_numbers) + int(image_ids.max(initial=-1)) + 1
    edges = (np.ones(len(images), np.int8), (group_ids, image_ids + len(group_numbers)))
    _, component = connected_components(coo_matrix(edges, shape=(nodes, nodes)), directed=False)
    lowest = np.full(component.max(initial=0) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, component[: len(group_numbers)], group_numbers)
    return np.asarray(lowest[component[group_ids]])


def describe_small(counts: np.ndarray, classes: Sequence[str], split: Split) -> str | None:
    """One line that names the classes with too few rows in a split to measure them; None where there are none.

    Args:
        counts: int [3, classes], labels by split and class.
        classes: their names.
        split: the one that metrics are measured on.
    """
    few = [f"{name} ({count})" for name, count in zip(classes, counts[split.code], strict=True) if count < FEW_ROWS]
    if not few or not counts[split.code].sum():
        return None
    what = f"{len(few)} of {len(classes)} classes have fewer than {FEW_ROWS} {split} rows"
    return f"{what}, too few to measure: {first_few(few)}"


def straddling(numbers: np.ndarray, codes: np.ndarray) -> int:
    """The number of images in more than one split. Only a user-defined split can cause that."""
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
            lines.append(f"{len(missing)} of {len(classes)} classes have no {split} rows: {first_few(missing)}")
    return lines
