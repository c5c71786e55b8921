"""The clean aperture of AVIF, which libheif and browsers apply and Pillow passes over."""

import struct

import numpy as np
import pytest

from tests.support.image_samples import UPRIGHT, encode, exif, picture
from transforms.images.decode import ImageOptions, decode_image

_PLACE = b"a profile of 28 bytes length"


def with_clean_aperture(data: bytes, *numbers: int) -> bytes:
    """An AVIF whose profile of 28 bytes is a clean aperture instead, and whose properties are all essential."""
    start = data.index(b"ipma") + 14
    associations = bytes(index | 0x80 for index in data[start + 1 : start + 1 + data[start]])
    data = data[: start + 1] + associations + data[start + 1 + len(associations) :]
    assert data.count(b"colrprof" + _PLACE) == 1
    return data.replace(b"colrprof" + _PLACE, b"clap" + struct.pack(">IIIIiIiI", *numbers))


def avif(orientation: int = 1) -> bytes:
    metadata = exif(orientation)
    return encode(picture(64, 80), "AVIF", quality=100, subsampling="4:4:4", icc_profile=_PLACE, exif=metadata)


def decoded(data):
    return decode_image(data, ImageOptions(image_size=None))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_clean_aperture_is_cut_out_before_the_image_is_turned(orientation):
    stored = decoded(avif()).pixels
    found = decoded(with_clean_aperture(avif(orientation), 40, 1, 32, 1, -10, 1, 8, 2))
    np.testing.assert_array_equal(found.pixels, UPRIGHT[orientation](stored[20:52, 10:50]))
    assert (found.width, found.height) == (40, 32)


@pytest.mark.parametrize(
    "numbers",
    [
        (80, 1, 64, 1, 0, 1, 0, 1),
        (40, 1, 32, 1, 100, 1, 0, 1),  # Outside.
        (41, 1, 32, 1, 0, 1, 0, 1),  # Half a pixel.
        (0, 1, 32, 1, 0, 1, 0, 1),
        (40, 0, 32, 1, 0, 1, 0, 1),
    ],
)
def test_aperture_of_all_pixels_or_of_none_cuts_nothing(numbers):
    np.testing.assert_array_equal(decoded(with_clean_aperture(avif(), *numbers)).pixels, decoded(avif()).pixels)
