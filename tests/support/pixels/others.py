"""JPEG 2000, WebP, AVIF, HEIC, BMP, GIF, ICO, TGA, PNM, and every orientation."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import cv2
import imagecodecs
import numpy as np
import PIL.Image

from tests.support.image_samples import UPRIGHT, encode, exif
from tests.support.pixels.case import HEIGHT, WIDTH, Case, by_opencv, by_pillow, by_tifffile, right, samples


def other_cases() -> Iterator[Case]:
    values, with_alpha = samples(3, 8), samples(4, 8)
    lossless: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True, "exact": True},
        "ICO": {"sizes": [(WIDTH, HEIGHT)]},
    }
    for channels, bits in itertools.product((1, 3, 4), (8, 9, 10, 12, 14, 16)):
        stored = samples(channels, bits)
        for codec in ("jp2", "j2k"):
            yield Case(
                "JPEG 2000",
                f"{channels} channels of {bits} bits, {codec}",
                "imagecodecs",
                partial(
                    imagecodecs.jpeg2k_encode,
                    stored.squeeze(),
                    level=0,
                    codecformat=codec,
                    bitspersample=bits,
                    reversible=True,
                ),
                right(stored, bits),
            )
    for mode, stored in (("L", samples(1, 8)), ("LA", samples(2, 8)), ("RGB", values), ("RGBA", with_alpha)):
        yield Case("JPEG 2000", f"{mode} 8 bits", "Pillow", partial(by_pillow, stored, "JPEG2000"), right(stored, 8))
        for image_format in ("TGA", "WEBP", "ICO") if mode in ("RGB", "RGBA") else ("TGA",):
            options = lossless.get(image_format, {})
            if image_format == "ICO" and mode == "RGB":
                continue
            for compressed in (None, "tga_rle") if image_format == "TGA" else (None,):
                extra = options | ({"compression": compressed} if compressed else {})
                yield Case(
                    image_format,
                    f"{mode} 8 bits{', runs' * bool(compressed)}",
                    "Pillow",
                    partial(by_pillow, stored, image_format, **extra),
                    right(stored, 8),
                )
    yield Case(
        "ICO bitmap",
        "RGBA",
        "Pillow",
        lambda: by_pillow(with_alpha, "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
        right(with_alpha, 8),
    )
    yield Case(
        "ICO",
        "several sizes: the largest",
        "Pillow",
        lambda: by_pillow(with_alpha, "ICO", sizes=[(16, 16), (WIDTH, HEIGHT), (24, 24)]),
        right(with_alpha, 8),
    )
    yield Case("BMP", "24 bits", "OpenCV", lambda: by_opencv(values, ".bmp"), values)
    yield Case("BMP", "24 bits", "imagecodecs", lambda: imagecodecs.bmp_encode(values), values)
    palette = PIL.Image.fromarray(values).quantize(16)
    yield Case("BMP", "palette", "Pillow", lambda: encode(palette, "BMP"), np.asarray(palette.convert("RGB")))
    yield Case("GIF", "palette", "Pillow", lambda: encode(palette, "GIF"), np.asarray(palette.convert("RGB")))
    yield Case(
        "BMP",
        "1 bit",
        "Pillow",
        lambda: encode(PIL.Image.fromarray(samples(1, 1)[..., 0] > 0), "BMP"),
        right(samples(1, 1), 1),
    )
    yield Case(
        "GIF",
        "a first frame smaller than its canvas",
        "by hand",
        lambda: _small_gif(values),
        _on_white(np.asarray(palette.convert("RGB")), 4, 6),
    )
    yield Case(
        "WEBP animated",
        "a first frame smaller than its canvas",
        "by hand",
        lambda: _small_webp(values),
        _on_white(values, 4, 6),
    )
    for top in (1, 100, 255, 1023, 4095, 65_535):
        stored = np.rint(samples(3, 16) / 65_535 * top).astype(np.uint16)
        expected = np.rint(stored / top * 255).astype(np.uint8)
        body = stored.astype(">u2" if top > 255 else np.uint8).tobytes()
        head = f"{WIDTH} {HEIGHT}\n{top}\n".encode()
        text = " ".join(map(str, stored.ravel())).encode()
        yield Case("PNM", f"P6, largest {top}", "by hand", partial(bytes, b"P6\n" + head + body), expected)
        yield Case("PNM", f"P3, largest {top}", "by hand", partial(bytes, b"P3\n" + head + text), expected)
    # No PAM by OpenCV: version 5 writes blue first.
    for bits in (8, 16):
        deep = samples(3, bits)
        yield Case("PNM", f"RGB {bits} bits", "OpenCV", partial(by_opencv, deep, ".ppm"), right(deep, bits))
    yield Case(
        "PFM",
        "float",
        "OpenCV",
        lambda: cv2.imencode(".pfm", values.astype(np.float32) / 255)[1].tobytes(),
        failure="unsupported_mode",
    )
    for bits in (8, 10, 12):
        deep = samples(3, bits)
        yield Case(
            "AVIF",
            f"RGB {bits} bits",
            "imagecodecs",
            partial(imagecodecs.avif_encode, deep, level=100, bitspersample=bits, pixelformat="444"),
            right(deep, bits),
            tolerance=3,
        )
    yield Case(
        "JPEG XL", "RGB", "imagecodecs", lambda: imagecodecs.jpegxl_encode(values), failure="unsupported_jpeg_xl"
    )
    yield Case("QOI", "RGB", "imagecodecs", lambda: imagecodecs.qoi_encode(values), failure="unsupported_qoi")


def heic_cases() -> Iterator[Case]:
    import pillow_heif  # With the extra only.

    lossless = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}

    def by_heif(values: np.ndarray, mode: str) -> bytes:
        stream = io.BytesIO()
        pillow_heif.encode(mode, (WIDTH, HEIGHT), values.tobytes(), stream, **lossless)
        return stream.getvalue()

    for mode, values, bits in (
        ("RGB", samples(3, 8), 8),
        ("RGBA", samples(4, 8), 8),
        ("RGB;16", samples(3, 16), 16),
    ):
        yield Case("HEIC", mode, "pillow-heif", partial(by_heif, values, mode), right(values, bits), tolerance=2)


def orientation_cases() -> Iterator[Case]:
    values = samples(3, 8)
    for number, turn in UPRIGHT.items():
        block = exif(number)
        expected = turn(values)
        yield Case("PNG EXIF", f"orientation {number}", "Pillow", partial(encode, values, "PNG", exif=block), expected)
        yield Case(
            "WEBP EXIF",
            f"orientation {number}",
            "Pillow",
            partial(encode, values, "WEBP", lossless=True, exif=block),
            expected,
        )
        yield Case(
            "TIFF",
            f"orientation {number}",
            "tifffile",
            partial(by_tifffile, values, photometric="rgb", extratags=[(274, "H", 1, number, True)]),
            expected,
        )
        plain = np.asarray(PIL.Image.open(io.BytesIO(encode(values, "JPEG", quality=90))))
        yield Case(
            "JPEG EXIF",
            f"orientation {number}",
            "Pillow",
            partial(encode, values, "JPEG", quality=90, exif=block),
            turn(plain),
            tolerance=0,
        )


def _on_white(values: np.ndarray, left: int, top: int) -> np.ndarray:
    canvas = np.full((HEIGHT + 10, WIDTH + 10, 3), 255, np.uint8)
    canvas[top : top + HEIGHT, left : left + WIDTH] = values
    return canvas


def _small_webp(values: np.ndarray) -> bytes:
    """An animation of one frame at (4, 6) of a larger canvas."""
    frame = encode(values, "WEBP", lossless=True)[12:]

    def three(number: int) -> bytes:
        return number.to_bytes(3, "little")

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    place = three(2) + three(3) + three(WIDTH - 1) + three(HEIGHT - 1) + three(100) + b"\0"
    body = b"WEBP" + chunk(b"VP8X", b"\x02\0\0\0" + three(WIDTH + 9) + three(HEIGHT + 9))
    body += chunk(b"ANIM", b"\0\0\0\xff\0\0") + chunk(b"ANMF", place + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _small_gif(values: np.ndarray) -> bytes:
    """A frame at (4, 6) of a larger canvas."""
    data = bytearray(encode(PIL.Image.fromarray(values).quantize(16), "GIF"))
    data[6:10] = struct.pack("<HH", WIDTH + 10, HEIGHT + 10)
    frame = data.index(b"," + struct.pack("<HHHH", 0, 0, WIDTH, HEIGHT))
    data[frame + 1 : frame + 5] = struct.pack("<HH", 4, 6)
    return bytes(data)
