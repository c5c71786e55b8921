"""DICOM files: those that pydicom's wheel carries, and what pydicom and imagecodecs see in them."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tensorflow_io import REASON

pydicom = pytest.importorskip("pydicom", reason=REASON)  # The module that imports this one is skipped.
processing = pytest.importorskip("pydicom.pixels.processing", reason=REASON)

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"

GREY = ("MONOCHROME1", "MONOCHROME2")

SHOWN = (
    *("693_J2KI", "CT_small", "ExplVR_BigEnd", "GDCMJ2K_TextGBR", "J2K_pixelrep_mismatch", "JPEG-lossy", "JPEG2000"),
    *("JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "JPGExtended", "MR_small", "MR_small_RLE"),
    *("MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_jp2klossless"),
    *("MR_small_jpeg_ls_lossless", "MR_small_padded", "SC_jpeg_no_color_transform", "SC_jpeg_no_color_transform_2"),
    *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+n2", "SC_rgb_dcmtk_+eb+cy+np"),
    *("SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_gdcm_KY", "SC_rgb_jls_lossy_line"),
    *("SC_rgb_jls_lossy_sample", "SC_rgb_jpeg", "SC_rgb_jpeg_app14_dcmd", "SC_rgb_jpeg_dcmd", "SC_rgb_jpeg_dcmtk"),
    *("SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle", "SC_rgb_rle_16bit", "SC_rgb_rle_16bit_2frame"),
    *("SC_rgb_rle_2frame", "SC_rgb_rle_32bit", "SC_rgb_rle_32bit_2frame", "SC_rgb_small_odd"),
    *("SC_rgb_small_odd_big_endian", "SC_rgb_small_odd_jpeg", "SC_ybr_full_422_uncompressed", "examples_jpeg2k"),
    *("examples_overlay", "examples_palette", "examples_rgb_color", "examples_ybr_color", "image_dfl", "liver_1frame"),
    *("liver_expb_1frame", "rtdose", "rtdose_1frame", "rtdose_expb", "rtdose_expb_1frame", "rtdose_rle"),
    "rtdose_rle_1frame",
)
"""Every file of the wheel that shows a picture."""

NOT_SHOWN = {
    "JPEG2000-embedded-sequence-delimiter": "undecodable",
    "MR_truncated": "truncated",
    "badVR": "undecodable",
    "UN_sequence": "unsupported_dicom",
    "DICOMDIR-empty": "unsupported_dicom",
    "nested_priv_SQ": "undecodable",
    "reportsi": "unsupported_dicom",
    "rtplan": "unsupported_dicom",
    "test-SR": "unsupported_dicom",
    "waveform_ecg": "unsupported_dicom",
    "no_meta": "not_an_image",
    "rtstruct": "not_an_image",
}
"""Files without a picture, damaged ones, and ones that don't begin as DICOM files do; and what is said of them."""


def find(name: str) -> bytes:
    """One of pydicom's files."""
    (path,) = FOLDER.rglob(f"{name}.dcm")
    return path.read_bytes()


def samples(dataset: Any, frame: int = 0) -> np.ndarray:
    """A frame as stored, colours as RGB: pydicom's, or imagecodecs' where pydicom needs a plugin."""
    try:
        return np.asarray(pydicom.pixels.pixel_array(dataset, index=frame))
    except RuntimeError:
        import imagecodecs

        count = int(dataset.get("NumberOfFrames", 1))
        stored = pydicom.encaps.get_frame(dataset.PixelData, frame, number_of_frames=count)
        match dataset.file_meta.TransferSyntaxUID.split(".")[-1]:
            case "51":
                return np.asarray(imagecodecs.jpeg_decode(stored, bitspersample=12))
            case "70":
                return np.asarray(imagecodecs.ljpeg_decode(stored))
            case "80" | "81":
                return imagecodecs.jpegls_decode(stored)
            case "90" | "91":
                return imagecodecs.jpeg2k_decode(stored)
        raise


def shown(data: bytes, frame: int = 0) -> np.ndarray:
    """What a screen shows of a file, by pydicom: uint8 [height, width, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data))
        pixels = samples(dataset, frame)
        kind = dataset.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            colours = processing.apply_color_lut(pixels, dataset)[..., :3]
            return np.asarray(np.rint(colours / np.iinfo(colours.dtype).max * 255), np.uint8)
        if kind not in GREY:
            return np.asarray(np.rint(pixels / (2.0**dataset.BitsStored - 1) * 255), np.uint8)
        light = grey(dataset, pixels)
    light = 1 - light if kind == "MONOCHROME1" else light
    return np.repeat(np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def grey(dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """Grey samples through modality and window, from 0 to 1."""
    values = processing.apply_modality_lut(pixels, dataset)
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return np.asarray(processing.apply_voi_lut(values, dataset) / (2.0**bits - 1))
    if "WindowWidth" in dataset:
        low, high = 0.0, 2.0**dataset.BitsStored - 1
        if dataset.PixelRepresentation:
            low, high = -(2.0 ** (dataset.BitsStored - 1)), 2.0 ** (dataset.BitsStored - 1) - 1
        if "ModalityLUTSequence" in dataset:
            low, high = 0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        elif "RescaleSlope" in dataset:
            low, high = (float(dataset.RescaleSlope) * end + float(dataset.RescaleIntercept) for end in (low, high))
        return np.asarray((processing.apply_voi_lut(values, dataset) - low) / (high - low))
    is_rescaled = "RescaleSlope" in dataset or "ModalityLUTSequence" in dataset
    if dataset.BitsStored <= 8 and not dataset.PixelRepresentation and not is_rescaled:
        return np.asarray(pixels / (2.0**dataset.BitsStored - 1))
    values = values.astype(np.float64)
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def write(pixels: np.ndarray, bits: int | None = None, **elements: Any) -> bytes:
    """A DICOM file of uint8, uint16 or int16 pixels, [height, width] or [frames, height, width], and more elements.

    Args:
        pixels: as they are stored.
        bits: that count; by default all.
        **elements: by their keywords; `private` is the value of a private element.
    """
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if private := elements.pop("private", None):
        dataset.private_block(0x0011, private, create=True).add_new(0x01, "LO", private)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not in order, which are some tests' purpose
        for name, value in elements.items():
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
