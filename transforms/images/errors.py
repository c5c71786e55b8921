"""Translate exceptions of image libraries to `ImageError` with a stable type and a reason."""

from __future__ import annotations

import re
import struct

import PIL.Image

from transforms.core.errors import FailureError

_UNSUPPORTED_SIGNATURES = {
    re.compile(start, re.DOTALL): kind
    for start, kind in (
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n", "jpeg_xl"),
        (rb"8BPS", "psd"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "eps"),
        (rb"%PDF", "pdf"),
        (rb"II\xbc\x01", "jpeg_xr"),
        (rb"SIMPLE  =", "fits"),
        (rb"\x00\x00\x02\x00[\x01-\xff]\x00", "cur"),
        (rb"gimp xcf", "xcf"),
        (rb"FUJIFILMCCD-RAW|FOVb|II\x1a\x00\x00\x00HEAPCCDR|IIR[OS]|MMOR|IIU\x00|....ftypcrx |\x00MRM", "raw"),
        (rb"qoif", "qoi"),
        (rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", "pcx"),
        (rb"\xb1\x68\xde\x3a", "dcx"),
        (rb"DDS \x7c\x00\x00\x00", "dds"),
        (rb"\x01\xda[\x00\x01][\x01\x02]", "sgi"),
        (rb"icns", "icns"),
        (rb"\x59\xa6\x6a\x95", "sun_raster"),
        (rb"/\* XPM \*/", "xpm"),
        (rb"#define \S+_width \d", "xbm"),
        (rb"SDPX|XPDS", "dpx"),
        (rb"BPG\xfb", "bpg"),
        (rb"FLIF", "flif"),
        (rb"[\x8a\x8b][MJ]NG\r\n\x1a\n", "mng"),
        (rb"AT&TFORM", "djvu"),
        (rb"\xd7\xcd\xc6\x9a|[\x01\x02]\x00\x09\x00\x00[\x01\x03]", "wmf"),
        (rb"\x01\x00\x00\x00.{36} EMF", "emf"),
        (rb"\x1a\x45\xdf\xa3|....ftyp(isom|iso[2-9]|mp4[12]|avc1|M4V|qt  |3g[2p]|f4v |dash)|RIFF....AVI ", "video"),
    )
}
"""Formats that people take for pictures and that are not decoded."""

_SVG_STARTS = (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")
_ENDS_EARLY = re.compile(r"truncated|EOF|end of file|but only got|not enough (image )?data", re.IGNORECASE)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


NOT_AN_IMAGE = "not_an_image"
"""The error type of a file that holds something else, of which neither content nor digest is told."""


class ImageError(FailureError):
    """Bytes that give no image, and why.

    Attributes:
        error_type: short stable name: ``empty``, ``truncated``, ``not_an_image``, ``undecodable``, ``too_many_pixels``,
            ``too_small``, ``unsupported_mode``, ``unsupported_heic``, ``unsupported_svg``, or ``unsupported_`` and
            another format; ``no_such_frame`` for a DICOM of fewer frames.
        message: the reason. The same bytes give the same message in every process.
    """


def explain(data: bytes, kind: str, error: Exception) -> ImageError:
    """What to report for bytes that a decoder raised an error at.

    Args:
        data: the encoded bytes.
        kind: the format that they begin as.
        error: whatever was raised: OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError...
    """
    if isinstance(error, PIL.Image.DecompressionBombError | PIL.Image.DecompressionBombWarning):
        return ImageError("too_many_pixels", f"The header is over Pillow's limit in this process: {error}")
    if isinstance(error, MemoryError):
        return ImageError("too_many_pixels", f"The {kind} asks for more memory than there is.")
    if _is_cut_short(data):
        return ImageError("truncated", "The file ends before the length that it declares.")
    if isinstance(error, UnicodeDecodeError):  # Of libpng's message, whose memory may be gone: it differs every time.
        return ImageError("undecodable", f"The {kind} is damaged.")
    message = _ADDRESS.sub("", f"{type(error).__name__}: {error}")[:500]  # Some quote the file.
    if isinstance(error, PIL.UnidentifiedImageError | SyntaxError | struct.error | IndexError):
        return ImageError(
            "undecodable", f"The file begins as {kind} does, but its header is damaged or cut short ({message})."
        )
    truncated = isinstance(error, EOFError) or _ENDS_EARLY.search(message)
    return ImageError("truncated" if truncated else "undecodable", message)


def explain_unknown(data: bytes) -> ImageError:
    """What to report for bytes that begin as no format that is decoded."""
    if kind := _unsupported_format(data):
        name = kind.upper().replace("_", " ")
        return ImageError(f"unsupported_{kind}", f"{name} files are not decoded; convert them to JPEG or PNG.")
    # What it begins with is not told: it may be a file that the job can read and that others should not see.
    return ImageError(NOT_AN_IMAGE, "The file is of no image format that is decoded.")


def _unsupported_format(data: bytes) -> str | None:
    """Names a format that people take for an image and that is not decoded."""
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_SVG_STARTS) and b"<svg" in head:
        return "svg"
    return next((kind for start, kind in _UNSUPPORTED_SIGNATURES.items() if start.match(data)), None)


def _is_cut_short(data: bytes) -> bool:
    """Whether a container declares more bytes than there are; for the formats whose decoders don't say."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\xff\x4f\xff\x51"):  # A bare JPEG 2000 codestream ends with its end marker.
        return not data.endswith(b"\xff\xd9")
    if data[4:8] not in (b"ftyp", b"jP  "):
        return False
    end = 0
    while end < len(data):  # AVIF and JP2 are a row of boxes, each of which begins with its length.
        length = int.from_bytes(data[end : end + 4], "big")
        if length < 8:  # 0: to the end of the file; 1: a 64-bit length.
            return False
        end += length
    return end > len(data)
