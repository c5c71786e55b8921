"""Makes small image files of every kind, good and bad: from Pillow's encoders, and by hand where it has none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth uint8 RGB array [height, width, 3]: JPEG keeps it well, and no flip leaves it as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}
"""EXIF orientation -> what turns the stored rows and columns upright, as the EXIF standard words it."""


def encode(pixels: np.ndarray | PIL.Image.Image, image_format: str, **options: Any) -> bytes:
    """What Pillow writes."""
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block that says nothing but the orientation, as a file's metadata holds it."""
    entry = struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def png(
    width: int,
    height: int,
    depth: int,
    color_type: int,
    rows: bytes,
    *chunks: tuple[bytes, bytes],
    image_data: bool = True,
) -> bytes:
    """A PNG by hand: `rows` are the packed samples of all rows, `chunks` stand between header and image data."""
    data = filter_rows(rows, height) if image_data else None
    return png_file(width, height, depth, color_type, data, *chunks)


def filter_rows(rows: bytes, height: int) -> bytes:
    """Packed rows as PNG stores them, each behind a filter that does nothing."""
    stride = len(rows) // height
    return b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))


def png_file(
    width: int,
    height: int,
    depth: int,
    color_type: int,
    data: bytes | None,
    *chunks: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:
    """A PNG by hand of filtered rows, whatever its header says; None for no image data at all."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    content = [
        (b"IHDR", header),
        *chunks,
        *([] if data is None else [(b"IDAT", zlib.compress(data))]),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in content
    )


def tiff(width: int, height: int, data: bytes, *, bits: int, samples: int = 1, **tags: int) -> bytes:
    """A little-endian TIFF of one uncompressed strip, by hand.

    Args:
        width: in pixels.
        height: in pixels.
        data: the packed samples.
        bits: of a sample.
        samples: of a pixel.
        **tags: further tags by name: compression (1: none), photometric (1: black is zero), orientation,
            planar_configuration, predictor, extra_samples, sample_format.
    """
    numbers = {"compression": 259, "photometric": 262, "orientation": 274, "planar_configuration": 284}
    numbers |= {"predictor": 317, "extra_samples": 338, "sample_format": 339}
    values = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [1], 273: [8], 277: [samples]}
    values |= {278: [height], 279: [len(data)]} | {numbers[name]: [value] for name, value in tags.items()}
    arrays_at = 8 + len(data)
    arrays = b""
    entries = b""
    for tag, value in sorted(values.items()):
        packed = struct.pack(f"<{len(value)}I", *value)
        if len(value) > 1:
            packed, arrays = struct.pack("<I", arrays_at + len(arrays)), arrays + packed
        entries += struct.pack("<HHI", tag, 4, len(value)) + packed
    directory = struct.pack("<H", len(values)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", arrays_at + len(arrays)) + data + arrays + directory


def cmyk_jpeg(inks: np.ndarray) -> bytes:
    """A CMYK JPEG of uint8 inks [height, width, 4], as Adobe's programs write it (inverted)."""
    return encode(PIL.Image.fromarray(inks, "CMYK"), "JPEG", quality=100)


def ycck_jpeg(inks: np.ndarray) -> bytes:
    """A YCCK JPEG of uint8 inks [height, width, 4]: no encoder here writes one, so its Adobe marker is set by hand.

    The file's first three components are the YCbCr of (C, M, Y) taken for (R, G, B), its fourth is 255 - K; Pillow
    inverts whatever it is given as CMYK, and so is given the opposite.
    """
    luma = PIL.Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr")
    stored = np.dstack([np.asarray(luma), 255 - inks[..., 3]])
    data = encode(PIL.Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    transform = marker + 11
    assert data[transform] == 0
    return data[:transform] + b"\2" + data[transform + 1 :]


def animation(image_format: str, frames: list[np.ndarray], **options: Any) -> bytes:
    """A GIF, PNG or WebP that shows one frame after the other."""
    first, *rest = [PIL.Image.fromarray(frame) for frame in frames]
    return encode(first, image_format, save_all=True, append_images=rest, duration=100, **options)


def heic() -> bytes:
    """What an iPhone's photograph begins with."""
    return struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)


def svg() -> bytes:
    return (
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0"/></svg>\n'
    )


def _grey_16() -> bytes:
    return (picture()[..., 0].astype(">u2") * 257).tobytes()


GOOD: dict[str, Callable[[], bytes]] = {
    "rgb.jpg": lambda: encode(picture(), "JPEG", quality=95),
    "progressive.jpg": lambda: encode(picture(), "JPEG", progressive=True),
    "grey.jpg": lambda: encode(picture()[..., 0], "JPEG"),
    "rotated.jpg": lambda: encode(picture(), "JPEG", exif=exif(6)),
    "cmyk.jpg": lambda: cmyk_jpeg(np.dstack([picture(), picture(seed=1)[..., 0] // 2])),
    "ycck.jpg": lambda: ycck_jpeg(np.dstack([picture(), picture(seed=1)[..., 0] // 2])),
    "pair.mpo": lambda: encode(
        PIL.Image.fromarray(picture()), "MPO", save_all=True, append_images=[PIL.Image.fromarray(picture(seed=1))]
    ),
    "rgb.png": lambda: encode(picture(), "PNG"),
    "rgba.png": lambda: encode(np.dstack([picture(), picture(seed=1)[..., 0]]), "PNG"),
    "grey_alpha.png": lambda: encode(picture()[..., :2].copy(), "PNG"),
    "palette.png": lambda: encode(PIL.Image.fromarray(picture()).quantize(16), "PNG"),
    "palette_transparent.png": lambda: encode(PIL.Image.fromarray(picture()).quantize(16), "PNG", transparency=3),
    "bits.png": lambda: encode(PIL.Image.fromarray(picture()).convert("1"), "PNG"),
    "grey16.png": lambda: png(32, 24, 16, 0, _grey_16()),
    "animated.png": lambda: animation("PNG", [picture(), picture(seed=1)]),
    "rgb.webp": lambda: encode(picture(), "WEBP"),
    "lossless.webp": lambda: encode(np.dstack([picture(), picture(seed=1)[..., 0]]), "WEBP", lossless=True),
    "animated.webp": lambda: animation("WEBP", [picture(), picture(seed=1)]),
    "palette.gif": lambda: encode(picture(), "GIF"),
    "animated.gif": lambda: animation("GIF", [picture(), picture(seed=1)]),
    "rgb.bmp": lambda: encode(picture(), "BMP"),
    "rgb.tif": lambda: encode(picture(), "TIFF"),
    "lzw.tiff": lambda: encode(picture(), "TIFF", compression="tiff_lzw"),
    "grey16.tif": lambda: encode(picture()[..., 0].astype(np.uint16) * 257, "TIFF"),
    "rgb.avif": lambda: encode(picture(), "AVIF"),
    "rgb.jp2": lambda: encode(picture(), "JPEG2000"),
    "rgb.j2k": lambda: encode(picture(), "JPEG2000", no_jp2=True),
    "rgb.ppm": lambda: encode(picture(), "PPM"),
    "grey16.pgm": lambda: b"P5\n32 24\n65535\n" + _grey_16(),
    "rgb.ico": lambda: encode(picture(32, 32), "ICO", sizes=[(32, 32)]),
    "rgb.tga": lambda: encode(picture(), "TGA"),
}
"""File name -> maker of a file that decodes: every format and mode the image policy names."""

BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty.jpg": ("empty", lambda: b""),
    "truncated.jpg": ("truncated", lambda: GOOD["rgb.jpg"]()[:-200]),
    "truncated.png": ("truncated", lambda: GOOD["rgb.png"]()[:-200]),
    "truncated.webp": ("truncated", lambda: GOOD["rgb.webp"]()[:-20]),
    "text.jpg": ("not_an_image", lambda: b"<!DOCTYPE html><html><title>404 Not Found</title></html>"),
    "header_only.gif": ("undecodable", lambda: GOOD["palette.gif"]()[:30]),
    "huge.png": ("too_many_pixels", lambda: png(100_000, 100_000, 8, 2, bytes(100_000), image_data=False)),
    "photo.heic": ("undecodable", heic),
    "drawing.svg": ("unsupported_svg", svg),
    "float.tif": ("unsupported_mode", lambda: encode(picture()[..., 0].astype(np.float32), "TIFF")),
}
"""File name -> the error type that decoding gives, and a maker of the file."""


def make_samples(folder: Path) -> dict[str, Path]:
    """Writes every sample of `GOOD` and `BAD` into the folder.

    Returns:
        File name -> path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makers = GOOD | {name: maker for name, (_, maker) in BAD.items()}
    for name, maker in makers.items():
        (folder / name).write_bytes(maker())
    return {name: folder / name for name in makers}
