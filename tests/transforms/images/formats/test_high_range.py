"""OpenEXR and Radiance HDR by tensorflow-io, against OpenCV's and the formats' own arithmetic."""

import numpy as np
import pytest

from tests.support.high_range import by_opencv, cv2, exr, from_rgbe, hdr, light, on_screen, read_by_opencv, rgbe
from tests.support.tensorflow_io import needs_tensorflow_io
from transforms.images.decode import ImageError, ImageOptions, decode_image

pytestmark = needs_tensorflow_io()

NATIVE = ImageOptions(image_size=None)
COMPRESSIONS = ("NO", "RLE", "ZIPS", "ZIP", "PIZ", "B44", "B44A")


def pixels(data, **options):
    return decode_image(data, ImageOptions(image_size=None, **options)).pixels


def error_type(data, **options):
    with pytest.raises(ImageError) as caught:
        pixels(data, **options)
    return caught.value.error_type


def assert_close(found, expected, tolerance=0):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


class TestExr:
    @pytest.mark.parametrize("compression", COMPRESSIONS)
    @pytest.mark.parametrize("kind", ["HALF", "FLOAT"])
    def test_pixels_equal_what_opencv_wrote(self, tmp_path, compression, kind):
        linear = light()
        options = [cv2.IMWRITE_EXR_COMPRESSION, getattr(cv2, f"IMWRITE_EXR_COMPRESSION_{compression}")]
        options += [cv2.IMWRITE_EXR_TYPE, getattr(cv2, f"IMWRITE_EXR_TYPE_{kind}")]
        data = by_opencv(tmp_path, ".exr", linear, *options)
        assert_close(pixels(data), on_screen(read_by_opencv(tmp_path, ".exr", data)))
        if not compression.startswith("B44"):  # which loses something
            stored = linear.astype(np.float16) if kind == "HALF" else linear
            assert_close(pixels(data), on_screen(stored))

    def test_srgb_values_are_restored(self):
        values = np.arange(256, dtype=np.uint8).reshape(16, 16)
        share = values / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4).astype(np.float32)
        np.testing.assert_array_equal(pixels(exr({"Y": linear}))[..., 0], values)

    def test_grey_image(self):
        linear = light()[..., 0]
        assert_close(pixels(exr({"Y": linear})), np.repeat(on_screen(linear)[..., None], 3, axis=2))

    def test_alpha_over_white(self):
        linear, alpha = light() * 0.5, np.zeros((48, 64), np.float32)
        alpha[:, 32:] = 0.25
        premultiplied = linear * alpha[..., None]
        data = exr({**dict(zip("RGB", premultiplied.transpose(2, 0, 1), strict=True)), "A": alpha})
        assert_close(pixels(data), on_screen(premultiplied + 1 - alpha[..., None]))

    def test_the_display_window_is_shown(self):
        linear = light(8, 10)
        data = exr(dict(zip("RGB", linear.transpose(2, 0, 1), strict=True)), origin=(-2, 3), display=(0, 0, 11, 9))
        expected = np.full((10, 12, 3), 255, np.uint8)
        expected[3:10, 0:8] = on_screen(linear)[:7, 2:]
        image = decode_image(data, NATIVE)
        assert_close(image.pixels, expected)
        assert (image.width, image.height) == (12, 10)

    def test_nan_and_infinity(self):
        linear = np.array([[np.nan, np.inf, -np.inf, -1, 2, 1]], np.float32)
        assert pixels(exr({"Y": linear}))[0, :, 0].tolist() == [0, 255, 0, 0, 255, 255]

    def test_unfinished_file_is_truncated(self, tmp_path):
        """OpenCV's wheel leaves such files behind when it is asked for a compression that it has not."""
        options = (cv2.IMWRITE_EXR_COMPRESSION, cv2.IMWRITE_EXR_COMPRESSION_DWAA)
        assert error_type(by_opencv(tmp_path, ".exr", light(), *options)) == "truncated"

    @pytest.mark.parametrize(
        "data",
        [
            exr({"Y": np.zeros((4, 4), np.float32)}, sampling=2),
            exr({name: np.zeros((4, 4), np.float32) for name in ("Y", "RY", "BY")}),
            exr({"depth": np.zeros((4, 4), np.float32)}),
            exr({"Y": np.zeros((4, 4), np.float32)}, flags=0x800),
            exr({"Y": np.zeros((4, 4), np.float32)}, type=("string", b"deepscanline")),
        ],
        ids=["subsampled", "chroma", "no-colours", "deep", "deep-part"],
    )
    def test_unsupported_feature_is_named(self, data):
        assert error_type(data) == "unsupported_exr"

    def test_too_many_pixels_by_the_header(self):
        data = exr({"Y": np.zeros((4, 4), np.float32)}, display=(0, 0, 999, 999))
        assert error_type(data, max_image_pixels=999_999) == "too_many_pixels"
        data = exr({"Y": np.zeros((4, 4), np.float32)}, display=(0, 0, 0, 0))
        assert error_type(data, max_image_pixels=15) == "too_many_pixels"

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.98])
    def test_cut_file_is_truncated(self, tmp_path, compression, share):
        options = (cv2.IMWRITE_EXR_COMPRESSION, getattr(cv2, f"IMWRITE_EXR_COMPRESSION_{compression}"))
        data = by_opencv(tmp_path, ".exr", light(), *options)
        assert error_type(data[: int(len(data) * share)]) == "truncated"


