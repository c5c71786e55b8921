"""DICOM by tensorflow-io, against pydicom's own pixels; files by pydicom's, GDCM's and DCMTK's authors."""

import io

import numpy as np
import pytest

from tests.support import dicom
from tests.support.dicom import pydicom
from transforms.images.decode import ImageError, ImageOptions, decode_image

NATIVE = ImageOptions(image_size=None)

RAMP = np.arange(4096, dtype=np.int16).reshape(64, 64) - 1024
"""Hounsfield units, as a CT has them."""


def pixels(data, **options):
    return decode_image(data, ImageOptions(image_size=None, **options)).pixels


def assert_as_pydicom(data, frame=0, tolerance=0, **options):
    found, expected = pixels(data, **options), dicom.shown(data, frame)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("name", dicom.SHOWN)
def test_real_files_equal_pydicom(name):
    # Chroma of 4:2:2 without compression is doubled by both, and one of them rounds twice.
    assert_as_pydicom(dicom.find(name), tolerance=1 if name == "SC_ybr_full_422_uncompressed" else 0)


def test_every_file_of_pydicoms_wheel_is_tested():
    named = {*dicom.SHOWN, *dicom.NOT_SHOWN}
    for path in dicom.FOLDER.rglob("*.dcm"):
        if path.stem not in named:
            with pytest.raises(ImageError):
                decode_image(path.read_bytes(), NATIVE)


@pytest.mark.parametrize(("name", "error_type"), dicom.NOT_SHOWN.items())
def test_file_without_pixels_is_a_failure(name, error_type):
    with pytest.raises(ImageError) as caught:
        decode_image(dicom.find(name), NATIVE)
    assert caught.value.error_type == error_type


@pytest.mark.parametrize("name", ["JPEG2000", "MR_small_RLE", "SC_rgb_jpeg_gdcm", "JPGExtended", "MR_small"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_cut_file_is_a_failure(name, share):
    data = dicom.find(name)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * share)], NATIVE)
    assert caught.value.error_type in ("truncated", "undecodable", "unsupported_dicom")


