"""Why bytes are no image: any exception out of Pillow -> `ImageError` with a stable type and a reason."""

from __future__ import annotations

import re

import PIL.Image

_UNSUPPORTED_SIGNATURES = {
    b"\xff\x0a": "jpeg_xl",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n": "jpeg_xl",
    b"8BPS": "psd",
    b"%!PS": "eps",
    b"\xc5\xd0\xd3\xc6": "eps",
    b"%PDF": "pdf",
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_SVG_STARTS = (b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")
_ENDS_EARLY = re.compile(r"truncated|EOF|end of file|but only got|not enough (image )?data", re.IGNORECASE)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class ImageError(Exception):
    """Bytes that give no image, and why.

    Attributes:
        error_type: short stable name: ``empty``, ``truncated``, ``not_an_image``, ``undecodable``, ``too_many_pixels``,
            ``too_small``, ``unsupported_mode``, ``unsupported_heic``, ``unsupported_svg``, or ``unsupported_`` and
            another format.
        message: the reason. The same bytes give the same message in every process.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(error_type, message)
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return self.message


def explain(data: bytes, error: Exception, formats: tuple[str, ...]) -> ImageError:
    """What to report for bytes that Pillow raised an error at.

    Args:
        data: the encoded bytes.
        error: whatever Pillow raised: OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError...
        formats: the Pillow formats that were tried.
    """
    if isinstance(error, PIL.Image.DecompressionBombError | PIL.Image.DecompressionBombWarning):
        return ImageError("too_many_pixels", f"The header is over Pillow's limit in this process: {error}")
    if kind := _unsupported_format(data):
        name = kind.upper().replace("_", " ")
        return ImageError(f"unsupported_{kind}", f"{name} files are not decoded; convert them to JPEG or PNG.")
    if _is_cut_short(data):
        return ImageError("truncated", "The file ends before the length that it declares.")
    if isinstance(error, PIL.UnidentifiedImageError):
        return _explain_unidentified(data, formats)
    message = _ADDRESS.sub("", f"{type(error).__name__}: {error}")[:500]  # Some quote the file.
    truncated = isinstance(error, EOFError) or _ENDS_EARLY.search(message)
    return ImageError("truncated" if truncated else "undecodable", message)


def _explain_unidentified(data: bytes, formats: tuple[str, ...]) -> ImageError:
    start = data[:16]
    for name in formats:
        accepts = PIL.Image.OPEN[name][1]
        verdict = accepts(start) if accepts else False
        if isinstance(verdict, str):
            return ImageError(f"unsupported_{name.lower()}", f"This build of Pillow can't decode {name}: {verdict}.")
        if verdict:
            return ImageError("undecodable", f"The file begins as {name} does, but its header is damaged or cut short.")
    # What it begins with is not told: it may be a file that the job can read and that others should not see.
    return ImageError("not_an_image", "The file is of no image format that is decoded.")


def _unsupported_format(data: bytes) -> str | None:
    """Names a format that people take for an image and that is not decoded."""
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[start : start + 4] for start in (8, *range(16, end, 4))}
        return "heic" if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS else None
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_SVG_STARTS) and b"<svg" in head:
        return "svg"
    return next((kind for start, kind in _UNSUPPORTED_SIGNATURES.items() if data.startswith(start)), None)


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
