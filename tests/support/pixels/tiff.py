"""TIFF: colour models, depths, layouts, compressions, kinds of alpha, pages."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import PIL.Image
import tifffile

from tests.support.image_samples import encode
from tests.support.pixels.case import CHANNELS, Case, by_opencv, by_tifffile, inks_to_rgb, right, samples


def tiff_cases() -> Iterator[Case]:
    compressions = (None, "lzw", "zlib", "packbits", "lzma", "zstd")
    for colour, bits in itertools.product(CHANNELS, (8, 16)):
        values = samples(CHANNELS[colour], bits)
        photometric = "rgb" if "RGB" in colour else "minisblack"
        for compression, predictor, planar, tile, order in itertools.product(
            compressions, (False, True), ("contig", "separate"), (None, (16, 32)), ("<", ">")
        ):
            if predictor and compression in (None, "packbits"):
                continue
            if planar == "separate" and values.shape[2] == 1:
                continue
            options = {
                "photometric": photometric,
                "compression": compression,
                "predictor": predictor,
                "planarconfig": planar if values.shape[2] > 1 else None,
                "tile": tile,
                "byteorder": order,
                "rowsperstrip": None if tile else 7,
                "extrasamples": ["unassalpha"] if "lpha" in colour or colour == "RGBA" else None,
            }
            stored = values.transpose(2, 0, 1) if planar == "separate" else values
            name = f"{colour} {bits} bits, {compression}, {planar}, {'tiled' if tile else 'strips'}, {order}"
            yield Case(
                "TIFF",
                name + (", predictor" if predictor else ""),
                "tifffile",
                partial(by_tifffile, stored if stored.shape[-1] > 1 else stored[..., 0], **options),
                right(values, bits),
            )
    for colour, bits in itertools.product(("grey", "RGB"), (1, 2, 4, 9, 10, 12, 14)):
        values = samples(CHANNELS[colour], bits)
        for photometric in ("minisblack", "miniswhite") if colour == "grey" else ("rgb",):
            expected = right(values, bits)
            yield Case(
                "TIFF",
                f"{colour} {bits} bits, {photometric}",
                "tifffile",
                partial(by_tifffile, values.squeeze(), photometric=photometric, bitspersample=bits),
                255 - expected if photometric == "miniswhite" else expected,
            )
    for kind, premultiplied in (("unassalpha", False), ("assocalpha", True), ("unspecified", None)):
        for bits in (8, 16):
            values = samples(4, bits)
            if premultiplied:
                scale = values[..., 3:].astype(np.float64) / (2**bits - 1)
                values[..., :3] = np.rint(values[..., :3] * scale)
            expected = (
                right(values[..., :3], bits)
                if premultiplied is None
                else right(values, bits, premultiplied=premultiplied)
            )
            yield Case(
                "TIFF alpha",
                f"{kind}, {bits} bits",
                "tifffile",
                partial(by_tifffile, values, photometric="rgb", extrasamples=[kind]),
                expected,
            )
    inks = samples(4, 8)
    for planar in ("contig", "separate"):
        yield Case(
            "TIFF CMYK",
            f"8 bits, {planar}",
            "tifffile",
            partial(
                by_tifffile,
                inks if planar == "contig" else inks.transpose(2, 0, 1),
                photometric="separated",
                planarconfig=planar,
            ),
            inks_to_rgb(inks),
        )
    yield Case(
        "TIFF CMYK",
        "16 bits",
        "tifffile",
        lambda: by_tifffile(inks.astype(np.uint16) * 257, photometric="separated", planarconfig="contig"),
        inks_to_rgb(inks),
    )
    bilevel = samples(1, 1)
    for compression in ("group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_adobe_deflate"):
        yield Case(
            "TIFF bilevel",
            compression,
            "Pillow",
            partial(encode, PIL.Image.fromarray(bilevel[..., 0] > 0), "TIFF", compression=compression),
            right(bilevel, 1),
        )
    values = samples(3, 8)
    yield Case("TIFF", "RGB 8 bits", "OpenCV", lambda: by_opencv(values, ".tif"), values)
    yield Case("TIFF", "RGB 16 bits", "OpenCV", lambda: by_opencv(samples(3, 16), ".tif"), right(samples(3, 16), 16))
    palette = PIL.Image.fromarray(values).quantize(64)
    yield Case("TIFF", "palette", "Pillow", lambda: encode(palette, "TIFF"), np.asarray(palette.convert("RGB")))
    for name, compression in (("webp", "webp"), ("jpeg 2000", "jpeg2000")):
        yield Case(
            "TIFF",
            f"RGB 8 bits, {name}",
            "tifffile",
            partial(by_tifffile, values, photometric="rgb", compression=compression),
            values,
        )
    yield Case("TIFF YCbCr", "jpeg", "Pillow", lambda: encode(values, "TIFF", compression="jpeg"), None)
    for dtype, failure in (
        (np.float32, "unsupported_mode"),
        (np.int16, "unsupported_mode"),
        (np.uint32, "unsupported_mode"),
    ):
        yield Case(
            "TIFF",
            f"grey {np.dtype(dtype)}",
            "tifffile",
            partial(by_tifffile, values[..., 0].astype(dtype)),
            failure=failure,
        )
    yield Case(
        "TIFF pages",
        "a reduced copy first",
        "tifffile",
        lambda: _two_pages(values),
        values,
    )


def _two_pages(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(values[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(values, photometric="rgb")
    return stream.getvalue()
