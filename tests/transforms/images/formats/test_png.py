"""What PNG's metadata says of the picture, and what it does not cost."""

import io
import logging

import imagecodecs
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from tests.support.image_samples import picture, png
from transforms.images.decode import ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_orientation_by_imagemagick_is_applied(orientation, compressed):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
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
