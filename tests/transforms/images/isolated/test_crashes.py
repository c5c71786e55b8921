"""tensorflow-io's decoders crash in the process of their own: neither neighbours nor the job are lost."""

import contextlib
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support import dicom
from tests.support.high_range import by_opencv, exr, hdr, light, on_screen, rgbe
from tests.support.hostile.mutate import mutate
from transforms.images.decode import ImageError, ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)
HDR, EXR = hdr(rgbe(light(4, 4)), "-Y 4 +X 4"), exr({"Y": np.zeros((4, 4), np.float32)})


def crashing() -> bytes:
    """An EXR whose chunk says that it is longer than the file: OpenEXR 2.4 throws what nobody catches."""
    data = bytearray(exr({"Y": np.zeros((4, 4), np.float32)}))
    (first,) = struct.unpack_from("<Q", data, len(data) - 4 * (8 + 16) - 4 * 8)
    data[first : first + 4] = struct.pack("<i", 77)  # another row than it is
    return bytes(data)


def test_a_crash_costs_one_image():
    expected = decode_image(HDR, NATIVE).pixels
    for _ in range(3):
        with pytest.raises(ImageError, match="its decoder crashes") as caught:
            decode_image(crashing(), NATIVE)
        assert caught.value.error_type == "undecodable"
        np.testing.assert_array_equal(decode_image(HDR, NATIVE).pixels, expected)


def test_other_threads_get_their_own_pixels_during_a_crash():
    flat = [exr({"Y": np.full((8, 8), index / 32, np.float32)}) for index in range(32)]

    def decode(index):
        if index % 8 == 7:
            with pytest.raises(ImageError):
                decode_image(crashing(), NATIVE)
        return decode_image(flat[index], NATIVE).pixels[0, 0, 0]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(decode, range(32)))
    assert found == on_screen(np.arange(32) / 32).tolist()


@pytest.mark.parametrize("kind", ["dicom", "exr", "hdr"])
def test_damaged_files_end_as_an_image_or_a_reason(tmp_path, kind):
    names = ("MR_small", "MR_small_RLE", "JPEG2000", "SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "JPGExtended")
    samples = {
        "dicom": [dicom.find(name) for name in (*names, "MR_small_jpeg_ls_lossless", "examples_palette")],
        "exr": [by_opencv(tmp_path, ".exr", light()), EXR],
        "hdr": [by_opencv(tmp_path, ".hdr", light()), HDR],
    }[kind]
    source = random.Random(kind)
    for _ in range(60):
        data = mutate(source.choice(samples), source)
        with contextlib.suppress(ImageError):
            assert decode_image(data, ImageOptions((8, 8), max_image_pixels=1 << 24)).pixels.shape == (8, 8, 3)
