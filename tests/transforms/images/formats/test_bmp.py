"""BMP with the headers of OS/2, and with what writers leave out or say too much of."""

import struct

import numpy as np
import pytest

from tests.support.image_samples import picture
from transforms.images.decode import ImageError, ImageOptions, decode_image

VALUES = picture(5, 7)
COLOURS = picture(1, 256)[0]
INDICES = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)


def rows(samples):
    """Rows from the last to the first, each filled up to four bytes."""
    stride = -(-samples[0].nbytes // 4) * 4
    return b"".join(row.tobytes().ljust(stride, b"\0") for row in samples[::-1])


def bmp(bits, body, *, size=40, palette=b"", start=None, colours=0, compression=0):
    header = struct.pack("<IiiHHIIiiII", size, 7, 5, 1, bits, compression, 0, 0, 0, colours, 0).ljust(124, b"\0")[:size]
    start = 14 + size + len(palette) if start is None else start
    return b"BM" + struct.pack("<IHHI", 14 + size + len(palette) + len(body), 0, 0, start) + header + palette + body


def palette(colours):
    return np.concatenate([colours[:, ::-1], np.zeros((len(colours), 1), np.uint8)], axis=1).tobytes()


RGB_24 = rows(np.ascontiguousarray(VALUES[..., ::-1]))
RGB_32 = rows(np.dstack([VALUES[..., ::-1], np.zeros((5, 7), np.uint8)]))
WORDS = np.random.default_rng(0).integers(0, 1 << 15, (5, 7)).astype("<u2")


def pixels(data):
    return decode_image(data, ImageOptions(image_size=None)).pixels


@pytest.mark.parametrize("size", [16, 20, 24, 36, 40, 44, 46, 48, 52, 56, 60, 64, 108, 124])
def test_headers_of_any_length(size):
    """OS/2's may stop behind any field, and has 64 bytes at most."""
    np.testing.assert_array_equal(pixels(bmp(24, RGB_24, size=size)), VALUES)
    data = bmp(8, rows(INDICES), size=size, palette=palette(COLOURS))
    np.testing.assert_array_equal(pixels(data), COLOURS[INDICES])


@pytest.mark.parametrize("size", [40, 124])
@pytest.mark.parametrize("start", [0, 10])
def test_pixels_whose_place_is_not_said_are_behind_the_header(start, size):
    np.testing.assert_array_equal(pixels(bmp(32, RGB_32, size=size, start=start)), VALUES)


def test_masks_behind_a_short_header_are_no_pixels():
    masks = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
    np.testing.assert_array_equal(pixels(bmp(32, RGB_32, palette=masks, start=0, compression=3)), VALUES)


def test_runs_whose_place_is_not_said_are_behind_the_palette():
    body = b"".join(b"\x07" + bytes([row]) + b"\0\0" for row in range(5)) + b"\0\1"
    data = bmp(8, body, palette=palette(COLOURS), start=0, compression=1)
    np.testing.assert_array_equal(pixels(data), np.repeat(COLOURS[4::-1, None], 7, axis=1))


def test_last_row_need_not_be_filled_up():
    whole = bmp(16, rows(WORDS))
    np.testing.assert_array_equal(pixels(whole[:-2]), pixels(whole))
    with pytest.raises(ImageError) as caught:
        pixels(whole[:-3])
    assert caught.value.error_type == "truncated"


def test_palette_of_too_many_colours():
    more = palette(np.concatenate([COLOURS, COLOURS[:44]]))
    np.testing.assert_array_equal(pixels(bmp(8, rows(INDICES), palette=more, colours=300)), COLOURS[INDICES])


@pytest.mark.parametrize("length", [26, 29, 40, 53])
def test_file_that_ends_within_its_header_is_truncated(length):
    with pytest.raises(ImageError) as caught:
        pixels(bmp(24, RGB_24)[:length])
    assert caught.value.error_type == "truncated"
