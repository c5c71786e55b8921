"""The image policy, rule by rule, against NumPy, Keras, TensorFlow's decoders and hand-made files."""

import io
import itertools
import logging
import multiprocessing
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import simplejpeg
import tifffile
from PIL import AvifImagePlugin

from tests.support.image_samples import (
    BAD,
    GOOD,
    UPRIGHT,
    animation,
    cmyk_jpeg,
    encode,
    exif,
    make_samples,
    picture,
    png,
    tiff,
    ycck_jpeg,
)
from tests.support.shard_files import read_member
from transforms.core.errors import ImagebeamError
from transforms.core.spec import EmbedderSpec, Interpolation, ResizeMode
from transforms.images import decode
from transforms.images.decode import (
    DECODERS,
    IMAGE_EXTENSIONS,
    Decoder,
    ImageError,
    ImageOptions,
    decode_image,
    prepare_pillow,
)
from transforms.images.errors import explain
from transforms.images.formats import pillow
from transforms.images.sniff import Format

NATIVE = ImageOptions(image_size=None)


def pixels(data):
    return decode_image(data, NATIVE).pixels


def outcome(data, options):
    """The shape of the image, or the error's type and message."""
    try:
        return decode_image(data, options).pixels.shape
    except ImageError as error:
        return error.error_type, error.message


def over_white(colour, alpha):
    share = np.asarray(alpha, np.float64)[..., None] / 255
    return colour * share + 255 * (1 - share)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(np.float64) - expected).max() <= tolerance


# What comes out


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file_gives_contiguous_rgb_bytes_and_its_stored_size(name):
    image = decode_image(GOOD[name](), ImageOptions(image_size=(20, 30)))
    assert image.pixels.shape == (20, 30, 3)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    assert (image.width, image.height) == ((32, 32) if name == "rgb.ico" else (32, 24))


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.bmp", "rgb.tif", "lzw.tiff", "rgb.ppm", "rgb.tga", "rgb.jp2", "rgb.j2k"]
)
def test_lossless_formats_give_the_pixels_back(name):
    np.testing.assert_array_equal(pixels(GOOD[name]()), picture())


@pytest.mark.parametrize(("name", "tolerance"), [("rgb.jpg", 30), ("rgb.webp", 40), ("rgb.avif", 30), ("pair.mpo", 40)])
def test_lossy_formats_give_nearly_the_pixels_back(name, tolerance):
    assert_close(pixels(GOOD[name]()), picture(), tolerance)


@pytest.mark.parametrize("name", BAD)
def test_every_kind_of_bad_file_has_its_own_reason(name):
    error_type, make = BAD[name]
    with pytest.raises(ImageError) as caught:
        decode_image(make(), NATIVE)
    assert caught.value.error_type == error_type
    assert str(caught.value) == caught.value.message != ""


def test_make_samples_writes_every_sample(tmp_path):
    samples = make_samples(tmp_path / "new")
    assert set(samples) == set(GOOD) | set(BAD)
    assert samples["rgb.png"].read_bytes() == GOOD["rgb.png"]()


# Orientation


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_orientation_is_applied(image_format, options, orientation):
    image = decode_image(encode(picture(), image_format, exif=exif(orientation), **options), NATIVE)
    np.testing.assert_array_equal(image.pixels, UPRIGHT[orientation](picture()))
    assert (image.width, image.height) == (32, 24)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_a_tiff_is_applied_once(orientation):
    data = tiff(32, 24, picture().tobytes(), bits=8, samples=3, photometric=2, orientation=orientation)
    image = decode_image(data, NATIVE)
    np.testing.assert_array_equal(image.pixels, UPRIGHT[orientation](picture()))
    assert (image.width, image.height) == (32, 24)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("image_format", "tolerance"), [("JPEG", 30), ("AVIF", 30)])
def test_orientation_of_lossy_formats_is_applied(image_format, tolerance, orientation):
    data = encode(picture(), image_format, quality=95, exif=exif(orientation))
    assert_close(pixels(data), UPRIGHT[orientation](picture()), tolerance)


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_orientation_may_be_a_whole_number_of_any_type(kind):
    """exiv2, and GIMP with it, writes SLONG (9)."""
    block = exif(6).replace(struct.pack("<HHIH", 274, 3, 1, 6), struct.pack("<HHIH", 274, kind, 1, 6))
    np.testing.assert_array_equal(pixels(encode(picture(), "PNG", exif=block)), np.rot90(picture(), -1))


@pytest.mark.parametrize("block", [b"Exif\0\0II*\0", b"Exif\0\0nothing of the kind", exif(9), exif(6)[:-10]])
def test_corrupt_exif_does_not_cost_the_image(block):
    assert_close(pixels(encode(picture(), "JPEG", quality=95, exif=block)), picture(), 30)
    np.testing.assert_array_equal(pixels(encode(picture(), "PNG", exif=block)), picture())


