"""JPEG by libjpeg-turbo, with a check for data that it had to guess.

libjpeg makes up what a file lacks and only warns of it. Pillow hides its warnings; simplejpeg raises the first of them.
Then the file is looked at again: padding, or a missing end marker, costs no pixels, missing or damaged data does.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
import PIL.Image
import pyarrow as pa
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.formats.pillow import load
from transforms.images.orientation import read_orientation, turn_upright
from transforms.images.transparency import image_from_samples

_END = b"\xff\xd9"
_APP0, _APP1, _APP2, _APP14, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_UNSUPPORTED_FRAMES = {0xF7: "JPEG-LS", **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless")}
_PROGRESSIVE = 0xC2
_HUFFMAN = (0xC0, 0xC1, 0xC2)
_ALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}
"""Markers that no length follows."""
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd9-\xfe]")
_HARMLESS = re.compile(r"extraneous bytes before marker 0xd9")
_STOPS_EARLY = re.compile(r"[Pp]remature end")
_SPACES = {1: "GRAY", 3: "RGBX", 4: "CMYK"}
"""By components. RGBX is how Pillow holds RGB, so that it takes the pixels as they are."""
_SCAN = b"\xff\xda"
_PIXELS_A_SCAN = 1 << 13
"""Pixels that take as long as what a scan of none does."""
_MOST_PIXELS_SCANNED = 1 << 31
"""Some seconds' work. Each scan goes through the whole image, and in a few bytes a file can ask for another one."""
_MORE = bytes(range(1, 255)) * 16
"""Data of a scan that stands for anything."""
_TRANSFORMS = {3: (0, 1), 4: (0, 2)}
"""How colours are stored by Adobe's marker, by components: as they are, or as YCbCr (YCCK)."""
_SEQUENTIAL = b"\0\x3f\0"
"""How the header of a scan ends that is not progressive. Some writers have other numbers there, which mean nothing."""
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before a JPEG's first scan.

    Attributes:
        frame: the marker that says how it is coded.
        precision: bits of a sample.
        width: in pixels.
        height: likewise.
        components: 1 grey, 3 colours, 4 inks.
        scan: where the first scan's marker is.
        needed: the segments, markers included, that decoding needs.
        adobe: whether there is Adobe's marker, with which inks are stored inverted.
        exif: the block of that name.
        xmp: likewise.
        icc_profile: whether there is one.
    """

    frame: int
    precision: int
    width: int
    height: int
    components: int
    scan: int
    needed: tuple[bytes, ...]
    adobe: bool
    exif: bytes | None
    xmp: bytes | None
    icc_profile: bool


def decode(data: bytes, limits: Limits) -> Decoded:
    """The first image of a JPEG, or of a multi-picture file (MPO)."""
    header = _read_header(data)
    _check_supported(header)
    limits.check(header.width, header.height)
    if _has_several_scans(data, header):
        scans = data.count(_SCAN, header.scan)
        if scans * (header.width * header.height + _PIXELS_A_SCAN) > _MOST_PIXELS_SCANNED:
            limits.require_killable()
    if header.precision == 12:
        samples = _decode_untold(data, header, limits, imagecodecs.jpeg8_decode)
        image = image_from_samples(scale_to_8_bits(samples, 4095))
    else:
        image = _to_rgb(_decode_whole(data, header, limits), header)
    upright = turn_upright(image, read_orientation(header.exif, header.xmp))
    return Decoded(upright, header.width, header.height, header.icc_profile)


def read_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by the frame header."""
    header = _read_header(data)
    return header.width, header.height


def check_whole(data: bytes, limits: Limits) -> None:
    """Refuse a JPEG that is damaged or stops early, for decoders that do not tell.

    Raises:
        ImageError: as `decode` does; not for kinds that it does not know.
    """
    header = _read_header(data)
    if header.frame not in _HUFFMAN or header.components not in _SPACES:
        return
    with contextlib.suppress(ValueError, imagecodecs.Jpeg8Error):  # A kind that these do not know.
        if header.precision == 12:
            _decode_untold(data, header, limits, imagecodecs.jpeg8_decode)
        elif header.precision == 8:
            _decode_whole(data, header, limits)


