"""DICOM: pixels by tensorflow-io (DCMTK), the header by pydicom, in a process of their own (see `isolated`).

Given a whole file, tensorflow-io decodes all frames at once, takes what a file lacks for black, swaps 32-bit samples of
big-endian files wrongly and scales what it shows by rules of its own. So it is given a file made here, of one frame and
the elements that describe its pixels, with the header's rescaling, window and polarity left out: they are applied
afterwards (`transforms.images.formats.dicom_grey`). Nothing else of a header is looked at, nor kept.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import Any

import numpy as np
import PIL.Image

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.formats.codestream import Stream, read_stream
from transforms.images.formats.dicom_grey import show_grey

_WANTED = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "SmallestImagePixelValue"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
    *("FloatPixelData", "DoubleFloatPixelData"),
)

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_RLE = "1.2.840.10008.1.2.5"
_COMPRESSED = {
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG",
    "1.2.840.10008.1.2.4.57": "JPEG",
    "1.2.840.10008.1.2.4.70": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    _RLE: "RLE",
}
"""Transfer syntaxes whose frames tensorflow-io decodes; JPEG XL, HTJ2K and video are not among them."""


def decode(data: bytes, limits: Limits) -> Decoded:
    """One frame as a screen would show it.

    Grey: rescaled or looked up, through the file's first window or table, MONOCHROME1 inverted; where there is neither
    window nor table, 8-bit samples as they are and deeper ones from the frame's lowest to its highest. Colour: RGB,
    palettes expanded, scaled to 8 bits.

    Raises:
        ImageError: for a file without pixels, a damaged one, or one of a kind that is not decoded.
    """
    header = _read(data)
    _check(header)
    limits.check(header.Columns, header.Rows)
    frame = _choose_frame(header, limits)
    samples = _decode_frame(header, frame)
    if header.PhotometricInterpretation in _GREY:
        pixels = show_grey(samples, header, frame)
    elif header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = _through_palette(samples, header)
    else:
        pixels = scale_to_8_bits(samples, (1 << header.BitsStored) - 1)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return Decoded(PIL.Image.fromarray(np.ascontiguousarray(pixels)), header.Columns, header.Rows)


def _read(data: bytes) -> Any:
    """The wanted elements of a header, as a pydicom data set."""
    pydicom = importlib.import_module("pydicom")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(io.BytesIO(data), specific_tags=list(_WANTED))


def _check(header: Any) -> None:
    """Refuse what can't be decoded rightly, before anything is."""
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        raise _unsupported("pixels that are floats")
    missing = [name for name in ("PixelData", "Rows", "Columns", "BitsAllocated") if header.get(name) in (None, "")]
    if missing == ["PixelData"] or len(missing) == 4:
        raise _unsupported("no pixels: a report, a plan or a directory")
    if missing:
        raise ImageError("undecodable", f"The DICOM header lacks {', '.join(missing)}.")
    _make_integers(header)
    kind = header.get("PhotometricInterpretation")
    samples = 1 if kind in (*_GREY, "PALETTE COLOR") else 3
    if kind not in (*_GREY, "PALETTE COLOR", *_COLOURS):
        raise _unsupported("colours of a kind that is not decoded")
    if header.SamplesPerPixel != samples:
        raise ImageError("undecodable", f"The DICOM has {header.SamplesPerPixel} samples a pixel, and not {samples}.")
    if header.BitsAllocated not in (1, 8, 16, 32) or not 0 < header.BitsStored <= header.BitsAllocated:
        raise _unsupported(f"{header.BitsStored} bits of {header.BitsAllocated} in a sample")
    if header.HighBit != header.BitsStored - 1:
        raise _unsupported("samples that are not in the lowest bits")
    if header.PixelRepresentation not in (0, 1) or (header.PixelRepresentation and samples == 3):
        raise _unsupported("colours with a sign")


def _make_integers(header: Any) -> None:
    """What counts pixels and bits, with what the standard says where an element is missing."""
    allocated = int(header.BitsAllocated)
    defaults = {"SamplesPerPixel": 1, "PixelRepresentation": 0, "BitsStored": allocated}
    for name in ("Rows", "Columns", "BitsAllocated", *defaults):
        value = header.get(name)
        setattr(header, name, defaults[name] if value is None else int(value))
    header.HighBit = int(header.get("HighBit", header.BitsStored - 1))
    header.NumberOfFrames = int(header.get("NumberOfFrames") or 1)


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported_dicom", f"The DICOM file holds {what}.")


def _choose_frame(header: Any, limits: Limits) -> int:
    """The frame that counts, from 0."""
    count = header.NumberOfFrames
    if count < 1:
        raise ImageError("undecodable", f"The DICOM has {count} frames by its header.")
    wanted = count // 2 if limits.dicom_frame == "middle" else int(limits.dicom_frame) - 1
    if wanted >= count:
        raise ImageError("no_such_frame", f"The DICOM has {count} frames; frame {limits.dicom_frame} was asked for.")
    return wanted