# Colour


def test_cmyk_is_converted_by_plain_arithmetic():
    inks = np.dstack([picture(), picture(seed=1)[..., 0] // 2])
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert_close(pixels(encode(PIL.Image.fromarray(inks, "CMYK"), "TIFF")), expected, 1)
    assert_close(pixels(cmyk_jpeg(inks)), expected, 8)
    assert_close(pixels(ycck_jpeg(inks)), expected, 8)


@pytest.mark.parametrize("name", ["cmyk.jpg", "ycck.jpg"])
def test_cmyk_inks_equal_tensorflow(name):
    import tensorflow as tf

    expected = tf.io.decode_jpeg(GOOD[name](), channels=3, dct_method="INTEGER_ACCURATE").numpy()
    assert_close(pixels(GOOD[name]()), expected, 2)


@pytest.mark.parametrize("components", [3, 4])
def test_unknown_transform_of_adobe_is_libjpegs_choice(components):
    """It takes YCbCr, or YCCK, and warns, which simplejpeg makes an error."""
    if components == 3:
        plain = encode(picture(), "JPEG")
        marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
        known, odd = (plain[:2] + marker + code + plain[20:] for code in (b"\1", b"\2"))  # Without JFIF.
    else:
        known = ycck_jpeg(np.dstack([picture(), picture(seed=1)[..., :1]]))
        transform = known.index(b"Adobe") + 11
        odd = known[:transform] + b"\1" + known[transform + 1 :]
    np.testing.assert_array_equal(pixels(odd), pixels(known))


def test_16_bit_grey_is_scaled_by_its_range():
    values = np.linspace(0, 65_535, 32 * 24).round().astype(np.uint16).reshape(24, 32)
    expected = np.repeat(np.rint(values / 257.0)[..., None], 3, axis=2).astype(np.uint8)
    big, little = values.astype(">u2").tobytes(), values.astype("<u2").tobytes()
    files = {
        "png": png(32, 24, 16, 0, big),
        "tiff II": tiff(32, 24, little, bits=16),
        "tiff MM": encode(PIL.Image.frombytes("I;16B", (32, 24), big), "TIFF"),
        "pgm": b"P5\n32 24\n65535\n" + big,
        "pgm plain": b"P2\n32 24\n65535\n" + b"\n".join(str(value).encode() for value in values.flat),
        "jpeg 2000": encode(values, "JPEG2000"),
    }
    for name, data in files.items():
        np.testing.assert_array_equal(pixels(data), expected, name)


def test_12_bit_grey_is_scaled_by_its_range():
    # Two samples of 12 bits: 0x000, 0xFFF, then 0x800, 0x7FF.
    data = tiff(2, 2, bytes.fromhex("000fff8007ff"), bits=12)
    np.testing.assert_array_equal(
        pixels(data)[..., 0], [[0, 255], [round(0x800 / 4095 * 255), round(0x7FF / 4095 * 255)]]
    )


def test_16_bit_grey_with_white_as_zero_is_inverted():
    data = tiff(2, 1, struct.pack("<2H", 0, 65_535), bits=16, photometric=0)
    np.testing.assert_array_equal(pixels(data)[..., 0], [[255, 0]])


@pytest.mark.parametrize("with_alpha", [False, True])
def test_16_bit_colour_is_scaled(with_alpha):
    values = np.random.default_rng(0).integers(0, 65_536, (24, 32, 3), dtype=np.uint16)
    if not with_alpha:
        expected, tolerance = np.rint(values / 257.0), 0
    else:
        alpha = np.random.default_rng(1).integers(0, 65_536, (24, 32), dtype=np.uint16)
        expected, tolerance = over_white(values / 257.0, alpha / 257.0), 2
        values = np.dstack([values, alpha])
    assert_close(pixels(png(32, 24, 16, 6 if with_alpha else 2, values.astype(">u2").tobytes())), expected, tolerance)


@pytest.mark.parametrize(
    "data",
    [
        tiff(1, 1, struct.pack("<f", 0.5), bits=32, sample_format=3),
        tiff(1, 1, struct.pack("<I", 70_000), bits=32),
        tiff(1, 1, struct.pack("<h", -5), bits=16, sample_format=2),
        b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5),
    ],
    ids=["float TIFF", "32-bit TIFF", "signed TIFF", "PFM"],
)
def test_samples_without_a_range_are_refused(data):
    with pytest.raises(ImageError, match="range") as caught:
        pixels(data)
    assert caught.value.error_type == "unsupported_mode"


def test_grey_and_bits_become_rgb():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(pixels(encode(grey, "PNG")), np.dstack([grey] * 3))
    bits = np.array([[0xA5, 0x0F]], np.uint8)
    expected = np.unpackbits(bits, axis=1) * 255
    np.testing.assert_array_equal(pixels(png(16, 1, 1, 0, bits.tobytes())), np.dstack([expected] * 3))


def test_palette_is_expanded():
    palette = picture(1, 7)[0]
    indices = np.arange(21, dtype=np.uint8).reshape(3, 7) % 7
    data = png(7, 3, 8, 3, indices.tobytes(), (b"PLTE", palette.tobytes()))
    np.testing.assert_array_equal(pixels(data), palette[indices])


# Transparency


def test_alpha_is_laid_over_white():
    colour, alpha = picture(), picture(seed=1)[..., 0]
    expected = over_white(colour, alpha)
    rgba = np.dstack([colour, alpha])
    assert_close(pixels(encode(rgba, "PNG")), expected, 1)
    assert_close(pixels(encode(rgba, "WEBP", lossless=True, exact=True)), expected, 1)
    assert_close(pixels(encode(rgba, "TIFF")), expected, 1)
    grey = np.dstack([colour[..., :1], alpha])
    assert_close(pixels(encode(grey, "PNG")), over_white(colour[..., :1].repeat(3, axis=2), alpha), 1)


def test_premultiplied_alpha_is_laid_over_white():
    alpha = picture(seed=1)[..., 0]
    premultiplied = np.rint(picture() * (alpha[..., None] / 255)).astype(np.uint8)
    data = tiff(32, 24, np.dstack([premultiplied, alpha]).tobytes(), bits=8, samples=4, photometric=2, extra_samples=1)
    assert_close(pixels(data), premultiplied + (255.0 - alpha[..., None]), 1)


def test_palette_transparency_is_laid_over_white():
    palette, alphas = picture(1, 7)[0], np.array([0, 255, 128, 7, 200], np.uint8)
    indices = np.arange(21, dtype=np.uint8).reshape(3, 7) % 7
    data = png(7, 3, 8, 3, indices.tobytes(), (b"PLTE", palette.tobytes()), (b"tRNS", alphas.tobytes()))
    all_alphas = np.append(alphas, [255, 255])
    assert_close(pixels(data), over_white(palette[indices], all_alphas[indices]), 1)


def test_palette_with_alpha_of_its_own_is_laid_over_white():
    indexed = PIL.Image.fromarray(picture()).quantize(16).convert("PA")
    alpha = picture(seed=1)[..., 0]
    indexed.putalpha(PIL.Image.fromarray(alpha))
    assert indexed.mode == "PA"
    colour = np.asarray(indexed.convert("RGB"))
    assert_close(pixels(encode(indexed, "TIFF")), over_white(colour, alpha), 1)


def test_transparent_index_of_a_gif_is_white():
    indexed = PIL.Image.fromarray(picture()).quantize(16)
    hidden = np.asarray(indexed) == 3
    assert hidden.any()
    expected = np.where(hidden[..., None], 255, np.asarray(indexed.convert("RGB")))
    np.testing.assert_array_equal(pixels(encode(indexed, "GIF", transparency=3)), expected)


@pytest.mark.parametrize(
    ("depth", "color_type", "row", "transparent", "expected"),
    [
        (1, 0, b"\x40", (1,), [0, 255]),  # Black, and white that is transparent.
        (2, 0, b"\x70", (1,), [255, 255]),  # Samples 1 and 3.
        (4, 0, b"\x35", (3,), [255, 5 * 17]),
        (8, 0, b"\x03\x05", (3,), [255, 5]),
        (16, 0, struct.pack(">2H", 1000, 40_000), (1000,), [255, 156]),
        (8, 2, bytes([1, 2, 3, 1, 2, 4]), (1, 2, 3), [(255, 255, 255), (1, 2, 4)]),
        (
            16,
            2,
            struct.pack(">6H", 1000, 2000, 3000, 40_000, 50_000, 60_000),
            (1000, 2000, 3000),
            [(255,) * 3, (156, 195, 233)],
        ),
    ],
)
def test_transparent_colour_of_a_png_is_white(depth, color_type, row, transparent, expected):
    data = png(2, 1, depth, color_type, row, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    wanted = np.array(expected).reshape(1, 2, -1)
    np.testing.assert_array_equal(pixels(data), np.broadcast_to(wanted, (1, 2, 3)))


# Frames and profiles


def test_first_frame_of_an_animation_is_decoded():
    first, second = np.full((8, 9, 3), (200, 30, 30), np.uint8), np.full((8, 9, 3), (20, 20, 220), np.uint8)
    np.testing.assert_array_equal(pixels(animation("GIF", [first, second])), first)
    np.testing.assert_array_equal(pixels(animation("PNG", [first, second])), first)
    np.testing.assert_array_equal(pixels(animation("WEBP", [first, second], lossless=True)), first)
    np.testing.assert_array_equal(pixels(animation("TIFF", [first, second])), first)


@pytest.mark.parametrize(
    ("image_format", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {})]
)
def test_icc_profiles_are_ignored_and_reported(image_format, options):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    plain = decode_image(encode(picture(), image_format, **options), NATIVE)
    tagged = decode_image(encode(picture(), image_format, icc_profile=profile, **options), NATIVE)
    assert not plain.icc_profile_ignored
    assert tagged.icc_profile_ignored
    np.testing.assert_array_equal(tagged.pixels, plain.pixels)


# Limits


@pytest.fixture
def in_this_process(monkeypatch):
    """Every format is decoded in this process, as on a system without fork."""
    monkeypatch.setattr(decode, "IS_POSSIBLE", False)


@pytest.fixture
def decodes(monkeypatch, in_this_process):
    """The names of the functions of other libraries that were called to decode: they ask for the memory of pixels."""
    called = []

    def record(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (called.append(name), real(*args, **kwargs))[1])

    record(PIL.ImageFile.ImageFile, "load_prepare")
    record(simplejpeg, "decode_jpeg")
    record(imagecodecs, "png_decode")
    record(imagecodecs, "jpeg2k_decode")
    record(tifffile.TiffPage, "asarray")
    return called


def test_too_many_pixels_are_refused_before_decoding(decodes):
    options = ImageOptions(image_size=(8, 8), max_image_pixels=32 * 24)
    for name in ("rgb.jpg", "rgb.png", "rgb.tif", "rgb.bmp", "palette.gif", "rgb.jp2"):
        decode_image(GOOD[name](), options)
    assert decodes == ["decode_jpeg", "png_decode", "asarray", "load_prepare", "load_prepare", "load_prepare"]
    formats = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "JPEG2000", "WEBP", "AVIF", "TGA", "PPM")
    files = [encode(picture(24, 33), image_format) for image_format in formats]
    decodes.clear()
    for data in files:
        with pytest.raises(ImageError, match=r"33 x 24 .*768") as caught:
            decode_image(data, options)
        assert caught.value.error_type == "too_many_pixels"
    assert decodes == []


