"""JPEG 2000, WebP, AVIF, HEIC, BMP, GIF, ICO, TGA, PNM, and every orientation."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator

import cv2
import imagecodecs
import numpy as np
import PIL.Image

from tests.support.image_samples import UPRIGHT, encode, exif
from tests.support.pixels.case import HEIGHT, WIDTH, Case, by_opencv, by_pillow, by_tifffile, right, samples


def other_cases() -> Iterator[Case]:
    values, with_alpha = samples(3, 8), samples(4, 8)
    for channels, bits in itertools.product((1, 3, 4), (8, 9, 10, 12, 14, 16)):
        stored = samples(channels, bits)
        for codec in ("jp2", "j2k"):
            yield Case(
                "JPEG 2000",
                f"{channels} channels of {bits} bits, {codec}",
                "imagecodecs",
                lambda v=stored, b=bits, c=codec: imagecodecs.jpeg2k_encode(
                    v.squeeze(), level=0, codecformat=c, bitspersample=b, reversible=True
                ),
                right(stored, bits),
            )
    for mode, stored in (("L", samples(1, 8)), ("LA", samples(2, 8)), ("RGB", values), ("RGBA", with_alpha)):
        yield Case("JPEG 2000", f"{mode} 8 bits", "Pillow", lambda v=stored: by_pillow(v, "JPEG2000"), right(stored, 8))
        for image_format in ("TGA", "WEBP", "ICO") if mode in ("RGB", "RGBA") else ("TGA",):
            options = {"WEBP": {"lossless": True, "exact": True}, "ICO": {"sizes": [(WIDTH, HEIGHT)]}}.get(
                image_format, {}
            )
            if image_format == "ICO" and mode == "RGB":
                continue
            for compressed in (None, "tga_rle") if image_format == "TGA" else (None,):
                extra = options | ({"compression": compressed} if compressed else {})
                yield Case(
                    image_format,
                    f"{mode} 8 bits{', runs' * bool(compressed)}",
                    "Pillow",
                    lambda v=stored, f=image_format, o=extra: by_pillow(v, f, **o),
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
    for writer, make in (
        ("OpenCV", lambda: by_opencv(values, ".bmp")),
        ("imagecodecs", lambda: imagecodecs.bmp_encode(values)),
    ):
        yield Case("BMP", "24 bits", writer, make, values)
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
        yield Case("PNM", f"P6, largest {top}", "by hand", lambda h=head, b=body: b"P6\n" + h + b, expected)
        yield Case("PNM", f"P3, largest {top}", "by hand", lambda h=head, t=text: b"P3\n" + h + t, expected)
    # No PAM by OpenCV: version 5 writes blue first.
    for bits in (8, 16):
        deep = samples(3, bits)
        yield Case("PNM", f"RGB {bits} bits", "OpenCV", lambda v=deep: by_opencv(v, ".ppm"), right(deep, bits))
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
            lambda v=deep, b=bits: imagecodecs.avif_encode(v, level=100, bitspersample=b, pixelformat="444"),
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
        yield Case(
            "HEIC", f"{mode}", "pillow-heif", lambda v=values, m=mode: by_heif(v, m), right(values, bits), tolerance=2
        )


def orientation_cases() -> Iterator[Case]:
    values = samples(3, 8)
    for number, turn in UPRIGHT.items():
        block = exif(number)
        expected = turn(values)
        yield Case(
            "PNG EXIF", f"orientation {number}", "Pillow", lambda b=block: encode(values, "PNG", exif=b), expected
        )
        yield Case(
            "WEBP EXIF",
            f"orientation {number}",
            "Pillow",
            lambda b=block: encode(values, "WEBP", lossless=True, exif=b),
            expected,
        )
        yield Case(
            "TIFF",
            f"orientation {number}",
            "tifffile",
            lambda n=number: by_tifffile(values, photometric="rgb", extratags=[(274, "H", 1, n, True)]),
            expected,
        )
        plain = np.asarray(PIL.Image.open(io.BytesIO(encode(values, "JPEG", quality=90))))
        yield Case(
            "JPEG EXIF",
            f"orientation {number}",
            "Pillow",
            lambda b=block: encode(values, "JPEG", quality=90, exif=b),
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
