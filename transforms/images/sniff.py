"""Detect an image's format by its first bytes."""

from __future__ import annotations

import enum
import re


class Format(enum.StrEnum):
    """The formats that are decoded."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"
    AVIF = "AVIF"
    HEIF = "HEIF"
    JPEG2000 = "JPEG2000"
    PNM = "PNM"
    ICO = "ICO"
    TGA = "TGA"
    DICOM = "DICOM"
    EXR = "EXR"
    HDR = "HDR"


_SIGNATURES = (
    (re.compile(rb".{128}DICM", re.DOTALL), Format.DICOM),  # First: the 128 bytes may be those of a TIFF.
    (re.compile(rb"\xff\xd8\xff"), Format.JPEG),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), Format.PNG),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), Format.WEBP),
    (re.compile(rb"GIF8[79]a"), Format.GIF),
    (re.compile(rb"BM.{12}[\x0c\x10-\x40\x6c\x7c]\x00\x00\x00", re.DOTALL), Format.BMP),
    (re.compile(rb"II[*+]\x00|MM\x00[*+]"), Format.TIFF),
    (re.compile(rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n"), Format.JPEG2000),
    (re.compile(rb"P[1-6][\s#]|P7\s|P[fF]\s"), Format.PNM),
    (re.compile(rb"\x00\x00\x01\x00[\x01-\xff]\x00"), Format.ICO),
    (re.compile(rb"\x76\x2f\x31\x01"), Format.EXR),
    (re.compile(rb"#\?(RADIANCE|RGBE)\n"), Format.HDR),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def sniff(data: bytes) -> Format | None:
    """The format that a file begins as; None for those that are not decoded."""
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & _AVIF_BRANDS:
            return Format.AVIF
        return Format.HEIF if brands & _HEIC_BRANDS else None
    for pattern, kind in _SIGNATURES:
        if pattern.match(data):
            return kind
    return Format.TGA if _could_be_tga(data) else None


def _brands(data: bytes) -> set[bytes]:
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[start : start + 4] for start in (8, *range(16, end, 4))}


def _could_be_tga(data: bytes) -> bool:
    """Whether a header makes sense as TGA's, which has no signature."""
    if len(data) < 18:
        return False
    mapped, kind, depth, flags = data[1], data[2], data[16], data[17]
    return (
        mapped in (0, 1)
        and kind in (1, 2, 3, 9, 10, 11)
        and (mapped == 1) >= (kind in (1, 9))
        and depth in (1, 8, 15, 16, 24, 32)
        and flags & 0xC0 == 0
        and data[12:14] != b"\0\0"
        and data[14:16] != b"\0\0"
        and (mapped == 1 or data[3:8].strip(b"\0") in (b"", b" ", b"\x18", b"\x20"))
    )
