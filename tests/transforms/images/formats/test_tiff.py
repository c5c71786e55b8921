"""TIFFs of kinds that are rare, against what tifffile wrote and what Pillow and Little CMS make of it."""

import io
import struct

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from tests.support.image_samples import encode, picture, tiff
from tests.support.pixels.case import by_tifffile
from tests.support.planned import all_of
from transforms.images.decode import ImageError, ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)


def pixels(data):
    return decode_image(data, NATIVE).pixels


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("size", [(24, 32), (400, 600)])
def test_bilevel_of_any_size(size, inverted):
    bits = picture(*size)[..., 0] > 128
    data = by_tifffile(bits, photometric="miniswhite" if inverted else "minisblack")
    np.testing.assert_array_equal(pixels(data)[..., 0], np.where(bits ^ inverted, 255, 0))


@pytest.mark.parametrize(("photometric", "offset"), [("cielab", 0), ("icclab", 128)])
def test_lab_colour(photometric, offset):
    lab = picture(24, 32)
    found = pixels(by_tifffile(lab ^ np.array([0, offset, offset], np.uint8), photometric=photometric))
    # Pillow takes a* and b* as CIE Lab has them in TIFF: two's complement.
    expected = PIL.Image.frombytes("LAB", (32, 24), lab.tobytes()).convert("RGB")
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_lab_of_16_bits_is_lab_of_8_bits():
    lab = picture(24, 32)
    deep = lab.astype(np.uint16) * np.array([257, 256, 256], np.uint16)
    np.testing.assert_array_equal(
        pixels(by_tifffile(deep, photometric="cielab")), pixels(by_tifffile(lab, photometric="cielab"))
    )


def test_white_and_black_of_lab():
    lab = np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)
    np.testing.assert_allclose(pixels(by_tifffile(lab, photometric="cielab")), [[[255] * 3, [0] * 3]], atol=1)


def _by_libtiff(values):
    """Its JPEG strips share their tables, which stand in a tag."""
    return encode(values, "TIFF", compression="jpeg", strip_size=16 * 3 * values.shape[1])


def _by_tifffile(values):
    return by_tifffile(values, compression="jpeg", photometric="ycbcr", rowsperstrip=16)


@pytest.mark.parametrize("write", [_by_libtiff, _by_tifffile])
def test_jpeg_strips_that_stop_early_are_refused_as_jpegs_are(write):
    """libjpeg makes up what they lack, and tifffile does not tell."""
    data = bytearray(write(picture(64, 32)))
    whole = pixels(bytes(data))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (page,) = all_of(tifffile.TiffPage, file.pages)
        start, size = page.dataoffsets[-1], page.databytecounts[-1]
    assert len(page.dataoffsets) > 1
    data[start + size - 60 : start + size] = bytes(60)
    with pytest.raises(ImageError, match="stops before the last row") as caught:
        pixels(bytes(data))
    assert caught.value.error_type == "truncated"
    found = decode_image(bytes(data), ImageOptions(None, accept_truncated=True)).pixels
    np.testing.assert_array_equal(found[:48], whole[:48])


def test_jpeg_of_the_old_style():
    jpeg = encode(picture(24, 32), "JPEG")
    entries = [
        (256, 4, 32),
        (257, 4, 24),
        (258, 3, 8),
        (259, 3, 6),
        (262, 3, 6),
        (273, 4, 8),
        (277, 3, 3),
        (278, 4, 24),
        (279, 4, len(jpeg)),
        (513, 4, 8),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e[:2], 1, e[2]) for e in entries)
    padded = jpeg + bytes(len(jpeg) % 2)
    data = struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + directory + bytes(4)
    np.testing.assert_array_equal(pixels(data), pixels(jpeg))


def test_webp_inside():
    rgb = picture(24, 32)
    np.testing.assert_array_equal(pixels(by_tifffile(rgb, photometric="rgb", compression="webp")), rgb)
    with pytest.raises(ImageError) as caught:
        decode_image(by_tifffile(rgb, photometric="rgb", compression="webp"), ImageOptions(max_image_pixels=700))
    assert caught.value.error_type == "too_many_pixels"


def test_strip_with_excess_byte_count_is_read():
    rgb = picture(24, 32)
    data = tiff(32, 24, rgb.tobytes(), bits=8, samples=3, photometric=2)
    size = struct.pack("<I", rgb.nbytes)
    longer = data.replace(struct.pack("<HHI", 279, 4, 1) + size, struct.pack("<HHII", 279, 4, 1, 10 * rgb.nbytes))
    assert longer != data
    np.testing.assert_array_equal(pixels(longer), rgb)


@pytest.mark.parametrize("compression", [1, 32773])
def test_predictor_of_a_compression_that_has_none_is_ignored(compression):
    """As libtiff does, with which Pillow and OpenCV read."""
    rgb = picture(24, 32)
    stored = rgb.tobytes()
    if compression == 32773:  # PackBits: 128 bytes as they are behind each count.
        stored = b"".join(b"\x7f" + stored[at : at + 128] for at in range(0, len(stored), 128))
    data = tiff(32, 24, stored, bits=8, samples=3, photometric=2, compression=compression, predictor=2)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), rgb)
    np.testing.assert_array_equal(pixels(data), rgb)