def test_a_bomb_is_refused_by_its_header(decodes):
    header = png(60_000, 60_000, 8, 2, bytes(60_000), image_data=False)
    with pytest.raises(ImageError) as caught:
        decode_image(header, NATIVE)
    assert caught.value.error_type == "too_many_pixels"
    assert decodes == []


def test_small_images_are_refused_at_native_size():
    options = ImageOptions(image_size=None, min_size=(24, 32))
    assert decode_image(encode(picture(24, 32), "PNG"), options).pixels.shape == (24, 32, 3)
    assert decode_image(encode(picture(32, 24), "PNG", exif=exif(6)), options).pixels.shape == (24, 32, 3)
    for height, width in ((23, 40), (40, 31)):
        with pytest.raises(ImageError, match=f"{width} x {height} pixels") as caught:
            decode_image(encode(picture(height, width), "PNG"), options)
        assert caught.value.error_type == "too_small"


@pytest.fixture
def pillow_as_it_was(monkeypatch):
    """Undoes what `prepare_pillow` sets."""
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", AvifImagePlugin.DEFAULT_MAX_THREADS)
    logger = logging.getLogger("PIL")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("pillow_as_it_was")
def test_a_prepared_pillow_logs_nothing_and_starts_no_threads(caplog):
    caplog.set_level("WARNING", logger="PIL")  # an earlier test of this process may have prepared Pillow
    prepare_pillow()
    logging.getLogger("PIL.WebPImagePlugin").error("a line of Pillow's")
    assert caplog.text == ""
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1