def _decode_untold(data: bytes, header: _Header, limits: Limits, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """Samples by a decoder that does not tell what libjpeg warns of.

    What follows the data of the last scan changes no sample unless some are missing: then libjpeg takes it for them.

    Raises:
        ImageError: ``truncated``, where that isn't accepted.
    """
    scans = data[: _find_end(data, header)].rstrip(b"\xff")
    samples = decode(scans + _END)
    if not limits.accept_truncated and (
        not np.array_equal(samples, decode(scans + _MORE + _END))
        or (_has_several_scans(data, header) and not _scans_are_complete(data, header))
    ):
        raise ImageError("truncated", "The JPEG's data stops before the last row.")
    return samples


def _find_end(data: bytes, header: _Header) -> int:
    """Where the end marker behind the scans is, or would be."""
    position = header.scan
    while data[position + 1] != _END_OF_IMAGE:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        following = _NEXT_MARKER.search(data, position + 2 + length)
        if following is None:
            return len(data)
        position = following.start()
    return position


def _check_supported(header: _Header) -> None:
    if header.height == 0:
        raise ImageError("unsupported_layout", "The JPEG gives its height behind its data (DNL), which is not read.")
    if header.frame not in _HUFFMAN:
        kind = _UNSUPPORTED_FRAMES.get(header.frame, "arithmetically coded or hierarchical")
        raise ImageError("unsupported_compression", f"The JPEG is {kind} (marker FF{header.frame:02X}).")
    if header.precision not in (8, 12) or (header.precision == 12 and header.components == 4):
        raise ImageError(
            "unsupported_depth", f"The JPEG has {header.components} components of {header.precision} bits."
        )
    if header.components not in _SPACES:
        raise ImageError("unsupported_colour", f"The JPEG has {header.components} components; 1, 3 or 4 are decoded.")


def _to_rgb(pixels: np.ndarray, header: _Header) -> PIL.Image.Image:
    """Decoded samples -> RGB. Inks are 0 for none, but inverted where Adobe's marker is."""
    if header.components == 1:
        return PIL.Image.fromarray(pixels[..., 0]).convert("RGB")
    if header.components == 3:
        values = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 4)
        height, width = pixels.shape[:2]
        return PIL.Image.fromarrow(values, "RGB", (width, height))  # `fromarray` copies, holding the GIL
    return PIL.Image.fromarray(255 - pixels if header.adobe else pixels, "CMYK").convert("RGB")


def _by_pillow(data: bytes, header: _Header) -> np.ndarray:
    """Samples as simplejpeg gives them, for subsampling that it does not know."""
    image = load(JpegImageFile, data)
    if header.components == 1:
        return np.asarray(image)[..., None]
    if header.components == 3:
        return np.asarray(image.convert("RGBX"))
    return 255 - np.asarray(image)  # Pillow inverts inks always.


def _decode_whole(data: bytes, header: _Header, limits: Limits) -> np.ndarray:
    """uint8 samples [height, width, components].

    Raises:
        ImageError: for data that is damaged, or stops early where that isn't accepted.
    """
    space = _SPACES[header.components]
    least = limits.least_side
    # Of a side of a few pixels simplejpeg takes a fraction, since rounded up it is as long.
    is_large = least is not None and min(header.width, header.height) > least
    scaled = {"min_height": least, "min_width": least} if is_large else {}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, space, **scaled)
        warning = None
    except ValueError as error:
        warning = str(error)
        if "subsampling" in warning:
            return _decode_untold(data, header, limits, functools.partial(_by_pillow, header=header))
        tidy = _tidy(data, header)
        pixels = simplejpeg.decode_jpeg(tidy, space, strict=False, **scaled)
        warning = _judge(tidy, space)
    if warning is None and _has_several_scans(data, header) and not _scans_are_complete(data, header):
        warning = "Premature end: the last scans are missing"
    if warning is None or (limits.accept_truncated and _STOPS_EARLY.search(warning)):
        return pixels
    if _STOPS_EARLY.search(warning):
        raise ImageError("truncated", f"The JPEG's data stops before the last row; libjpeg warns: {warning}.")
    raise ImageError("undecodable", f"The JPEG's data is damaged; libjpeg warns: {warning}.")


def _judge(tidy: bytes, space: str) -> str | None:
    """What libjpeg warns of in what `_tidy` gives; None if harmless."""
    try:
        simplejpeg.decode_jpeg(tidy, space)
    except ValueError as error:
        return None if _HARMLESS.search(str(error)) else str(error)
    return None


def _tidy(data: bytes, header: _Header) -> bytes:
    """The same image without what libjpeg warns of first and needlessly, which would hide that data is missing.

    So it is without metadata and without zeros behind its data, with an end marker and with known parameters.
    """
    end = _find_end(data, header)
    scans = data[header.scan : end] if end < len(data) else _without_cut_segment(data[header.scan :])
    starts = list(_scan_data(scans))
    padded = scans[: max(starts)] + scans[max(starts) :].rstrip(b"\0")
    if padded.endswith(b"\xff"):  # The 0 behind a data byte of 255 belongs to it; half a marker belongs to nothing.
        padded = padded + b"\0" if len(padded) < len(scans) else padded[:-1]
    if header.frame != _PROGRESSIVE:
        for start in starts:
            padded = padded[: start - len(_SEQUENTIAL)] + _SEQUENTIAL + padded[start:]
    needed = (_with_known_transform(segment, header.components) for segment in header.needed)
    return b"\xff\xd8" + b"".join(needed) + padded + _END


