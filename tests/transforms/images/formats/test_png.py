"""What PNG's metadata says of the picture, and what it does not cost."""

import io
import logging
import zlib

import imagecodecs
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from tests.support.image_samples import exif, picture, png
from transforms.images.decode import ImageError, ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_by_imagemagick_is_applied(orientation, compressed):
    metadata = PIL.Image.Exif()
    metadata[274] = orientation
    block = b"Exif\0\0" + metadata.tobytes().removeprefix(b"Exif\0\0")
    digits = block.hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{lines}\n", zip=compressed)
    stream = io.BytesIO()
    PIL.Image.fromarray(picture()).save(stream, "PNG", pnginfo=text)
    turns = {1: 0, 3: 2, 6: 3}[orientation]
    np.testing.assert_array_equal(decode_image(stream.getvalue(), NATIVE).pixels, np.rot90(picture(), turns))


def test_libpngs_warnings_are_not_logged(caplog):
    logging.getLogger("imagecodecs").setLevel(logging.WARNING)
    data = png(8, 2, 1, 0, b"\x0f\xf0", (b"tRNS", b"\0\5"))  # A transparent value that 1 bit does not reach.
    for _ in range(20):  # Once in a while imagecodecs reads libpng's message too late, and logs nothing.
        imagecodecs.png_decode(data)
    assert "out-of-range" in caplog.text
    caplog.clear()
    for _ in range(20):
        assert decode_image(data, NATIVE).pixels.shape == (2, 8, 3)
    assert caplog.text == ""


def with_window(data: bytes, bits: int) -> bytes:
    """The same PNG, its image data said to look back by 2 to the power of `bits` bytes at most."""
    start = data.index(b"IDAT")
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    method = (bits - 8) << 4 | 8
    chunk = b"IDAT" + bytes([method, 31 - (method << 8) % 31]) + data[start + 6 : end]
    return data[:start] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[end + 4 :]


@pytest.mark.parametrize("bits", range(8, 16))
def test_image_data_may_look_back_further_than_it_says(bits):
    """Pillow and browsers read such files; libpng refuses them."""
    values = np.tile(picture(4, 500), (10, 1, 1))
    data = with_window(png(500, 40, 8, 2, values.tobytes()), bits)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), values)
    np.testing.assert_array_equal(decode_image(data, NATIVE).pixels, values)


def test_wrong_checksum_is_not_mended_with_the_window():
    data = bytearray(with_window(png(500, 40, 8, 2, np.tile(picture(4, 500), (10, 1, 1)).tobytes()), 8))
    data[data.index(b"IEND") - 5] ^= 1  # Of the chunk before it.
    with pytest.raises(ImageError) as caught:
        decode_image(bytes(data), NATIVE)
    assert caught.value.error_type == "undecodable"


def test_first_exif_counts():
    blocks = [(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0")) for orientation in (6, 3)]
    data = png(32, 24, 8, 2, picture().tobytes(), *blocks)
    np.testing.assert_array_equal(decode_image(data, NATIVE).pixels, np.rot90(picture(), -1))


def test_side_beyond_libpngs_limit_is_told():
    with pytest.raises(ImageError, match="1100000 x 1 pixels; at most 1,000,000") as caught:
        decode_image(png(1_100_000, 1, 8, 0, bytes(1_100_000)), NATIVE)
    assert caught.value.error_type == "unsupported_layout"