# Resizing


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize("size", [(13, 40), (48, 17), (60, 66), (24, 32)])
def test_stretch_equals_keras(tmp_path, size, interpolation):
    from keras.utils import load_img

    for name in ("rgb.jpg", "progressive.jpg", "rgb.png", "grey.jpg"):
        path = tmp_path / name
        path.write_bytes(GOOD[name]())
        expected = np.asarray(load_img(path, target_size=size, interpolation=interpolation.value))
        np.testing.assert_array_equal(
            decode_image(path.read_bytes(), ImageOptions(size, interpolation)).pixels, expected
        )


@pytest.mark.parametrize("shape", [(37, 53), (500, 375), (8, 8), (1, 90), (224, 224)])
@pytest.mark.parametrize("size", [(32, 32), (20, 45), (224, 224)])
def test_stretch_aliased_equals_tensorflow(shape, size):
    import tensorflow as tf

    image = picture(*shape)
    for interpolation in (Interpolation.BILINEAR, Interpolation.NEAREST):
        expected = tf.image.resize(image, size, method=interpolation.value).numpy()
        options = ImageOptions(size, interpolation, ResizeMode.STRETCH_ALIASED)
        found = decode_image(encode(image, "PNG"), options).pixels
        np.testing.assert_array_equal(found, np.rint(expected))


