"""HEIC by libheif, written by pillow-heif, and what is said without it."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from tests.support.image_samples import picture
from transforms.images import decode
from transforms.images.decode import ImageError, ImageOptions, decode_image

pillow_heif = pytest.importorskip("pillow_heif")

NATIVE = ImageOptions(image_size=None)


def heic(*images, **options):
    """Images in one file, without loss unless options say otherwise; the first is the primary one."""
    container = pillow_heif.HeifFile()
    for image in images:
        container.add_from_pillow(image)
    stream = io.BytesIO()
    container.save(stream, **{"quality": -1, "chroma": 444, "matrix_coefficients": 0} | options)
    return stream.getvalue()


@pytest.fixture
def heif_plugin(monkeypatch):
    """Pillow's plugin for HEIF while a test runs: other tests see a Pillow without it."""
    for registry in ("OPEN", "SAVE", "SAVE_ALL", "MIME", "EXTENSION"):
        monkeypatch.setattr(PIL.Image, registry, dict(getattr(PIL.Image, registry)))
    monkeypatch.setattr(PIL.Image, "ID", list(PIL.Image.ID))
    pillow_heif.register_heif_opener()


def test_pixels_equal_what_was_written():
    expected = picture(48, 64)
    image = decode_image(heic(PIL.Image.fromarray(expected)), NATIVE)
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.width, image.height) == (64, 48)


@pytest.mark.parametrize("mode", ["I;16", "RGB;16", "LA;16"])
@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits_are_scaled(monkeypatch, mode, bits):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    grey = np.linspace(0, 65_535, 64 * 48).astype(np.uint16).reshape(48, 64)
    opaque = np.full_like(grey, 65_535)
    channels = {"I;16": [grey], "RGB;16": [grey] * 3, "LA;16": [grey, opaque]}[mode]
    stream = io.BytesIO()
    pillow_heif.from_bytes(mode, (64, 48), np.dstack(channels).tobytes()).save(stream, quality=-1, chroma=444)
    found = decode_image(stream.getvalue(), NATIVE).pixels.astype(int)
    assert np.abs(found - grey[..., None] / 257).max() <= 1


def test_transparent_pixels_are_white():
    pixels = np.dstack([picture(48, 64), np.full((48, 64), 255, np.uint8)])
    pixels[:, :32, 3] = 0
    found = decode_image(heic(PIL.Image.fromarray(pixels)), NATIVE).pixels
    assert (found[:, :32] == 255).all()
    np.testing.assert_array_equal(found[:, 32:], pixels[:, 32:, :3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(orientation, heif_plugin):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    jpeg, stream = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(picture(48, 64)).save(jpeg, "JPEG", exif=exif, quality=98, subsampling=0)
    # The plugin stores the pixels as they lie, and EXIF's orientation as the file's own.
    PIL.Image.open(jpeg).save(stream, "HEIF", quality=-1, chroma=444, matrix_coefficients=0)
    found, expected = (decode_image(file.getvalue(), NATIVE) for file in (stream, jpeg))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (expected.width, expected.height) == (64, 48)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_size_is_that_of_the_primary_image_as_stored(orientation, heif_plugin):
    """Neighbours in the file are turned otherwise, and are more than an index of one byte may name."""
    images = []
    for number in range(70):
        exif = PIL.Image.Exif()
        exif[274] = orientation if number == 66 else 6 if number % 2 else 1
        jpeg = io.BytesIO()
        PIL.Image.fromarray(picture(32, 48 if number == 66 else 32, seed=number)).save(jpeg, "JPEG", exif=exif)
        images.append(PIL.Image.open(jpeg))
    stream = io.BytesIO()
    images[0].save(stream, "HEIF", save_all=True, append_images=images[1:], primary_index=66)
    found = decode_image(stream.getvalue(), NATIVE)
    assert (found.width, found.height) == (48, 32)
    assert found.pixels.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))


def test_size_of_an_avif_is_as_stored_too(heif_plugin):
    exif = PIL.Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    PIL.Image.fromarray(picture(32, 48)).save(stream, "AVIF", exif=exif)
    found = decode_image(stream.getvalue(), NATIVE)
    assert (found.width, found.height, found.pixels.shape) == (48, 32, (48, 32, 3))


def test_primary_image_is_decoded_at_any_position():
    first, second = picture(48, 64, seed=1), picture(32, 32, seed=2)
    data = heic(PIL.Image.fromarray(first), PIL.Image.fromarray(second), primary_index=1)
    np.testing.assert_array_equal(decode_image(data, NATIVE).pixels, second)


def test_icc_profile_is_reported():
    image = PIL.Image.fromarray(picture(48, 64))
    image.info["icc_profile"] = b"\0" * 128
    assert not decode_image(heic(PIL.Image.fromarray(picture(48, 64))), NATIVE).icc_profile_ignored
    assert decode_image(heic(image), NATIVE).icc_profile_ignored


def test_too_many_pixels_are_refused():
    with pytest.raises(ImageError) as caught:
        decode_image(heic(PIL.Image.fromarray(picture(48, 64))), ImageOptions(max_image_pixels=48 * 64 - 1))
    assert caught.value.error_type == "too_many_pixels"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_file_is_truncated(share):
    data = heic(PIL.Image.fromarray(picture(48, 64)))
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * share)], NATIVE)
    assert caught.value.error_type == "truncated"


def test_missing_extra_is_named(monkeypatch):
    data = heic(PIL.Image.fromarray(picture(48, 64)))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(decode, "IS_POSSIBLE", False)  # Another process would have it.
    with pytest.raises(ImageError, match=r"imagebeam\[heif\]") as caught:
        decode_image(data, NATIVE)
    assert caught.value.error_type == "unsupported_heic"