@pytest.mark.parametrize("number", [0, 3])
def test_unknown_planar_configuration_is_refused(number):
    data = tiff(32, 24, picture(24, 32).tobytes(), bits=8, samples=3, photometric=2, planar_configuration=number)
    with pytest.raises(ImageError, match=f"planar configuration {number}") as caught:
        pixels(data)
    assert caught.value.error_type == "undecodable"
    grey = picture(24, 32)[..., 0]
    of_one_plane = tiff(32, 24, grey.tobytes(), bits=8, planar_configuration=number)
    np.testing.assert_array_equal(pixels(of_one_plane)[..., 0], grey)


@pytest.mark.parametrize(
    ("kind", "count", "value", "turned"),
    [
        (1, 1, b"\6", True),
        (2, 2, b"6", False),
        (3, 2, b"\6\0\1\0", False),
        (5, 1, b"\x08", False),
        (11, 1, b"\0\0\xc0\x7f", False),
    ],
)
def test_orientation_of_another_type_costs_no_image(kind, count, value, turned):
    rgb = picture(24, 32)
    data = tiff(32, 24, rgb.tobytes(), bits=8, samples=3, photometric=2, orientation=6)
    entry = data.index(struct.pack("<HHII", 274, 4, 1, 6))
    odd = data[: entry + 2] + struct.pack("<HI", kind, count) + value.ljust(4, b"\0") + data[entry + 12 :]
    np.testing.assert_array_equal(pixels(odd), np.rot90(rgb, -1) if turned else rgb)


@pytest.mark.parametrize("alpha", [0, 255])
def test_fourth_channel_of_unknown_meaning(alpha):
    samples = np.dstack([picture(24, 32), np.full((24, 32), alpha, np.uint8)])
    samples[:12, :, 3] = 0
    found = pixels(tiff(32, 24, samples.tobytes(), bits=8, samples=4, photometric=2))
    np.testing.assert_array_equal(found[12:], samples[12:, :, :3])
    np.testing.assert_array_equal(found[:12], 255 if alpha else samples[:12, :, :3])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("uint32", "unsigned"), ("int16", "signed"), ("float32", "floating-point"), ("complex64", "complex")],
)
def test_samples_without_a_range_are_named(kind, name):
    data = by_tifffile(np.zeros((9, 9), kind), photometric="minisblack")
    with pytest.raises(ImageError, match=rf"^The TIFF has {name}( or mixed)? samples of \d+ bits") as caught:
        decode_image(data, NATIVE)
    assert caught.value.error_type == "unsupported_mode"


def test_samples_of_no_stated_kind_are_named():
    data = bytearray(by_tifffile(np.zeros((9, 9), np.int32), photometric="minisblack"))
    tag = data.index(struct.pack("<HHIH", 339, 3, 1, 2))
    data[tag + 8] = 4
    with pytest.raises(ImageError, match=r"^The TIFF has undefined samples of 32 bits"):
        decode_image(bytes(data), NATIVE)


def _stripped(strips, width, height, rows, compression, predictor):
    """A grey TIFF of compressed strips, by hand."""
    data = b"".join(strips)
    starts = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    values = {256: [width], 257: [height], 258: [8], 259: [compression], 262: [1], 273: starts, 277: [1], 278: [rows]}
    values |= {279: [len(strip) for strip in strips], 317: [predictor]}
    arrays_at, arrays, entries = 8 + len(data), b"", b""
    for tag, value in values.items():
        packed = struct.pack(f"<{len(value)}I", *value)
        if len(value) > 1:
            packed, arrays = struct.pack("<I", arrays_at + len(arrays)), arrays + packed
        entries += struct.pack("<HHI", tag, 4, len(value)) + packed
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", arrays_at + len(arrays)) + data + arrays + directory


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize(("name", "number"), [("zlib", 8), ("zlib", 32946), ("lzw", 5), ("packbits", 32773)])
def test_strips_may_hold_more_than_their_rows(name, number, predictor):
    """Many writers fill up the last strip; libtiff decodes what it needs."""
    values = picture(25, 30)[..., 0]
    whole = np.concatenate([values, np.zeros((5, 30), np.uint8)])
    stored = np.diff(whole, axis=1, prepend=np.uint8(0)) if predictor == 2 and number != 32773 else whole
    encode_strip = getattr(imagecodecs, f"{name}_encode")
    strips = [bytes(encode_strip(stored[top : top + 10].tobytes())) for top in (0, 10, 20)]
    data = _stripped(strips, 30, 25, 10, number, predictor)
    np.testing.assert_array_equal(pixels(data)[..., 0], values)
    if predictor == 1:
        strips[1] = bytes(encode_strip(stored[10:20].tobytes() + bytes(100)))
        np.testing.assert_array_equal(pixels(_stripped(strips, 30, 25, 10, number, 1))[..., 0], values)
    damaged = [*strips[:2], strips[2][: len(strips[2]) // 2]]
    with pytest.raises(ImageError):
        pixels(_stripped(damaged, 30, 25, 10, number, predictor))


def test_raw_data_of_canon_is_told():
    """Its first page is a preview; the pages behind it do not say that they are raw data."""
    data = tiff(4, 4, bytes(16), bits=8)
    with pytest.raises(ImageError) as caught:
        pixels(b"II*\0\x10\0\0\0CR\2\0" + data[12:])
    assert caught.value.error_type == "unsupported_raw"


def test_subsampling_that_is_not_said_is_two_by_two():
    data = tiff(4, 4, bytes(48), bits=8, samples=3, photometric=6)
    with pytest.raises(ImageError, match="subsampled") as caught:
        pixels(data)
    assert caught.value.error_type == "unsupported_layout"