def test_stretch_aliased_equals_image_dataset_from_directory(tmp_path):
    from keras.utils import image_dataset_from_directory

    (tmp_path / "a").mkdir()
    for number in range(6):
        (tmp_path / "a" / f"{number}.png").write_bytes(encode(picture(90 + number, 120, seed=number), "PNG"))
    dataset = image_dataset_from_directory(
        tmp_path, labels=None, image_size=(64, 48), shuffle=False, batch_size=6, verbose=False
    )
    (expected,) = (batch.numpy() for batch in dataset)
    options = ImageOptions((64, 48), resize_mode=ResizeMode.STRETCH_ALIASED)
    found = [decode_image(path.read_bytes(), options).pixels for path in sorted((tmp_path / "a").iterdir())]
    np.testing.assert_array_equal(np.stack(found), np.rint(expected))


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_truncated_jpeg_is_accepted_on_request(settings):
    data = encode(picture(96, 96), "JPEG", quality=90, **settings)
    half = data[: len(data) * 6 // 10]
    with pytest.raises(ImageError) as caught:
        decode_image(half, ImageOptions(None))
    assert caught.value.error_type == "truncated"
    found = decode_image(half, ImageOptions(None, accept_truncated=True)).pixels
    whole = decode_image(data, ImageOptions(None)).pixels
    assert found.shape == whole.shape
    if not settings.get("progressive"):
        np.testing.assert_array_equal(found[:24], whole[:24])
        assert np.abs(found.astype(int) - whole).max() > 20
    with pytest.raises(ImageError):  # only what stops early
        decode_image(b"\xff\xd8" + bytes(100), ImageOptions(None, accept_truncated=True))


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9", bytes(50)])
def test_jpeg_without_data_behind_its_scan_header_is_truncated(ending):
    whole = GOOD["rgb.jpg"]()
    start = whole.index(b"\xff\xda") + 14
    with pytest.raises(ImageError) as caught:
        pixels(whole[:start] + ending)
    assert caught.value.error_type == "truncated"


def test_parameters_of_a_scan_that_libjpeg_ignores_hide_nothing():
    whole = GOOD["rgb.jpg"]()
    start = whole.index(b"\xff\xda") + 14
    odd = whole[: start - 3] + bytes(3) + whole[start:]
    np.testing.assert_array_equal(pixels(odd), pixels(whole))
    for cut in (odd[: len(odd) // 2], odd[: len(odd) // 2] + b"\xff\xd9"):
        with pytest.raises(ImageError) as caught:
            pixels(cut)
        assert caught.value.error_type == "truncated"


def _oddly_subsampled(stops_at=4):
    """A JPEG of 4 x 2 blocks of grey for each of a colour, by hand: four units, each lighter than the one before."""
    plain = encode(np.zeros((16, 16, 3), np.uint8), "JPEG", subsampling=2)
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    size = struct.pack(">HH", 32, 64)
    head = plain[:frame] + plain[frame : frame + 5] + size + plain[frame + 9 : scan]
    head = head.replace(b"\x01\x22\0\x02\x11", b"\x01\x42\0\x02\x11")
    lighter, same, colour = "1110" + "100000" + "1010", "00" + "1010", "00" + "00"
    unit = int(lighter + 7 * same + 2 * colour, 2).to_bytes(8, "big")
    assert b"\xff" not in unit
    return head + plain[scan : scan + 14] + stops_at * unit + b"\xff\xd9"


def test_jpeg_of_odd_subsampling_that_is_cut_is_truncated():
    data = _oddly_subsampled()
    whole = pixels(data)
    np.testing.assert_array_equal(whole, np.asarray(PIL.Image.open(io.BytesIO(data))))
    assert len(np.unique(whole)) == 4
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(data)
    np.testing.assert_array_equal(pixels(data[:-2]), whole)
    for cut in (_oddly_subsampled(2), _oddly_subsampled(3)[:-2]):
        with pytest.raises(ImageError) as caught:
            pixels(cut)
        assert caught.value.error_type == "truncated"
        found = decode_image(cut, ImageOptions(None, accept_truncated=True)).pixels
        np.testing.assert_array_equal(found[:16], whole[:16])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_12_bits_that_is_cut_is_truncated(channels):
    values = picture(64, 48)[..., :channels].squeeze().astype(np.uint16) * 16
    data = bytes(imagecodecs.jpeg8_encode(values, level=95, bitspersample=12))
    assert pixels(data).shape == (64, 48, 3)
    np.testing.assert_array_equal(pixels(data[:-2]), pixels(data))
    for cut in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(ImageError) as caught:
            pixels(cut)
        assert caught.value.error_type == "truncated"
    found = decode_image(data[: len(data) // 2], ImageOptions(None, accept_truncated=True)).pixels
    np.testing.assert_array_equal(found[:8], pixels(data)[:8])


def test_center_crop_keeps_the_middle_and_the_aspect_ratio():
    middle = picture(20, 20)
    wide = np.concatenate([np.zeros((20, 15, 3), np.uint8), middle, np.full((20, 15, 3), 255, np.uint8)], axis=1)
    options = ImageOptions((20, 20), resize_mode=ResizeMode.CENTER_CROP)
    np.testing.assert_array_equal(decode_image(encode(wide, "PNG"), options).pixels, middle)
    tall = np.ascontiguousarray(wide.swapaxes(0, 1))
    np.testing.assert_array_equal(decode_image(encode(tall, "PNG"), options).pixels, middle.swapaxes(0, 1))


def test_pad_keeps_the_whole_image_on_black():
    wide = picture(20, 40)
    options = ImageOptions((40, 40), resize_mode=ResizeMode.PAD)
    expected = np.zeros((40, 40, 3), np.uint8)
    expected[10:30] = wide
    np.testing.assert_array_equal(decode_image(encode(wide, "PNG"), options).pixels, expected)
    expected = np.zeros((20, 50, 3), np.uint8)
    expected[:, 5:45] = wide
    np.testing.assert_array_equal(
        decode_image(encode(wide, "PNG"), ImageOptions((20, 50), resize_mode=ResizeMode.PAD)).pixels, expected
    )


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1)])
def test_the_thinnest_image_can_be_resized(shape, mode):
    white = np.full((*shape, 3), 255, np.uint8)
    result = decode_image(encode(white, "PNG"), ImageOptions((16, 16), resize_mode=mode)).pixels
    assert result.shape == (16, 16, 3)
    # Padded, all of the image is one line of its 16.
    assert result.mean() == (255 / 16 if mode is ResizeMode.PAD and shape != (1, 1) else 255)


def test_options_come_from_the_spec():
    spec = EmbedderSpec(
        "VGG16", "0", image_size=(9, 7), interpolation=Interpolation.NEAREST, resize_mode=ResizeMode.PAD
    )
    options = ImageOptions.from_spec(spec, max_image_pixels=5, min_size=(3, 4))
    assert options == ImageOptions((9, 7), Interpolation.NEAREST, ResizeMode.PAD, 5, (3, 4))


@pytest.mark.parametrize("values", [{"image_size": (0, 5)}, {"max_image_pixels": 0}])
def test_impossible_options_are_refused(values):
    with pytest.raises(ImagebeamError, match=r"Received: \(?0"):
        ImageOptions(**values)


# Errors


@pytest.mark.parametrize(
    "error",
    [
        OSError("boom"),
        PIL.UnidentifiedImageError("boom"),
        ValueError("boom"),
        SyntaxError("boom"),
        NotImplementedError("boom"),
        struct.error("boom"),
        zlib.error("boom"),
        MemoryError(),
        RecursionError(),
        EOFError(),
        KeyError(5),
        AttributeError("boom"),
        PIL.Image.DecompressionBombError("boom"),
        PIL.Image.DecompressionBombWarning("boom"),
        UserWarning("boom"),
    ],
    ids=repr,
)
def test_whatever_pillow_raises_becomes_an_image_error(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setitem(DECODERS, Format.PNG, Decoder(fail, ()))
    with pytest.raises(ImageError) as caught:
        decode_image(GOOD["rgb.png"](), NATIVE)
    assert caught.value.__cause__ is error
    assert caught.value.message


def test_an_interrupt_is_not_an_image_error(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(DECODERS, Format.PNG, Decoder(interrupt, ()))
    with pytest.raises(KeyboardInterrupt):
        decode_image(GOOD["rgb.png"](), NATIVE)


def test_an_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("truncated", "cut short")))
    assert (error.error_type, str(error)) == ("truncated", "cut short")


def test_messages_hold_no_memory_address(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(f"cannot read {io.BytesIO()!r}")

    monkeypatch.setitem(DECODERS, Format.PNG, Decoder(fail, ()))
    with pytest.raises(ImageError, match=r"cannot read <_io.BytesIO object>"):
        decode_image(GOOD["rgb.png"](), NATIVE)


@pytest.mark.parametrize(
    ("data", "error_type"),
    [
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50), "undecodable"),
        (b"<svg/>", "unsupported_svg"),
        (b"\xef\xbb\xbf  <!-- drawn -->\n<svg width='1'/>", "unsupported_svg"),
        (b"\xff\x0a" + bytes(30), "unsupported_jpeg_xl"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_eps"),
        (b"%PDF-1.7\n", "unsupported_pdf"),
        (b"8BPS" + bytes(30), "unsupported_psd"),
        (b"<html><body><svg></svg></body></html>", "not_an_image"),
        (bytes(1000), "not_an_image"),
        (b"\0", "not_an_image"),
        (GOOD["rgb.avif"]()[:200], "truncated"),
        (GOOD["rgb.jp2"]()[:-100], "truncated"),
        (GOOD["rgb.j2k"]()[:-100], "truncated"),
        (GOOD["rgb.bmp"]()[:-100], "truncated"),
        (GOOD["lzw.tiff"]()[:12], "undecodable"),
    ],
)
def test_error_type_of_each_kind_of_file(data, error_type):
    with pytest.raises(ImageError) as caught:
        decode_image(data, NATIVE)
    assert caught.value.error_type == error_type


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *itertools.product(["PCX"], ["1", "L", "P", "RGB"]),
        *itertools.product(["DDS", "SGI"], ["L", "RGB", "RGBA"]),
        ("ICNS", "RGB"),
        ("XBM", "1"),
    ],
)
def test_sound_files_of_kinds_that_are_not_decoded_are_named(name, mode):
    stream = io.BytesIO()
    PIL.Image.new("RGB", (64, 48), (200, 100, 50)).convert(mode).save(stream, name)
    with pytest.raises(ImageError, match=f"{name} files are not decoded") as caught:
        decode_image(stream.getvalue(), NATIVE)
    assert caught.value.error_type == f"unsupported_{name.lower()}"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x01\xda\x01\x01\0\x03\0\x40", "sgi"),
        (b"\xb1\x68\xde\x3a", "dcx"),
        (b"\x59\xa6\x6a\x95", "sun_raster"),
        (b"/* XPM */\nstatic char *x[] = {", "xpm"),
        (b"SDPX", "dpx"),
        (b"BPG\xfb", "bpg"),
        (b"FLIF", "flif"),
        (b"\x8aMNG\r\n\x1a\n", "mng"),
        (b"AT&TFORM", "djvu"),
        (b"\xd7\xcd\xc6\x9a", "wmf"),
        (b"\1\0\x09\0\0\3", "wmf"),
        (b"II\x1a\0\0\0HEAPCCDR", "raw"),
        (b"\0\0\0\x18ftyp3gp5", "video"),
        (b"\x01\0\0\0" + bytes(36) + b" EMF", "emf"),
    ],
)
def test_further_kinds_of_pictures_are_named(head, kind):
    with pytest.raises(ImageError) as caught:
        decode_image(head + bytes(100), NATIVE)
    assert caught.value.error_type == f"unsupported_{kind}"


