"""The short form of `make pixels`: the same matrix without what needs programs beside Python, and fewer readers."""

import dataclasses
from collections import Counter

import imagecodecs
import pytest

from tests.support.pixels.check import cases, check
from tests.support.pixels.readers import READERS

ELSEWHERE = ("ImageMagick", "TensorFlow")
PACKS_BITS = "not implemented" not in (imagecodecs.packints_encode.__doc__ or "")
"""Whether TIFF of fewer than 8 bits can be written: the imagecodecs of the oldest stack cannot, though it reads it."""

DECODES_FAX = hasattr(imagecodecs, "ccittfax4_decode")
"""Whether fax TIFF can be decoded: the imagecodecs of the oldest stack cannot, and each such file is a failure."""

LOSSY = {name: READERS[name] for name in ("Pillow", "imagecodecs")}


@pytest.fixture(scope="module")
def results():
    """Of each case; readers where only they say what is right."""
    chosen = (case for case in cases() if case.writer not in ELSEWHERE)
    return [check(case, {} if case.expected is not None else LOSSY) for case in chosen]


@pytest.mark.slow
def test_every_file_shows_what_was_written(results):
    unwritten = [
        result for result in results if result.unwritten and (PACKS_BITS or "packints" not in result.unwritten)
    ]
    assert [(str(result.case), result.unwritten) for result in unwritten] == []
    problems = [(str(result.case), result.failure, result.problem) for result in results if result.problem]
    if not DECODES_FAX:
        fax = [case for case in problems if case[1] == "unsupported_compression" and "fax" in case[2]]
        assert len(fax) == 3
        problems = [case for case in problems if case not in fax]
    assert problems == []


def test_matrix_covers_enough_files(results):
    """As wide as docs/pixels.md says, but for the writers left out here."""
    count = Counter(result.case.kind.split()[0] for result in results)
    assert count["TIFF"] > 600
    assert min(count[name] for name in ("PNG", "JPEG", "PNM", "TGA", "WEBP")) >= 8
    assert len(count) >= 14


def test_a_wrong_pixel_is_found(results):
    """The test of the test: an image that is right for another file is not right for this one."""
    case = next(result.case for result in results if result.case.expected is not None)
    wrong = dataclasses.replace(case, expected=255 - case.expected)
    assert "of 255 away" in str(check(wrong, {}).problem)
