"""JPEGs decoded at a fraction of their size, against Pillow's draft mode at the same one, and against all pixels."""

import io

import numpy as np
import PIL.Image
import pytest

from transforms.core.errors import ImagebeamError
from transforms.core.spec import JpegDecode, ResizeMode
from transforms.images.decode import ImageOptions, decode_image
from transforms.images.errors import ImageError
from transforms.models.config import EmbedderConfig

EXACT, SCALED = (ImageOptions(image_size=(60, 80), scale_jpegs=scale) for scale in (False, True))


def photograph(width, height, mode="RGB"):
    """Waves: smooth, and different everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (20 + 9 * band) + y / (31 - 7 * band)) for band in range(3)]
    return PIL.Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).convert(mode)


def jpeg(image, **settings):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **settings})
    return stream.getvalue()


@pytest.mark.parametrize(("width", "height", "part"), [(1600, 1400, 8), (660, 640, 4), (400, 330, 2)])
def test_pixels_are_those_of_pillows_draft_mode(width, height, part):
    data = jpeg(photograph(width, height))
    drafted = PIL.Image.open(io.BytesIO(data))
    drafted.draft("RGB", (width // part, height // part))
    assert drafted.size == (width // part, height // part)
    expected = np.asarray(drafted.resize((80, 60), PIL.Image.Resampling.BILINEAR))
    image = decode_image(data, SCALED)
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.width, image.height) == (width, height)
    exact = decode_image(data, EXACT).pixels
    assert not np.array_equal(image.pixels, exact)
    assert np.abs(image.pixels.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_grey_cmyk_and_progressive_stay_close(mode, progressive):
    data = jpeg(photograph(1500, 1200, mode), progressive=progressive)
    scaled, exact = decode_image(data, SCALED).pixels, decode_image(data, EXACT).pixels
    assert np.abs(scaled.astype(int) - exact).mean() < 3


def test_turned_images_stay_close():
    image = photograph(1600, 800)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = jpeg(image, exif=exif)
    scaled, exact = decode_image(data, SCALED).pixels, decode_image(data, EXACT).pixels
    assert np.abs(scaled.astype(int) - exact).mean() < 2


def test_small_jpegs_and_other_formats_are_unchanged():
    small = jpeg(photograph(170, 165))
    stream = io.BytesIO()
    photograph(1300, 1200).save(stream, "PNG")
    for data in (small, stream.getvalue()):
        np.testing.assert_array_equal(decode_image(data, SCALED).pixels, decode_image(data, EXACT).pixels)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8, 127, 128])
@pytest.mark.parametrize("damaged", [False, True])
def test_thin_jpegs_are_unchanged(side, damaged):
    for width, height in ((side, 900), (900, side)):
        data = jpeg(photograph(width, height))
        data = data[:-2] if damaged else data  # It lacks its end marker, which costs no pixels.
        scaled, exact = (
            decode_image(data, ImageOptions(image_size=(64, 64), scale_jpegs=scale)).pixels for scale in (True, False)
        )
        np.testing.assert_array_equal(scaled, exact)


@pytest.mark.parametrize("side", range(1, 7))
def test_thin_jpegs_are_unchanged_at_an_image_size_of_a_few_pixels(side):
    data = jpeg(photograph(side, 300))
    scaled, exact = (
        decode_image(data, ImageOptions(image_size=(3, 3), scale_jpegs=scale)).pixels for scale in (True, False)
    )
    np.testing.assert_array_equal(scaled, exact)


def test_damage_and_size_are_still_refused():
    data = jpeg(photograph(1280, 960))
    with pytest.raises(ImageError) as error:
        decode_image(data[: len(data) // 2], SCALED)
    assert error.value.error_type == "truncated"
    with pytest.raises(ImageError) as error:
        decode_image(data, ImageOptions(image_size=(60, 80), scale_jpegs=True, max_image_pixels=1000))
    assert error.value.error_type == "too_many_pixels"


@pytest.mark.parametrize("resize_mode", [ResizeMode.CENTER_CROP, ResizeMode.PAD])
def test_crop_and_pad_stay_close(resize_mode):
    data = jpeg(photograph(2000, 900))
    scaled, exact = (
        decode_image(data, ImageOptions(image_size=(64, 64), resize_mode=resize_mode, scale_jpegs=scale)).pixels
        for scale in (True, False)
    )
    assert np.abs(scaled.astype(int) - exact).mean() < 2


def test_jpeg_decode_is_in_the_spec_only_when_set():
    plain = EmbedderConfig("VGG16", "none").spec("")
    scaled = EmbedderConfig("VGG16", "none", jpeg_decode="scaled").spec("")
    assert "jpeg_decode" not in plain.to_dict()
    assert plain.differences(scaled) == ["jpeg_decode: exact != scaled"]
    assert type(scaled).from_json(scaled.to_json()) == scaled
    assert scaled.jpeg_decode is JpegDecode.SCALED
    assert ImageOptions.from_spec(scaled).scale_jpegs


@pytest.mark.parametrize("settings", [{"image_size": "native"}, {"resize_mode": "stretch_aliased"}])
def test_scaling_without_a_target_size_is_refused(settings):
    with pytest.raises(ImagebeamError, match="jpeg_decode=scaled"):
        EmbedderConfig("VGG16", "none", jpeg_decode="scaled", **settings)
