"""Files that ImageMagick writes, where it is installed: formats, depths, layouts and colour models."""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np

from tests.support.pixels.case import CHANNELS, HEIGHT, WIDTH, Case, inks_to_rgb, right, samples

PROGRAM = shutil.which("convert")
_TYPES = {"grey": "GRAYSCALE", "grey+alpha": "GRAYSCALE_ALPHA", "RGB": "RGB", "RGBA": "RGB_ALPHA"}


def _pam(values: np.ndarray, colour: str, bits: int) -> bytes:
    """Netpbm's PAM, which ImageMagick reads without a change."""
    head = f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH {values.shape[2]}\nMAXVAL {2**bits - 1}\n"
    body = values.astype(">u2" if bits > 8 else np.uint8).tobytes()
    return f"{head}TUPLTYPE {_TYPES[colour]}\nENDHDR\n".encode() + body


def _convert(source: bytes, target: str, *options: str) -> bytes:
    if PROGRAM is None:
        raise ImportError("ImageMagick is not installed")
    done = subprocess.run([PROGRAM, "-", *options, f"{target}:-"], input=source, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise ValueError(done.stderr.decode(errors="replace"))
    return done.stdout


def _case(kind: str, name: str, colour: str, bits: int, target: str, *options: str) -> Case:
    values = samples(CHANNELS[colour], bits)
    make = functools.partial(_convert, _pam(values, colour, bits), target, *options)
    return Case(kind, name, "ImageMagick", make, right(values, bits))


def imagemagick_cases() -> Iterator[Case]:
    """All it writes of what is supported; none where it is not installed."""
    for colour, bits, interlace in itertools.product(CHANNELS, (8, 16), ("none", "plane")):
        name = f"{colour} {bits} bits"
        if interlace == "none":
            yield _case("TIFF", f"{name}, bigtiff", colour, bits, "tiff64", "-compress", "none")
            yield _case("TIFF", f"{name}, pyramid", colour, bits, "ptif", "-compress", "lzw")
        kind = "PNG interlaced" if interlace == "plane" else "PNG"
        yield _case(kind, name, colour, bits, "png", "-interlace", interlace)
        yield _case("TIFF", f"{name}, -interlace {interlace}", colour, bits, "tiff", "-interlace", interlace)
        for endian in ("MSB", "LSB"):
            zipped = ("-endian", endian, "-compress", "zip", "-interlace", interlace)
            yield _case("TIFF", f"{name}, {endian}, zip, -interlace {interlace}", colour, bits, "tiff", *zipped)
    options: tuple[str, ...]
    for bits, fill in itertools.product((1, 2, 4, 8), ("msb", "lsb")):
        options = ("-depth", str(bits), "-define", f"tiff:fill-order={fill}")
        yield _case("TIFF", f"grey {bits} bits, fill order {fill}", "grey", bits, "tiff", *options)
    for compression, photometric in itertools.product(
        ("Group4", "Fax", "RLE", "LZW"), ("min-is-black", "min-is-white")
    ):
        options = ("-type", "bilevel", "-compress", compression, "-define", f"quantum:polarity={photometric}")
        yield _case("TIFF bilevel", f"{compression}, {photometric}", "grey", 1, "tiff", *options)
    for alpha, bits in itertools.product(("associated", "unassociated"), (8, 16)):
        yield _case("TIFF alpha", f"{alpha}, {bits} bits", "RGBA", bits, "tiff", "-define", f"tiff:alpha={alpha}")
    # No TGA: version 6 writes it upside down.
    for version in ("bmp", "bmp2", "bmp3"):
        yield _case("BMP", f"24 bits, {version}", "RGB", 8, version, "-type", "truecolor")
    yield _case("BMP", "32 bits", "RGBA", 8, "bmp")
    yield _case(
        "WEBP", "RGBA, lossless", "RGBA", 8, "webp", "-define", "webp:lossless=true", "-define", "webp:exact=true"
    )
    for target, bits in itertools.product(("ppm", "pam"), (8, 16)):
        yield _case("PNM", f"RGB {bits} bits, {target}", "RGB", bits, target)
    yield _case("PNM", "P1", "grey", 1, "pbm", "-compress", "none")
    yield _case("PNM", "P2", "grey", 8, "pgm", "-compress", "none")
    yield _case("PNM", "RGBA 8 bits, pam", "RGBA", 8, "pam")
    rgb = samples(3, 8)
    inks = np.dstack([255 - rgb, np.zeros((HEIGHT, WIDTH, 1), np.uint8)])
    for target, name in (("tiff", "TIFF CMYK"), ("jpeg", "JPEG CMYK")):
        options = ("-colorspace", "CMYK", "-quality", "100", "-sampling-factor", "1x1")
        make = functools.partial(_convert, _pam(rgb, "RGB", 8), target, *options)
        yield Case(name, "-colorspace CMYK", "ImageMagick", make, inks_to_rgb(inks), tolerance=12)
    for interlace, sampling in itertools.product(("none", "plane"), ("1x1", "2x1", "2x2", "4x1")):
        options = ("-interlace", interlace, "-sampling-factor", sampling, "-quality", "90")
        make = functools.partial(_convert, _pam(rgb, "RGB", 8), "jpeg", *options)
        yield Case("JPEG", f"RGB, {sampling}, -interlace {interlace}", "ImageMagick", make)