def _scan_data(scans: bytes) -> Iterator[int]:
    """Where the data of each scan begins, behind its header."""
    position = 0
    while True:
        start = position + 2 + int.from_bytes(scans[position + 2 : position + 4], "big")
        if scans[position + 1] == _START_OF_SCAN:
            yield start
        following = _NEXT_MARKER.search(scans, start)
        if following is None:
            return
        position = following.start()


def _with_known_transform(segment: bytes, components: int) -> bytes:
    """Adobe's marker with a transform that there is: libjpeg takes any other for YCbCr (YCCK), and warns of it."""
    known = _TRANSFORMS.get(components)
    if segment[1] != _APP14 or known is None or segment[15] in known:
        return segment
    return segment[:15] + bytes([known[1]]) + segment[16:]


def _without_cut_segment(scans: bytes) -> bytes:
    """Scans without a last segment, such as a further scan's tables, that stops early."""
    last = max((match.start() for match in _NEXT_MARKER.finditer(scans)), default=0)
    whole = last + 4 <= len(scans) and last + 2 + int.from_bytes(scans[last + 2 : last + 4], "big") <= len(scans)
    return scans if whole else scans[:last]


def _read_header(data: bytes) -> _Header:
    """Walk the markers up to the first scan.

    Raises:
        ImageError: where there is no scan, or no frame before it.
    """
    position = 2
    frame: bytes | None = None
    kind = 0
    needed: list[bytes] = []
    adobe = icc_profile = False
    exif: bytes | None = None
    xmp: bytes | None = None
    while True:
        start = data.find(b"\xff", position)
        if start < 0 or start + 4 > len(data):
            raise ImageError("truncated", "The JPEG ends before its image data.")
        marker = data[start + 1]
        if marker in (0x00, 0xFF) or marker in _ALONE:
            position = start + (1 if marker == 0xFF else 2)
            continue
        if marker == _START_OF_SCAN:
            break
        if marker == _END_OF_IMAGE:
            raise ImageError("undecodable", "The JPEG has no image data before its end marker.")
        position = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        body = data[start + 4 : position]
        if marker in _FRAMES and frame is None:
            frame, kind = body, marker
        if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:  # libjpeg knows no shorter one.
            needed.append(_JFIF)
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = True
            needed.append(data[start:position])
        elif marker == _APP1 and body.startswith(b"Exif\0"):
            exif = exif or body
        elif marker == _APP1 and body.startswith(b"http://ns.adobe.com/xap/"):
            xmp = xmp or body
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0"):
            icc_profile = True
        elif not _APP0 <= marker <= 0xEF and marker != _COMMENT:
            needed.append(data[start:position])
    if frame is None or len(frame) < 6:
        raise ImageError("undecodable", "The JPEG has no frame header before its image data.")
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return _Header(kind, frame[0], width, height, frame[5], start, tuple(needed), adobe, exif, xmp, icc_profile)


def _has_several_scans(data: bytes, header: _Header) -> bool:
    return header.frame == _PROGRESSIVE or data[header.scan + 4 : header.scan + 5] < bytes([header.components])


def _scans_are_complete(data: bytes, header: _Header) -> bool:
    """Whether every component is there, and every coefficient that was begun has its last bit.

    A progressive file that is cut between two scans makes libjpeg warn of nothing: it is a blurred picture.
    """
    missing_bits: dict[tuple[int, int], int] = {}
    components: set[int] = set()
    position = header.scan
    while data[position + 1] != _END_OF_IMAGE:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if position + 4 > len(data) or position + 2 + length > len(data):
            return False
        if data[position + 1] == _START_OF_SCAN:
            scan = data[position + 4 : position + 2 + length]
            count = scan[0]
            first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
            ids = scan[1 : 1 + 2 * count : 2]
            components.update(ids)
            if header.frame == _PROGRESSIVE:
                missing_bits |= {(part, index): bits & 15 for part in ids for index in range(first, last + 1)}
        following = _NEXT_MARKER.search(data, position + 2 + length)
        if following is None:
            break
        position = following.start()
    return len(components) >= header.components and not any(missing_bits.values())