def test_each_format_has_one_decoder():
    assert set(DECODERS) == set(Format)


def test_extensions_cover_what_is_decoded_and_what_is_reported():
    assert {".jpg", ".jpeg", ".pjpeg", ".png", ".webp", ".avif", ".tif", ".heic", ".pam", ".svg"} <= IMAGE_EXTENSIONS
    assert all(extension == extension.lower() and extension.startswith(".") for extension in IMAGE_EXTENSIONS)
    assert {f".{name.rpartition('.')[2]}" for name in GOOD} <= IMAGE_EXTENSIONS


# Warnings and threads


def warn_as_pillow_does(data, limits):
    PIL.Image._decompression_bomb_check((10_000, 10_000))  # A DecompressionBombWarning, which names PIL.Image.
    return pillow.decode_bmp(data, limits)


def test_warnings_neither_fail_an_image_nor_reach_the_log(monkeypatch, capfd):
    # Warnings are errors in these tests, and other libraries put back the filters they found.
    data = GOOD["rgb.bmp"]()
    monkeypatch.setitem(DECODERS, Format.BMP, Decoder(warn_as_pillow_does, ()))
    for _ in range(3):
        with warnings.catch_warnings():
            pixels(data)
            warnings.simplefilter("error")
            assert pixels(data).shape == (24, 32, 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pixels(data)
        with pytest.raises(ImageError):
            pixels(GOOD["lzw.tiff"]()[:12])
    assert seen == []
    assert capfd.readouterr().err == ""


def test_many_threads_decode_the_same_pixels_as_one():
    files = [make() for make in GOOD.values()]
    expected = [pixels(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for index, result in enumerate(pool.map(pixels, files * 20)):
            np.testing.assert_array_equal(result, expected[index % len(files)])


# Robustness


@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_end_as_an_image_or_a_reason(name):
    data = GOOD[name]()
    rng = random.Random(name)
    options = ImageOptions(image_size=(8, 8), max_image_pixels=100_000)
    damaged = [data[: rng.randrange(len(data))] for _ in range(60)]
    for _ in range(150):
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 2, 8))):
            flipped[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(flipped))
    for candidate in damaged:
        start = time.monotonic()
        first = outcome(candidate, options)
        assert time.monotonic() - start < 10
        assert first == outcome(candidate, options)


