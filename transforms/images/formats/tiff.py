"""TIFF: tifffile reads the stored samples, this module interprets them.

Pillow reads TIFF too, but calls sound kinds damaged (grey of 14 bits, two channels, Lab), reads planes of 16 bits as if
they were bytes, and lets libtiff write to the error stream.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import imagecodecs  # tifffile would import it when it must, which the first image should not pay for
import numpy as np
import PIL.Image
from tifffile import TIFF, TiffFile, TiffPage

from transforms.images.base import Decoded, Limits
from transforms.images.errors import ImageError
from transforms.images.formats import jpeg, jpeg2000
from transforms.images.formats.pillow import read_webp_size
from transforms.images.formats.tiff_colour import BLACK_IS_ZERO, CMYK, COLOURS, JPEG, YCBCR, to_rgb
from transforms.images.orientation import turn_upright

_NAMES = {4: "a mask", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
_RAW = {32803, 34892}
_CANON = b"CR"
"""What stands behind the header of CR2, whose pages do not say that they are raw data."""
_UNSIGNED, _NOT_SAID = 1, 4
_SAMPLE_KINDS = {_UNSIGNED: "unsigned", 2: "signed", 3: "floating-point", _NOT_SAID: "undefined"}
_NONE, _OLD_JPEG, _WEBP = 1, 6, 50001
_JPEG_2000 = {33003, 33004, 33005, 34712}
_PACKED = {_NONE, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
"""None, CCITT, LZW, deflate, PackBits, LZMA, Zstandard: these decode to no more than is asked for."""
_FAX = {2, 3, 4}
_PREDICTED = {5, 8, 32946, 34925, 50000}
"""LZW, deflate, LZMA, Zstandard: libtiff predicts samples with these alone, whatever a tag says of the others."""
_OF_EXACT_LENGTH = {8, 32773, 32946, 50000}
"""Deflate, PackBits, Zstandard: imagecodecs refuses what decodes to more than is asked for."""
_CONTIGUOUS, _PLANES = 1, 2
_ORIENTATION, _OLD_JPEG_START, _ICC_PROFILE, _DNG_VERSION, _SUB_FILES, _INK_SET = 274, 513, 34675, 50706, 330, 332
_LOW_BITS_FIRST = 2
_MAX_PAGES = 64
_MOST_MORE = 1 << 16
"""Bytes that a strip or tile may hold behind its pixels."""


def decode(data: bytes, limits: Limits) -> Decoded:
    """The first page that is not a smaller copy of another."""
    if data[8:10] == _CANON:
        raise _raw()
    with TiffFile(io.BytesIO(data), _multifile=False) as file:
        page = _choose_page(file)
        _check_supported(page)
        width, height = page.imagewidth, page.imagelength
        limits.check(width, height)
        if page.compression == _OLD_JPEG:
            image = _decode_old_jpeg(page, data, limits)
        else:
            _check_allocation(page, limits)
            _check_complete(page, data)
            if page.compression not in _PACKED:
                _check_embedded(page, data, limits)
            if page.compression not in _PREDICTED:
                page.predictor = 1
            image = to_rgb(page, _one_plane(_read_samples(page, data)))
        orientation = _orientation(page)
        icc_profile = _ICC_PROFILE in page.tags
    return Decoded(turn_upright(image, orientation), width, height, icc_profile)


def _orientation(page: TiffPage) -> int:
    """1 to 8 by the standard; 1 where the tag holds anything but one whole number, as libtiff has it."""
    value = page.tags.valueof(_ORIENTATION)
    if isinstance(value, bytes):  # Of the type BYTE.
        value = int.from_bytes(value, "big")
    return value if isinstance(value, int) else 1


def _raw() -> ImageError:
    return ImageError("unsupported_raw", "The file is a camera's raw data; convert it to JPEG or PNG.")


def _choose_page(file: TiffFile) -> TiffPage:
    """Raises `ImageError` for camera raw files, whose first page is a preview."""
    pages = list(_pages(file))
    if not pages:
        raise ImageError("undecodable", "The TIFF has no page.")
    if any(page.photometric in _RAW for page in pages):
        raise _raw()
    whole = [page for page in pages if not page.subfiletype & 1]
    return whole[0] if whole else max(pages, key=lambda page: page.imagewidth * page.imagelength)


def _pages(file: TiffFile) -> Iterator[TiffPage]:
    """The first pages, each with the pages below it."""
    for index in range(_MAX_PAGES):
        try:
            page = file.pages[index]
        except IndexError:
            return
        if not isinstance(page, TiffPage):
            page = page.aspage()
        yield page
        children = page.tags.valueof(_SUB_FILES)
        if children and page.pages is not None:
            for child in list(page.pages)[:_MAX_PAGES]:
                yield child if isinstance(child, TiffPage) else child.aspage()
        elif not page.subfiletype & 1 and _DNG_VERSION not in page.tags and page.photometric not in _RAW:
            return  # It is the picture.


def _check_supported(page: TiffPage) -> None:
    photometric = int(page.photometric)
    bits = page.bitspersample
    if page.imagedepth > 1:
        raise ImageError("unsupported_layout", f"The TIFF page is a volume, {page.imagedepth} pixels deep.")
    if photometric not in COLOURS or (photometric == CMYK and page.tags.valueof(_INK_SET, 1) != 1):
        name = _NAMES.get(photometric, f"a colour space that is not decoded (photometric {photometric})")
        raise ImageError("unsupported_colour", f"The TIFF is in {name}.")
    if not isinstance(bits, int):
        raise ImageError("unsupported_depth", f"The TIFF has samples of different depths: {bits} bits.")
    if page.samplesperpixel > 1 and page.planarconfig not in (_CONTIGUOUS, _PLANES):
        raise ImageError(
            "undecodable", f"The TIFF does not say where its samples are: planar configuration {page.planarconfig}."
        )
    kind = page.sampleformat
    if kind not in (_UNSIGNED, _NOT_SAID) or bits > 16:
        name = _SAMPLE_KINDS.get(kind if isinstance(kind, int) else 0, "complex or mixed")
        raise ImageError(
            "unsupported_mode",
            f"The TIFF has {name} samples of {bits} bits, which define no range that white could be read from.",
        )
    extra = page.samplesperpixel - COLOURS[photometric]
    if extra < 0:
        raise ImageError(
            "undecodable", f"The TIFF has too few samples a pixel for its colours: {page.samplesperpixel}."
        )
    if photometric == BLACK_IS_ZERO and extra and page.extrasamples[:1] not in ((1,), (2,)):
        raise ImageError(
            "unsupported_colour", f"The TIFF has {page.samplesperpixel} bands that are neither colours nor alpha."
        )
    if page.compression not in _PACKED | _JPEG_2000 | {JPEG, _OLD_JPEG, _WEBP}:
        raise ImageError("unsupported_compression", f"The TIFF's compression is not decoded: {int(page.compression)}.")
    if page.compression in _FAX and not hasattr(imagecodecs, "ccittfax4_decode"):
        raise ImageError("unsupported_compression", "The TIFF's fax compression needs imagecodecs 2026.3 or newer.")
    if (
        photometric == YCBCR
        and page.compression not in (JPEG, _OLD_JPEG)
        and tuple(page.subsampling or (2, 2)) != (1, 1)
    ):
        raise ImageError("unsupported_layout", "The TIFF is YCbCr with subsampled colours and without JPEG.")


def _check_allocation(page: TiffPage, limits: Limits) -> None:
    """Refuse what takes much more memory than its pixels: tiles beyond the image, many bands."""
    if page.is_tiled:
        limits.check(page.tilewidth, page.tilelength, "A tile of the TIFF")
        across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
        if page.tilewidth * across * page.tilelength * down > 4 * max(limits.max_pixels, 1 << 16):
            limits.check(page.tilewidth * across, page.tilelength * down, "With its tiles the TIFF")
    samples = page.samplesperpixel
    if samples > 8:
        limits.check(page.imagewidth * samples, page.imagelength, f"With {samples} samples a pixel the TIFF")


def _check_complete(page: TiffPage, data: bytes) -> None:
    """Every tile or strip must be there: tifffile makes up those that are not."""
    needed = int(np.prod(page.chunked))
    rows_bytes = int(np.prod(page.chunks)) * int(page.bitspersample) // 8  # Some headers say more than the rows take.
    if len(page.dataoffsets) < needed or len(page.databytecounts) < needed:
        raise ImageError("truncated", f"The TIFF lists {len(page.dataoffsets)} of its {needed} strips or tiles.")
    for start, size in zip(page.dataoffsets[:needed], page.databytecounts[:needed], strict=True):
        end = start + (min(size, rows_bytes) if page.compression == _NONE else size)
        if size == 0 or end > len(data):
            raise ImageError("truncated", "The TIFF ends before its last strip or tile, or lacks one.")


def _check_embedded(page: TiffPage, data: bytes, limits: Limits) -> None:
    """Strips or tiles that are images themselves have a size of their own, for which memory is asked."""
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=False):
        segment = data[start : start + size]
        if page.compression == JPEG:
            segment = _with_tables(segment, page.jpegtables)
            width, height = jpeg.read_size(segment)
        elif page.compression == _WEBP:
            width, height = read_webp_size(segment)
        else:
            begin = segment.find(jpeg2000.CODESTREAM)
            width, height = jpeg2000.read_size(segment[begin:]) if begin >= 0 else (0, 0)
        limits.check(width, height, "A strip or tile of the TIFF")
        if page.compression == JPEG:
            jpeg.check_whole(segment, limits)


def _read_samples(page: TiffPage, data: bytes) -> np.ndarray:
    """Samples as tifffile has them: [planes, 1, height, width, samples]."""
    try:
        return page.asarray(maxworkers=1, squeeze=False)
    except RuntimeError:
        if page.compression not in _OF_EXACT_LENGTH:
            raise
    return _read_longer_segments(page, data)


def _read_longer_segments(page: TiffPage, data: bytes) -> np.ndarray:
    """Samples of a page whose strips or tiles hold more than their pixels, as a last strip does that was filled up.

    They are decoded here and put behind the file's data, from where tifffile takes as much as it needs.
    """
    decode = TIFF.DECOMPRESSORS[page.compression]
    most = 4 * int(np.prod(page.chunks)) + _MOST_MORE
    plain, starts, sizes = [data], [], []
    place = len(data)
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=False):
        segment = data[start : start + size]
        if page.fillorder == _LOW_BITS_FIRST:
            segment = bytes(imagecodecs.bitorder_decode(segment))
        plain.append(bytes(decode(segment, out=most)) + b"\0")  # Parted, or tifffile would read them as one.
        starts.append(place)
        sizes.append(len(plain[-1]) - 1)
        place += len(plain[-1])
    with TiffFile(io.BytesIO(b"".join(plain)), _multifile=False) as file:
        copy = _choose_page(file)
        copy.compression, copy.fillorder, copy.predictor = _NONE, 1, page.predictor
        copy.dataoffsets, copy.databytecounts = tuple(starts), tuple(sizes)
        return copy.asarray(maxworkers=1, squeeze=False)


def _with_tables(segment: bytes, tables: bytes | None) -> bytes:
    """A strip or tile as a JPEG of its own; what all share stands in a tag, between the markers of start and end."""
    return segment if tables is None else tables[:-2] + segment[2:]


def _decode_old_jpeg(page: TiffPage, data: bytes, limits: Limits) -> PIL.Image.Image:
    """The compression of 1992, where a whole JPEG stands in the file, as nearly all writers have it."""
    start = page.tags.valueof(_OLD_JPEG_START)
    start = start[0] if isinstance(start, tuple) else start
    if not isinstance(start, int) or not data.startswith(b"\xff\xd8\xff", start):
        raise ImageError("unsupported_compression", "The TIFF has JPEG data in parts (compression 6).")
    decoded = jpeg.decode(data[start:], limits)
    if (decoded.width, decoded.height) != (page.imagewidth, page.imagelength):
        raise ImageError("unsupported_layout", "The TIFF is made of several JPEGs (compression 6).")
    return decoded.image


def _one_plane(samples: np.ndarray) -> np.ndarray:
    """[planes, 1, height, width, samples] -> [height, width, channels]."""
    if samples.shape[0] > 1:
        samples = np.moveaxis(samples[..., 0], 0, -1)
    return np.asarray(samples[0] if samples.ndim == 4 else samples[0, 0])