class TestGrey:
    @pytest.mark.parametrize("kind", dicom.GREY)
    @pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
    @pytest.mark.parametrize("window", [(40, 400), (-600, 1500), (40.5, 80), (0, 1)])
    def test_rescaling_and_window(self, kind, function, window):
        elements = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": window[0], "WindowWidth": window[1]}
        data = dicom.write(RAMP, 16, PhotometricInterpretation=kind, VOILUTFunction=function, **elements)
        # pydicom's result went through another range, so that halves may round the other way.
        assert_as_pydicom(data, tolerance=1 if function == "LINEAR_EXACT" else 0)

    def test_the_first_of_several_windows_counts(self):
        data = dicom.write(RAMP, 16, WindowCenter=[40, 500], WindowWidth=[400, 2000])
        np.testing.assert_array_equal(pixels(data), pixels(dicom.write(RAMP, 16, WindowCenter=40, WindowWidth=400)))

    def test_a_fractional_slope(self):
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        assert_as_pydicom(dicom.write(values, 12, RescaleSlope=0.25, RescaleIntercept=7.5))

    @pytest.mark.parametrize("bits", [1, 4, 7, 8])
    def test_few_bits_without_window_are_unchanged(self, bits):
        values = (np.arange(256, dtype=np.uint8) % 2**bits).reshape(16, 16)
        assert_as_pydicom(dicom.write(values, bits))

    def test_monochrome1_without_window_is_inverted(self):
        values = np.arange(256, dtype=np.uint8).reshape(16, 16)
        found = pixels(dicom.write(values, PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(found[..., 0], 255 - values)

    def test_deep_samples_without_window_go_from_lowest_to_highest(self):
        found = pixels(dicom.write(RAMP, 16))[..., 0]
        np.testing.assert_array_equal(found, np.rint((RAMP + 1024) / 4095 * 255))

    def test_padding_does_not_count_for_the_range(self):
        values = RAMP.copy()
        values[:8] = -32768
        found = pixels(dicom.write(values, 16, PixelPaddingValue=-32768))[..., 0]
        low = values[8:].min()
        assert (found[:8] == 0).all()
        np.testing.assert_array_equal(found[8:], np.rint((values[8:].astype(int) - low) / (3071 - low) * 255))

    def test_a_flat_image_is_black(self):
        assert not pixels(dicom.write(np.full((8, 8), 300, np.int16), 16)).any()

    def test_tables_of_modality_and_window(self):
        values = np.arange(256, dtype=np.uint8).reshape(16, 16)
        modality, window = pydicom.Dataset(), pydicom.Dataset()
        modality.LUTDescriptor, modality.ModalityLUTType = [256, 0, 16], "US"
        modality.add_new("LUTData", "OW", (np.arange(256) ** 2 // 64).astype("<u2").tobytes())
        window.LUTDescriptor = [1024, 0, 8]
        window.add_new("LUTData", "OW", (np.arange(1024) // 4).astype("<u2").tobytes())
        assert_as_pydicom(dicom.write(values, ModalityLUTSequence=[modality]))
        assert_as_pydicom(dicom.write(values, VOILUTSequence=[window]))

    def test_functional_groups_of_each_frame(self):
        values = np.stack([RAMP, RAMP])
        frames = []
        for slope, center in ((1, 0), (3, 900)):
            frame, rescale, window = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = slope, -5
            window.WindowCenter, window.WindowWidth = center, 1000
            frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [rescale], [window]
            frames.append(frame)
        data = dicom.write(values, 16, PerFrameFunctionalGroupsSequence=frames)
        for number, (slope, center) in enumerate(((1, 0), (3, 900)), start=1):
            plain = {"RescaleSlope": slope, "RescaleIntercept": -5, "WindowCenter": center, "WindowWidth": 1000}
            np.testing.assert_array_equal(pixels(data, dicom_frame=number), pixels(dicom.write(RAMP, 16, **plain)))


class TestFrames:
    @pytest.mark.parametrize("name", ["examples_ybr_color", "SC_rgb_rle_2frame", "rtdose", "rtdose_rle", "rtdose_expb"])
    def test_chosen_frame_is_decoded(self, name):
        data = dicom.find(name)
        count = int(pydicom.dcmread(io.BytesIO(data)).NumberOfFrames)
        for frame in {1, 2, count}:
            assert_as_pydicom(data, frame - 1, dicom_frame=frame)
        assert_as_pydicom(data, count // 2, dicom_frame="middle")

    def test_frames_of_single_bits_share_bytes(self):
        source = np.random.default_rng(0)
        values = source.integers(0, 2, (3, 5, 7), dtype=np.uint8)
        data = dicom.write(np.zeros((3, 5, 7), np.uint8))
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        dataset.PixelData = np.packbits(values.ravel(), bitorder="little").tobytes()
        stream = io.BytesIO()
        dataset.save_as(stream)
        for frame in (1, 2, 3):
            found = pixels(stream.getvalue(), dicom_frame=frame)[..., 0]
            np.testing.assert_array_equal(found, values[frame - 1] * 255)

    def test_missing_frame_is_a_failure(self):
        with pytest.raises(ImageError) as caught:
            pixels(dicom.find("SC_rgb_rle_2frame"), dicom_frame=3)
        assert caught.value.error_type == "no_such_frame"


class TestRefused:
    def test_too_many_pixels_by_the_header(self):
        with pytest.raises(ImageError) as caught:
            pixels(dicom.find("CT_small"), max_image_pixels=128 * 128 - 1)
        assert caught.value.error_type == "too_many_pixels"

    def test_a_frame_of_another_size_than_the_header_says(self):
        dataset = pydicom.dcmread(io.BytesIO(dicom.find("JPEG2000")))
        dataset.Rows = 512
        stream = io.BytesIO()
        dataset.save_as(stream)
        with pytest.raises(ImageError) as caught:
            pixels(stream.getvalue())
        assert caught.value.error_type == "undecodable"

    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.92"])
    def test_a_compression_that_is_not_decoded(self, syntax):
        """HTJ2K, video, and JPEG 2000 of several components."""
        dataset = pydicom.dcmread(io.BytesIO(dicom.find("JPEG2000")))
        dataset.file_meta.TransferSyntaxUID = syntax
        stream = io.BytesIO()
        dataset.save_as(stream)
        with pytest.raises(ImageError) as caught:
            pixels(stream.getvalue())
        assert caught.value.error_type == "unsupported_dicom"

    def test_pixels_that_are_floats(self):
        dataset = pydicom.dcmread(io.BytesIO(dicom.write(np.zeros((4, 4), np.uint8))))
        del dataset.PixelData
        dataset.FloatPixelData = np.zeros((4, 4), np.float32).tobytes()
        stream = io.BytesIO()
        dataset.save_as(stream)
        with pytest.raises(ImageError) as caught:
            pixels(stream.getvalue())
        assert caught.value.error_type == "unsupported_dicom"


def test_file_that_also_begins_as_tiff_is_dicom():
    """The 128 bytes before DICM may hold anything; many writers put a TIFF header there."""
    data = dicom.find("MR_small")
    assert data.startswith(b"II*\0")
    assert_as_pydicom(data)
    other = b"\xff\xd8\xff\xe0".ljust(128, b"\0") + data[128:]
    np.testing.assert_array_equal(pixels(other), pixels(data))