def test_text_of_a_decoder_that_is_none_is_not_reported():
    """libpng's message may lie in memory that is gone: one file would fail with another reason every time."""
    told = {
        str(explain(b"", "PNG", UnicodeDecodeError("utf-8", bytes([byte]), 0, 1, "invalid"))) for byte in (0x80, 0xFF)
    }
    assert len(told) == 1


CORPUS = Path(__file__).parents[3] / ".cache" / "pillow"


@pytest.fixture(scope="module")
def corpus():
    """Pillow's own test images, name -> bytes, from its source distribution; downloaded once into .cache/."""
    archive = CORPUS / f"pillow-{PIL.__version__}.tar.gz"
    if not archive.exists():
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pillow"]
        result = subprocess.run(
            [*download, f"pillow=={PIL.__version__}", "-d", str(CORPUS)], capture_output=True, text=True, check=False
        )
        if result.returncode or not archive.exists():
            pytest.skip(f"PILLOW'S TEST IMAGES COULD NOT BE DOWNLOADED: {result.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(archive) as tar:
        prefix = f"pillow-{PIL.__version__}/Tests/images/"
        members = [member for member in tar if member.isfile() and member.name.startswith(prefix)]
        return {member.name.removeprefix(prefix): read_member(tar, member) for member in members}


def outcome_and_warnings(data):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        return outcome(data, ImageOptions((64, 64))), [str(warning.message) for warning in seen]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_file_of_pillows_corpus_ends_as_an_image_or_a_reason(corpus):
    results = {}
    # A process of its own, so that a crash is a failure that names the file.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=prepare_pillow) as pool:
        for name, data in corpus.items():
            try:
                results[name], warned = pool.submit(outcome_and_warnings, data).result(timeout=60)
            except (BrokenProcessPool, TimeoutError) as error:
                pytest.fail(f"{name}: {error!r}")
            assert warned == [], name
    images = {name for name, result in results.items() if result == (64, 64, 3)}
    reasons = {name: result[0] for name, result in results.items() if name not in images}
    assert len(results) > 1000
    assert len(images) > 700
    assert {
        "decompression_bomb.gif": "too_many_pixels",
        "decompression_bomb.ico": "too_many_pixels",
        "truncated_image.png": "truncated",
        "broken.png": "undecodable",
        "hopper.pfm": "unsupported_mode",
        "hopper.psd": "unsupported_psd",
        "eps/1.eps": "unsupported_eps",
        "bmp/README.txt": "not_an_image",
    }.items() <= reasons.items()
    assert {name for name in reasons if name.startswith("bmp/g/")} <= set()  # BMPs that are in order.


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_equal_pictures_of_pillows_corpus_decode_alike(corpus):
    def distance(one, other):
        first, second = (pixels(corpus[name]).astype(np.float64) for name in (one, other))
        assert first.shape == second.shape
        return np.abs(first - second).mean()

    # JPEGs of one photograph are 4 to 5 of 255 apart; turned the wrong way they are more than 40 apart.
    for turn in range(2, 9):
        assert distance(f"hopper_orientation_{turn}.jpg", "hopper.jpg") < 6
        assert distance(f"hopper_orientation_{turn}.webp", "hopper.jpg") < 6
        assert distance(f"g4_orientation_{turn}.tif", "g4_orientation_1.tif") < 1
    np.testing.assert_array_equal(pixels(corpus["truncated_jpeg.jpg"]), pixels(corpus["truncated_jpeg.jpg"] + b"\xd9"))
    assert distance("pil_sample_cmyk.jpg", "pil_sample_rgb.jpg") < 6
    # The target's colours were divided by their alpha and rounded to 8 bits; ours are laid on white from 16 bits.
    assert distance("tiff_16bit_RGBa.tiff", "tiff_16bit_RGBa_target.png") < 0.5
    assert distance("16bit.cropped.tif", "16bit.cropped.jp2") == 0


@pytest.mark.parametrize("data", ["x", "", 5, 0, None])
def test_what_are_no_bytes_is_no_image(data):
    with pytest.raises(TypeError, match=f"An encoded image is bytes. Received: {type(data).__name__}"):
        decode_image(data, ImageOptions())


def test_bytes_come_in_three_types():
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (9, 9), (7, 8, 9)).save(encoded, "PNG")
    for kind in (bytes, bytearray, memoryview):
        assert (decode_image(kind(encoded.getvalue()), ImageOptions((4, 4))).pixels == (7, 8, 9)).all()
    with pytest.raises(TypeError, match=r"ImageOptions\. Received: NoneType"):
        decode_image(encoded.getvalue(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"image_size": 5}, {"image_size": (5,)}, {"image_size": ("a", "b")}, {"interpolation": "x"}, {"min_size": 3}],
)
def test_options_of_another_type_are_refused(settings):
    with pytest.raises(ImagebeamError, match=f"{next(iter(settings))} is .*Received"):
        ImageOptions(**settings)
