"""What may stand around the samples of PNM files, as Netpbm reads it."""

import numpy as np
import pytest

from tests.support.image_samples import picture
from transforms.images.decode import ImageError, ImageOptions, decode_image

VALUES = picture(5, 7)
PLAIN = b" ".join(str(value).encode() for value in VALUES.ravel())


def pixels(data):
    return decode_image(data, ImageOptions(image_size=None)).pixels


@pytest.mark.parametrize(
    "header", [b"P6\n7 5\n255#of it\n", b"P6#first\n7 5\n255\n", b"P6 # a\n# b\n7#w\n5\n# c\n255\n"]
)
def test_comments_of_the_header_are_no_samples(header):
    np.testing.assert_array_equal(pixels(header + VALUES.tobytes()), VALUES)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\nP3\n1 1\n255\n1 2 3\n", b"\n\x1a", b"\0"])
def test_what_follows_plain_samples_is_no_part_of_them(ending):
    np.testing.assert_array_equal(pixels(b"P3\n7 5\n255\n" + PLAIN + ending), VALUES)


def test_other_characters_among_plain_samples_are_told():
    with pytest.raises(ImageError, match="other characters"):
        pixels(b"P3\n7 5\n255\n" + PLAIN.replace(b" ", b" x ", 50))


def test_inks_are_not_taken_for_colours_and_alpha():
    head = b"P7\nWIDTH 7\nHEIGHT 5\nDEPTH 4\nMAXVAL 255\nTUPLTYPE %b\nENDHDR\n"
    samples = np.dstack([VALUES, np.full((5, 7), 255, np.uint8)]).tobytes()
    np.testing.assert_array_equal(pixels(head % b"RGB_ALPHA" + samples), VALUES)
    with pytest.raises(ImageError) as caught:
        pixels(head % b"CMYK" + samples)
    assert caught.value.error_type == "unsupported_colour"