def _decode_frame(header: Any, frame: int) -> np.ndarray:
    """Samples as stored: integers [height, width] or [height, width, 3], colours as RGB."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        if syntax not in _COMPRESSED:
            raise _unsupported("a compression that is not decoded")
        stored = _compressed_frame(header, frame)
        _check_stream(header, syntax, stored)
    else:
        stored = _plain_frame(header, frame, is_big_endian=not syntax.is_little_endian)
        syntax = importlib.import_module("pydicom.uid").ExplicitVRLittleEndian
    return _decode_by_tensorflow_io(_one_frame_file(header, syntax, stored), header)


def _compressed_frame(header: Any, frame: int) -> bytes:
    encaps = importlib.import_module("pydicom.encaps")
    offsets = None
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    return bytes(
        encaps.get_frame(header.PixelData, frame, number_of_frames=header.NumberOfFrames, extended_offsets=offsets)
    )


def _plain_frame(header: Any, frame: int, *, is_big_endian: bool) -> bytes:
    """One frame of uncompressed pixels, little-endian; of single bits, one byte each."""
    count = header.Rows * header.Columns * header.SamplesPerPixel
    if header.PhotometricInterpretation == "YBR_FULL_422":
        count = count // 3 * 2
    bits = count * header.BitsAllocated
    data: bytes = header.PixelData
    if len(data) * 8 < bits * header.NumberOfFrames:
        raise ImageError("truncated", "The DICOM's pixels are fewer than its header says.")
    if header.BitsAllocated == 1:
        first = frame * bits
        chosen = np.frombuffer(data, np.uint8, (first + bits + 7) // 8 - first // 8, first // 8)
        return np.unpackbits(chosen, bitorder="little")[first % 8 : first % 8 + bits].tobytes()
    if is_big_endian:
        is_words = header.BitsAllocated == 8 and header["PixelData"].VR == "OW"  # Two samples in each.
        width = 2 if is_words else header.BitsAllocated // 8
        data = np.frombuffer(data, f">u{width}", len(data) // width).astype(f"<u{width}").tobytes()
    return data[frame * bits // 8 : (frame + 1) * bits // 8]


def _check_stream(header: Any, syntax: str, stored: bytes) -> None:
    """Refuse a frame that is of another size than the header says: decoders allocate what the frame says.

    Raises:
        ImageError: ``undecodable``, or ``truncated`` for one that does not end as it should.
    """
    if syntax == _RLE:
        return  # The decoder writes into what the header asks for, and knows what is missing.
    stream = read_stream(stored)
    wanted = Stream(header.Columns, header.Rows, header.SamplesPerPixel, stream.bits)
    if stream != wanted or stream.bits > header.BitsAllocated:
        raise ImageError(
            "undecodable",
            f"The DICOM header says {wanted.width} x {wanted.height} x {wanted.components}, its frame "
            f"{stream.width} x {stream.height} x {stream.components} of {stream.bits} bits.",
        )


def _one_frame_file(header: Any, syntax: str, stored: bytes) -> bytes:
    """A DICOM file of one frame, whose samples DCMTK gives as they are."""
    pydicom = importlib.import_module("pydicom")
    single = pydicom.Dataset()
    single.SamplesPerPixel = header.SamplesPerPixel
    single.PhotometricInterpretation = _kind_for_dcmtk(header, syntax)
    if header.SamplesPerPixel == 3:
        single.PlanarConfiguration = header.get("PlanarConfiguration") or 0
    single.Rows, single.Columns = header.Rows, header.Columns
    is_bits = header.BitsAllocated == 1
    single.BitsAllocated = 8 if is_bits else header.BitsAllocated
    single.BitsStored, single.HighBit = header.BitsStored, header.BitsStored - 1
    single.PixelRepresentation = header.PixelRepresentation
    is_compressed = syntax in _COMPRESSED
    padded = stored + b"\0" * (len(stored) % 2)
    value = pydicom.encaps.encapsulate([padded]) if is_compressed else padded
    kind = "OB" if is_compressed or single.BitsAllocated == 8 else "OW"
    single.add_new("PixelData", kind, value)
    single["PixelData"].is_undefined_length = is_compressed
    meta = single.file_meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, single, enforce_file_format=True)
    return stream.getvalue()


def _kind_for_dcmtk(header: Any, syntax: str) -> str:
    kind: str = header.PhotometricInterpretation
    if kind in (*_GREY, "PALETTE COLOR"):
        return "MONOCHROME2"
    if syntax in _JPEG_2000 and kind in ("YBR_ICT", "YBR_RCT"):
        return "RGB"  # The codec turns these into RGB by itself.
    return kind


def _decode_by_tensorflow_io(file: bytes, header: Any) -> np.ndarray:
    tensorflow_io, tensorflow = (importlib.import_module(name) for name in ("tensorflow_io", "tensorflow"))
    frames = tensorflow_io.image.decode_dicom_image(file, on_error="skip", scale="preserve", dtype=tensorflow.uint32)
    found = np.asarray(frames.numpy())
    if found.shape != (1, header.Rows, header.Columns, header.SamplesPerPixel):
        raise ImageError("undecodable", "The DICOM's pixels are damaged or cut short.")
    if header.SamplesPerPixel == 3:
        return np.asarray(found[0])
    if header.PixelRepresentation == 0:
        return np.asarray(found[0, ..., 0])
    return np.asarray(found[0, ..., 0].astype(np.int64) - (1 << (header.BitsStored - 1)))  # DCMTK has the lowest as 0.


def _through_palette(samples: np.ndarray, header: Any) -> np.ndarray:
    """Palette indices -> uint8 [height, width, 3]."""
    processing = importlib.import_module("pydicom.pixels.processing")
    colours = processing.apply_color_lut(samples, header)[..., :3]
    return scale_to_8_bits(colours, 255 if colours.dtype == np.uint8 else 65_535)
