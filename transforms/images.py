"""Encoded bytes -> uint8 RGB pixels: the image policy."""

from __future__ import annotations

IMAGE_EXTENSIONS = frozenset(
    ".apng .avif .avifs .bmp .dib .gif .heic .heif .hif .ico .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl"
    " .mpo .pbm .pcx .pfm .pgm .png .pnm .ppm .qoi .svg .tga .tif .tiff .webp".split()
)
"""Lower-case suffixes of the files that count as images when a folder is listed.

It holds formats that are not decoded too (HEIC, SVG, JPEG XL): such files are reported as failures with a reason,
not left out in silence.
"""