class TestHdr:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
    def test_pixels_equal_what_opencv_wrote(self, tmp_path, scale):
        data = by_opencv(tmp_path, ".hdr", light() * np.float32(scale))
        assert_close(pixels(data), on_screen(read_by_opencv(tmp_path, ".hdr", data)))

    @pytest.mark.parametrize("width", [1, 7, 8, 64])
    def test_pixels_without_runs(self, width):
        stored = rgbe(light(5, width))
        image = decode_image(hdr(stored, f"-Y 5 +X {width}"), NATIVE)
        assert_close(image.pixels, on_screen(from_rgbe(stored)))
        assert (image.width, image.height) == (width, 5)

    @pytest.mark.parametrize(
        ("resolution", "stored"),
        [
            ("-Y 5 +X 7", lambda upright: upright),
            ("+Y 5 +X 7", lambda upright: upright[::-1]),
            ("-Y 5 -X 7", lambda upright: upright[:, ::-1]),
            ("+Y 5 -X 7", lambda upright: upright[::-1, ::-1]),
            ("+X 7 -Y 5", lambda upright: upright.transpose(1, 0, 2)),
            ("+X 7 +Y 5", lambda upright: upright[::-1].transpose(1, 0, 2)),
            ("-X 7 -Y 5", lambda upright: upright[:, ::-1].transpose(1, 0, 2)),
            ("-X 7 +Y 5", lambda upright: upright[::-1, ::-1].transpose(1, 0, 2)),
        ],
    )
    def test_every_order_of_scanlines_is_upright(self, resolution, stored):
        """+X is to the right and +Y is up, says Radiance's filefmts."""
        upright = rgbe(light(5, 7))
        image = decode_image(hdr(np.ascontiguousarray(stored(upright)), resolution), NATIVE)
        assert_close(image.pixels, on_screen(from_rgbe(upright)))
        assert (image.width, image.height) == (7, 5)

    def test_exposure_is_ignored(self):
        stored = rgbe(light(5, 7))
        header = "#?RGBE\n# made by hand\nEXPOSURE=4.0\nFORMAT=32-bit_rle_rgbe\nSOFTWARE=a\n"
        assert_close(pixels(hdr(stored, "-Y 5 +X 7", header)), on_screen(from_rgbe(stored)))

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_cut_file_is_truncated(self, tmp_path, share):
        for data in (by_opencv(tmp_path, ".hdr", light()), hdr(rgbe(light()), "-Y 48 +X 64")):
            head = data.index(b"\n", data.index(b"\n\n") + 2) + 1
            assert error_type(data[: head + int((len(data) - head) * share)]) == "truncated"

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (hdr(rgbe(light(4, 4)), "-Y 4 +X 4", "#?RADIANCE\nFORMAT=32-bit_rle_xyze\n"), "unsupported_hdr"),
            (hdr(rgbe(light(4, 4)), "-Y 4 +X 4", "#?RADIANCE\n"), "unsupported_hdr"),
            (hdr(rgbe(light(4, 4)), "-Y 4 +Y 4"), "undecodable"),
            (hdr(rgbe(light(4, 4)), "4 x 4"), "undecodable"),
            (hdr(rgbe(light(4, 4)), "-Y 0 +X 4"), "undecodable"),
            (hdr(np.array([[[9, 9, 9, 129], [1, 1, 1, 15]]], np.uint8), "-Y 1 +X 16"), "unsupported_hdr"),
            (hdr(np.full((4, 4), 2, np.uint8)[None], "-Y 1 +X 1000000"), "truncated"),
        ],
        ids=["xyz", "no-format", "one-axis", "no-size", "no-rows", "old-runs", "wide"],
    )
    def test_unsupported_feature_is_named(self, data, expected):
        assert error_type(data) == expected

    def test_too_many_pixels_by_the_header(self):
        assert error_type(hdr(rgbe(light(4, 4)), "-Y 100000 +X 100000")) == "too_many_pixels"
